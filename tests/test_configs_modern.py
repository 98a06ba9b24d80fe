"""The modern pairs of the zoo: what every config says, and that they train at full size."""

import re
from functools import cache
from unittest.mock import patch
from urllib.parse import urlparse

import pytest
import torch
import yaml
from mmengine.config import utils as config_utils
from mmengine.registry import init_default_scope
from zoo import (
    CONFIGS,
    ROOT,
    buildable,
    check_self_contained,
    published,
    read,
    read_theirs,
    table_rows,
    without,
)

from rawkd_mm.training import run_one_iteration, student_config

MASKS = ('decode_head.pixel_decoder[0]',) * 2
PANOPTIC = ('panoptic_head.pixel_decoder[0]',) * 2
SWIN_L = 'mask2former/mask2former_swin-l'
COCO_TEACHER = f'{SWIN_L}-p4-w12-384-in21k_16xb1-lsj-100e_coco-panoptic.py'
# end of the name: package, student, teacher, student's and teacher's features, how the evaluation of the
# student calls what the teacher reaches, and how its metafile does
PAIRS = {
    'mask-features_mask2former-swin-l_mask2former-r50_8xb2-160k_ade20k-512x512': (
        'mmseg', 'mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py',
        f'{SWIN_L}-in22k-384x384-pre_8xb2-160k_ade20k-640x640.py', [MASKS], 'mIoU', 'mIoU',
    ),
    'mask-features_mask2former-swin-l_mask2former-r50_8xb2-90k_cityscapes-512x1024': (
        'mmseg', 'mask2former/mask2former_r50_8xb2-90k_cityscapes-512x1024.py',
        f'{SWIN_L}-in22k-384x384-pre_8xb2-90k_cityscapes-512x1024.py', [MASKS], 'mIoU', 'mIoU',
    ),
    'fusion-conv_segformer-b5_segformer-b0_8xb2-160k_ade20k-512x512': (
        'mmseg', 'segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
        'segformer/segformer_mit-b5_8xb2-160k_ade20k-512x512.py',
        [('decode_head.fusion_conv',) * 2], 'mIoU', 'mIoU',
    ),
    'align_segnext-l_segnext-t_1xb16-160k_ade20k-512x512': (
        'mmseg', 'segnext/segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512.py',
        'segnext/segnext_mscan-l_1xb16-adamw-160k_ade20k-512x512.py',
        [('decode_head.align',) * 2], 'mIoU', 'mIoU',
    ),
    'mask-features_mask2former-swin-l_mask2former-r50_8xb2-50e_coco-panoptic': (
        'mmdet', 'mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py', COCO_TEACHER,
        [PANOPTIC], 'coco_panoptic/PQ', 'PQ',
    ),
    'mask-features_mask2former-swin-l_mask2former-r50_8xb2-50e_coco': (
        'mmdet', 'mask2former/mask2former_r50_8xb2-lsj-50e_coco.py', COCO_TEACHER,
        [PANOPTIC], 'coco/segm_mAP', 'mask AP',
    ),
    'neck_dino-swin-l_dino-r50_8xb2-12e_coco': (
        'mmdet', 'dino/dino-4scale_r50_8xb2-12e_coco.py', 'dino/dino-5scale_swin-l_8xb2-12e_coco.py',
        [(f'neck[{i}]', f'neck[{i + 1}]') for i in range(4)], 'coco/bbox_mAP', 'box AP',
    ),
    'neck_rtmdet-l_rtmdet-tiny_8xb32-300e_coco': (
        'mmdet', 'rtmdet/rtmdet_tiny_8xb32-300e_coco.py', 'rtmdet/rtmdet_l_8xb32-300e_coco.py',
        [(f'neck[{i}]',) * 2 for i in range(3)], 'coco/bbox_mAP', 'box AP',
    ),
}  # fmt: skip
LOSSES = {'lad': 'LADLoss', 'cad': 'CADLoss'}
ALL = {f'modern/{m}_{end}.py': (m, *row) for end, row in PAIRS.items() for m in LOSSES}
every_config = pytest.mark.parametrize('name', ALL)
pytestmark = [
    pytest.mark.usefixtures('mmdet'),
    pytest.mark.filterwarnings('ignore:Default ``avg_non_ignore``'),  # mmseg's own advice
]


@pytest.fixture(scope='module', autouse=True)
def metafiles_read_once():
    """MMEngine reads all metafiles of a package for every `mmseg::...`."""
    with patch.object(config_utils, 'load', cache(config_utils.load)):
        yield


def metrics(package, config, wanted):
    """The metric of a published config in its metafile."""
    results = published(config, package)['Results']
    for result in results if isinstance(results, list) else [results]:
        if wanted in result.get('Metrics', {}):
            return result['Metrics'][wanted]
    raise AssertionError(f'{config} has no {wanted}: {results}')


def test_every_config_is_known_and_documented():
    there = {path.relative_to(CONFIGS).as_posix() for path in (CONFIGS / 'modern').glob('*.py')}
    assert there == set(ALL) == set(table_rows('modern'))
    assert len(ALL) == 16
    assert 'configs/modern/metafile.yml' in (ROOT / 'model-index.yml').read_text()


@every_config
def test_row_of_the_readme(name):
    method, package, student, teacher, _, _, metric = ALL[name]
    cells = table_rows('modern')[name]
    assert cells[0] == method.upper()
    assert cells[1] == name.split('_')[1]
    assert cells[5] == metric
    assert float(cells[6]) == metrics(package, teacher, metric)
    assert float(cells[7]) == metrics(package, student, metric)
    assert cells[8] == 'not run'


@every_config
def test_metafile(name):
    _, package, student, teacher, pairs, *_ = ALL[name]
    metafile = yaml.safe_load((CONFIGS / 'modern/metafile.yml').read_text())
    (model,) = [m for m in metafile['Models'] if m['Config'] == f'configs/{name}']
    assert 'Results' not in model and 'Weights' not in model, 'nobody has trained it yet'
    data = model['Metadata']
    assert data['Location'] == pairs[0][1]
    assert data['Teacher']['Config'] == f'{package}::{teacher}'
    assert data['Teacher']['Weights'] == read(name).model.teacher_ckpt
    for metric, value in data['Teacher']['Metrics'].items():
        assert value == metrics(package, teacher, metric)
    assert data['Student']['Config'] == f'{package}::{student}'
    gpus, images = map(int, re.search(r'_(\d+)xb(\d+)-', name).groups())
    assert data['Batch Size'] == gpus * images
    assert read(name).train_dataloader.batch_size == images


@every_config
def test_teacher_student_and_features(name):
    method, package, student, teacher, pairs, log, metric = ALL[name]
    cfg = read(name)
    model = cfg.model
    assert (model.type, model.distiller.type) == ('FrozenTeacherDistill', 'FeatureDistiller')
    assert model.distiller.loss == dict(type=LOSSES[method], loss_weight=3.0)
    assert [(p.student, p.teacher) for p in model.distiller.pairs] == pairs
    assert model.teacher == dict(cfg_path=f'{package}::{teacher}', pretrained=False)
    given = urlparse(model.teacher_ckpt)
    assert (given.scheme, given.hostname) == ('https', 'download.openmmlab.com')
    # the fork's metafiles name another host
    assert given.path == urlparse(published(teacher, package)['Weights']).path
    (sanity,) = [hook for hook in cfg.custom_hooks if hook.type == 'TeacherSanityHook']
    # mmdet's log has fractions, but for PQ
    scale = 100 if log.startswith('coco/') else 1
    ((key, value),) = sanity.expected.items()
    assert key == log and scale * value == pytest.approx(metrics(package, teacher, metric))


@every_config
def test_student_is_the_published_one_with_its_hooks(name):
    _, package, student, *_ = ALL[name]
    theirs = read_theirs(student, package).to_dict()
    ours = student_config(read(name)).to_dict()
    hooks = ours.pop('custom_hooks')
    assert hooks[-1]['type'] == 'NonFiniteLossHook'
    assert without(hooks[:-1], '_scope_') == without(theirs.pop('custom_hooks', []), '_scope_')
    ours.pop('custom_imports'), theirs.pop('custom_imports', None)
    # the student has the preprocessor of the top level
    theirs['model'].setdefault('data_preprocessor', theirs.get('data_preprocessor'))
    assert without(ours, '_scope_') == without(theirs, '_scope_')


@every_config
def test_config_becomes_one_file(name):
    check_self_contained(name)


SMALLEST = 'modern/cad_fusion-conv_segformer-b5_segformer-b0_8xb2-160k_ade20k-512x512.py'


def check_one_iteration(name):
    """At full size, on two small images. DINO chooses 900 of their positions."""
    from rawkd_mm.distill_config import build_algorithm

    cfg = buildable(name)
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    algorithm = build_algorithm(cfg, with_weights=False)
    size = (256, 256) if 'dino' in name else (128, 128)
    losses = run_one_iteration(algorithm, cfg.optim_wrapper, size)
    distilled = [k for k in losses if k.startswith('distill.')]
    assert len(distilled) == len(ALL[name][4])
    assert all(losses[key] > 0 for key in distilled)


def test_config_trains():
    check_one_iteration(SMALLEST)


@pytest.mark.slow
@every_config
def test_every_config_trains(name):
    check_one_iteration(name)
