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
@pytest.mark.parametrize(
    ('name', 'how', 'instead'),
    [
        (
            'deepsort/deepsort_faster-rcnn_r50_fpn_8xb2-4e_mot17train_test-mot17test.py',
            'does not train its FasterRCNN',
            'sort/faster-rcnn_r50_fpn_8xb2-4e_mot17halftrain_test-mot17halfval.py',
        ),
        (
            'masktrack_rcnn/masktrack-rcnn_mask-rcnn_r50_fpn_8xb1-12e_youtubevis2019.py',
            'trains its MaskRCNN on frames of a video, one after the other',
            'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
        ),
        (
            'qdtrack/qdtrack_faster-rcnn_r50_fpn_4e_base.py',
            'trains its FasterRCNN on frames of a video, one after the other',
            'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
        ),
        (
            'soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py',
            'trains its FasterRCNN on labelled and unlabelled images at once',
            'faster_rcnn/faster-rcnn_r50-caffe_fpn_1x_coco.py',
        ),
    ],
)
def test_a_student_around_a_detector_is_told_a_config_of_it(name, how, instead):
    name = f'mmdet::{name}'
    with pytest.raises(UsageError) as error:
        check_trainable(name, read_config(name, 'student'))
    assert how in str(error.value) and f', such as mmdet::{instead},' in str(error.value)
    # a file of one's own, whose name says nothing
    cfg = read_config(name, 'student')
    with pytest.raises(
        UsageError, match=r'name the config of a \w+ as the student with the classes'
    ):
        check_trainable('mine.py', cfg)
    # what is named can be trained
    check_trainable(f'mmdet::{instead}', read_config(f'mmdet::{instead}', 'student'))


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
