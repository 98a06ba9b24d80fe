"""The fragments of the methods, as make_distill_config.py reads them; its pairs: test_tools/."""

import shutil
import sys

import pytest
from helpers import build, faster_rcnn, pspnet, retinanet, upernet_swin
from zoo import CONFIGS, ROOT, read

from rawkd_mm.distill_config import METHODS, choose_method, methods
from rawkd_mm.distill_config.models import build_alone, check_trainable, read_config
from rawkd_mm.training import UsageError
from rawkd_mm.training.model_config import remove_pretrained

sys.path.insert(0, str(ROOT / 'tools'))
import make_distill_config  # noqa: E402

FOLDER = CONFIGS / '_base_' / 'methods'
FRAGMENTS = sorted(path.stem for path in FOLDER.glob('*.py'))
KINDS = dict(segmentation=pspnet, upernet=upernet_swin, one_stage=retinanet, two_stages=faster_rcnn)


def test_the_command_line_has_the_same_methods():
    assert make_distill_config.METHODS == METHODS
    assert {name.partition('_')[0] for name in FRAGMENTS} == set(METHODS)


def test_nothing_below_imports_it():
    package = ROOT / 'rawkd_mm'
    for path in package.rglob('*.py'):
        if path.relative_to(package).parts[0] not in ('distill_config', '.mim'):
            text = path.read_text().replace('make_distill_config', '')
            assert 'distill_config' not in text, path


@pytest.mark.usefixtures('mmdet')
def test_every_fragment_is_taken(monkeypatch):
    taken = set()
    find = methods.find_fragment
    monkeypatch.setattr(
        methods, 'find_fragment', lambda *a: (file := find(*a)) and (taken.add(file.stem) or file)
    )
    for make in KINDS.values():
        model = build(make())
        for name in METHODS:
            try:
                method = choose_method(name, model)
            except UsageError:
                others = ('fgd', 'fkd') if hasattr(model, 'decode_head') else ('kl',)
                assert name in others
            else:
                assert method.loss['type'] and method.note
    assert taken == set(FRAGMENTS)


def test_a_segmentor_is_told_what_there_is():
    message = 'For segmentation there are lad, cad, pad, naive, md, nfd, cwd, kl, mgd$'
    with pytest.raises(UsageError, match=message):
        choose_method('fgd', build(pspnet()))


@pytest.mark.usefixtures('mmdet')
def test_a_detector_is_told_what_there_is():
    message = (
        'kl is for segmentors, and the student RetinaNet is none. For it there are lad, .*, fkd$'
    )
    with pytest.raises(UsageError, match=message):
        choose_method('kl', build(retinanet()))


def test_nothing_but_the_model_is_left_of_a_fragment():
    names = [
        'cad/cad_bottleneck_pspnet-r101_pspnet-r18_8xb2-80k_cityscapes-512x1024.py',
        'quickstart/lad_bottleneck_pspnet-r18-w12_pspnet-r18-w4_1xb16-4k_digit-scenes-48x48.py',
        'quickstart/cad_bottleneck_pspnet-r18-w12_pspnet-r18-w4_1xb16-4k_digit-scenes-48x48.py',
    ]
    for name in names:
        assert 'method' not in read(name) and 'note' not in read(name).model


def test_fragments_are_found_where_the_package_is_installed(monkeypatch, tmp_path):
    package = tmp_path / 'rawkd_mm'
    monkeypatch.setattr(methods, '_PACKAGE', package)
    with pytest.raises(UsageError, match='the configs of rawkd_mm are missing'):
        methods.find_root()
    shutil.copytree(FOLDER, tmp_path / methods.FRAGMENTS)  # a checkout
    assert methods.find_root() == tmp_path
    shutil.copytree(FOLDER, package / '.mim' / methods.FRAGMENTS)  # a wheel
    assert methods.find_root() == package / '.mim'
    shutil.rmtree(package)
    (package / '.mim').mkdir(parents=True)  # an editable install
    (package / '.mim' / 'configs').symlink_to('../../configs')
    assert methods.find_root() == tmp_path


@pytest.mark.usefixtures('mmdet')
def test_a_tracker_without_data_is_told_its_detector():
    name = 'mmdet::deepsort/deepsort_faster-rcnn_r50_fpn_8xb2-4e_mot17train_test-mot17test.py'
    with pytest.raises(UsageError, match='DeepSORT follows .* Distil the FasterRCNN that it'):
        check_trainable(name, read_config(name, 'student'))


@pytest.mark.usefixtures('mmdet')
def test_mmcvs_sync_batchnorm_is_built_without_processes():
    from torch.nn.modules.batchnorm import _BatchNorm

    name = 'mmdet::strong_baselines/mask-rcnn_r50_fpn_rpn-2conv_4conv1fc_syncbn-all_lsj-50e_coco.py'
    model = build_alone(read_config(name, 'student'), 'student')
    assert any(isinstance(m, _BatchNorm) for m in model.roi_head.bbox_head.modules())


def test_nothing_is_downloaded_for_a_backbone_of_timm():
    config = dict(backbone=dict(type='TIMMBackbone', pretrained=True), head=[dict(pretrained='x')])
    remove_pretrained(config)
    assert config == dict(
        backbone=dict(type='TIMMBackbone', pretrained=False), head=[dict(pretrained=None)]
    )
