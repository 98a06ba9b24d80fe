"""The COCO zoo: what every config says, and that each of them trains at full size."""

import copy
import json
import sys
from functools import cache
from itertools import product
from pathlib import Path
from unittest.mock import patch
from urllib.parse import urlparse

import pytest
import torch
import yaml
from mmengine.config import utils as config_utils
from mmengine.dataset import pseudo_collate
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, DefaultScope
from zoo import (
    CONFIGS,
    ROOT,
    buildable,
    check_self_contained,
    check_step,
    entries,
    published,
    read,
    read_theirs,
    table_rows,
    teacher_model,
    without,
)

from rawkd_mm.datasets.digit_scenes_folder import CLASSES
from rawkd_mm.registry import MODELS as RAZOR_MODELS
from rawkd_mm.training import is_distillation, resolve_model, student_config

sys.path.insert(0, str(ROOT / 'tools/dataset_converters'))

from digit_scenes_drawing import DigitScenesOptions  # noqa: E402
from digit_scenes_generator import generate  # noqa: E402

# student: its teacher, what its config and mmdet's are called, its type, its learning rate
PAIRS = {
    'retinanet-r50': (
        'retinanet-x101',
        'retinanet_r50_fpn',
        'retinanet/retinanet_r50_fpn_2x_coco.py',
        'RetinaNet',
        0.01,
    ),
    'faster-rcnn-r50': (
        'cascade-mask-rcnn-x101',
        'faster-rcnn_r50_fpn',
        'faster_rcnn/faster-rcnn_r50_fpn_2x_coco.py',
        'FasterRCNN',
        0.02,
    ),
    'mask-rcnn-r50': (
        'cascade-mask-rcnn-x101',
        'mask-rcnn_r50_fpn',
        'mask_rcnn/mask-rcnn_r50_fpn_2x_coco.py',
        'MaskRCNN',
        0.02,
    ),
}
TEACHERS = {
    'retinanet-x101': 'retinanet/retinanet_x101-64x4d_fpn_1x_coco.py',
    'cascade-mask-rcnn-x101': 'dcn/cascade-mask-rcnn_x101-32x4d-dconv-c3-c5_fpn_1x_coco.py',
}
TITLES = {
    'retinanet-x101': 'RetinaNet-X101',
    'cascade-mask-rcnn-x101': 'Cascade Mask R-CNN-X101',
    'retinanet-r50': 'RetinaNet-R50',
    'faster-rcnn-r50': 'Faster R-CNN-R50',
    'mask-rcnn-r50': 'Mask R-CNN-R50',
}
METHODS = dict(
    lad='neck', cad='neck', cwd='neck', fkd='fpn-convs', fgd='fpn-convs', mgd='fpn-convs'
)
# the losses of one-stage and of two-stage students, as their authors and MMRazor give them;
# not read from configs/_base_/methods, so that a slip there is found
LOSSES = {
    'lad': 2 * [dict(type='LADLoss', loss_weight=3.0)],
    'cad': 2 * [dict(type='CADLoss', loss_weight=3.0)],
    'cwd': 2 * [dict(type='ChannelWiseDivergence', tau=1.0, loss_weight=10.0)],
    'fkd': [
        dict(
            type='FBKDLoss',
            mask_l2_weight=masked,
            channel_weight=pooled,
            spatial_weight=pooled,
            nonloacl_weight=masked,
        )
        for masked, pooled in ((4e-4, 2e-2), (7e-5, 4e-3))
    ],
    'fgd': [
        dict(type='FGDLoss', alpha=a, beta=b, gamma=c, lambda_=d, temperature=0.5)
        for a, b, c, d in ((1e-3, 5e-4, 1e-3, 5e-6), (5e-5, 2.5e-5, 5e-5, 5e-7))
    ],
    'mgd': [dict(type='MGDLoss', alpha_mgd=2e-5), dict(type='MGDLoss', alpha_mgd=5e-7)],
}
MASKED_SHARES = [0.65, 0.45]  # of MGD

STUDENTS = {f'students/{pair[1]}_8xb2-2x_coco.py': student for student, pair in PAIRS.items()}
DISTILLATIONS = {
    f'{method}/{method}_{location}_{pair[0]}_{student}_8xb2-2x_coco.py': (method, student)
    for (method, location), (student, pair) in product(METHODS.items(), PAIRS.items())
}
ALL = [*STUDENTS, *DISTILLATIONS]
FOLDERS = ['students', *METHODS]
# The teacher with masks for a student without; trained connectors and masks; boxes and inheriting.
SAMPLE = [
    'cad/cad_neck_cascade-mask-rcnn-x101_faster-rcnn-r50_8xb2-2x_coco.py',
    'fkd/fkd_fpn-convs_cascade-mask-rcnn-x101_mask-rcnn-r50_8xb2-2x_coco.py',
    'fgd/fgd_fpn-convs_retinanet-x101_retinanet-r50_8xb2-2x_coco.py',
]

pytestmark = pytest.mark.usefixtures('mmdet')
distillations = pytest.mark.parametrize('name', DISTILLATIONS)
all_configs = pytest.mark.parametrize('name', ALL)


@pytest.fixture(scope='module', autouse=True)
def metafiles_read_once():
    """MMEngine reads all metafiles of mmdet for every `mmdet::...`."""
    with patch.object(config_utils, 'load', cache(config_utils.load)):
        yield


def student_of(name):
    return STUDENTS.get(name) or DISTILLATIONS[name][1]


def is_one_stage(student):
    return student == 'retinanet-r50'


def published_ap(name, mask):
    """'47.3' or '47.3 / 41.1' of mmdet's metafiles."""
    results = published(name, 'mmdet')['Results']
    given = {k: v for r in results for k, v in r['Metrics'].items()}
    return f'{given["box AP"]} / {given["mask AP"]}' if mask else str(given['box AP'])


def stated_ap(method, student):
    """The paper's, as a cell of our tables."""
    tables = json.loads((ROOT / 'rawkd_mm/analysis/paper_tables.json').read_text())
    (row,) = [
        pair['rows'].get(method)
        for table in tables['tables']
        for pair in table['pairs']
        if pair['student'] == TITLES[student]
    ]
    value = row[0] if row else '-'
    return f'- / {value}' if student == 'mask-rcnn-r50' else str(value)


# The folders


def test_zoo_is_complete():
    there = {path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob('*_coco.py')}
    assert {name for name in there if not name.startswith(('_base_/', 'modern/'))} == set(ALL)
    assert (len(STUDENTS), len(DISTILLATIONS)) == (3, 18)


@pytest.mark.parametrize('folder', FOLDERS)
def test_readme_has_a_row_for_every_config(folder):
    table = {name: row for name, row in table_rows(folder).items() if name.endswith('_coco.py')}
    assert set(table) == {name for name in ALL if name.startswith(f'{folder}/')}
    for name, cells in table.items():
        student = student_of(name)
        teacher, _, theirs, _, _ = PAIRS[student]
        mask = student == 'mask-rcnn-r50'
        alone = published_ap(theirs, mask)
        if name in STUDENTS:
            expected = [TITLES[student], alone, stated_ap('student', student)]
        else:
            method, _ = DISTILLATIONS[name]
            expected = [METHODS[method], TITLES[teacher], TITLES[student]]
            expected += [published_ap(TEACHERS[teacher], mask), alone]
            expected += [stated_ap(method.upper(), student)]
        assert cells[:-1] == [*expected, 'not run']
    assert '## Assumptions' in (CONFIGS / folder / 'README.md').read_text()


@pytest.mark.parametrize('folder', FOLDERS)
def test_metafile_describes_every_config(folder):
    metafile = yaml.safe_load((CONFIGS / folder / 'metafile.yml').read_text())
    (collection,) = metafile['Collections']
    assert (ROOT / collection['README']).is_file()
    assert 'COCO' in collection['Metadata']['Training Data']
    models = [m for m in metafile['Models'] if m['Config'].endswith('_coco.py')]
    expected = [name for name in ALL if name.startswith(f'{folder}/')]
    assert sorted(model['Config'] for model in models) == sorted(f'configs/{n}' for n in expected)
    for model in models:
        name = model['Config'].removeprefix('configs/')
        described = model['Metadata']
        assert model['Name'] == Path(name).stem
        assert model['In Collection'] == collection['Name']
        assert 'Results' not in model and 'Weights' not in model, 'nobody has trained it yet'
        assert (described['Batch Size'], described['Epochs']) == (16, 24)
        assert described['Training Data'] == 'COCO'
        if name in DISTILLATIONS:
            cfg = read(name)
            student = student_of(name)
            location = described['Location']
            assert all(p.teacher.startswith(location) for p in cfg.model.distiller.pairs)
            teacher = described['Teacher']
            assert teacher['Weights'] == cfg.model.teacher_ckpt
            assert teacher['Config'] == cfg.model.teacher.cfg_path
            values = ' / '.join(map(str, teacher['Metrics'].values()))
            mask = len(teacher['Metrics']) == 2
            assert values == published_ap(TEACHERS[PAIRS[student][0]], mask)
            alone = described['Student']['Config'].removeprefix('configs/')
            assert STUDENTS[alone] == student


# What a config says


@pytest.mark.parametrize('name', STUDENTS)
def test_students_are_those_of_mmdet(name):
    """24 epochs, 2 images a GPU, its optimizer: all that is theirs."""
    _, _, theirs, kind, rate = PAIRS[STUDENTS[name]]
    theirs = read_theirs(theirs, 'mmdet').to_dict()
    ours = without(read(name).to_dict(), '_scope_')
    assert ours.pop('custom_imports')['imports'] == ['rawkd_mm']
    assert ours == theirs
    assert ours['model']['type'] == kind and ours['model']['backbone']['depth'] == 50
    optimizer = dict(type='SGD', lr=rate, momentum=0.9, weight_decay=1e-4)
    assert ours['optim_wrapper']['optimizer'] == optimizer
    assert ours['train_cfg']['max_epochs'] == 24
    assert ours['param_scheduler'][1]['milestones'] == [16, 22]
    assert ours['train_dataloader']['batch_size'] == 2
    assert ours['auto_scale_lr']['base_batch_size'] == 16


@distillations
def test_student_is_the_student_alone(name):
    """All but the clipping of gradients."""
    method, student = DISTILLATIONS[name]
    alone = read(f'students/{PAIRS[student][1]}_8xb2-2x_coco.py')
    cfg = read(name)
    assert cfg.model.architecture == alone.model
    reduced = student_config(cfg)
    # which tools/train.py gives the student alone as well
    assert reduced.pop('custom_hooks') == [dict(type='NonFiniteLossHook')]
    clip = reduced.optim_wrapper.pop('clip_grad', None)
    assert clip == (dict(max_norm=35, norm_type=2) if method in ('fgd', 'mgd') else None)
    assert without(reduced.to_dict(), '_scope_') == without(alone.to_dict(), '_scope_')


@distillations
def test_teacher_and_its_weights(name):
    model = read(name).model
    theirs = TEACHERS[PAIRS[student_of(name)][0]]
    assert model.teacher == dict(cfg_path=f'mmdet::{theirs}', pretrained=False)
    given = urlparse(model.teacher_ckpt)
    assert (given.scheme, given.hostname) == ('https', 'download.openmmlab.com')
    # the fork's metafiles name another host
    assert given.path == urlparse(published(theirs, 'mmdet')['Weights']).path
    backbone = teacher_model(model.teacher.cfg_path)['backbone']
    groups, dcn = (64, False) if 'retinanet' in theirs else (32, True)
    assert (backbone['type'], backbone['depth']) == ('ResNeXt', 101)
    assert (backbone['groups'], backbone['base_width']) == (groups, 4)
    assert ('dcn' in backbone) == dcn


@distillations
def test_teacher_is_checked_against_its_published_metrics(name):
    sanity, finite = read(name).custom_hooks
    student = student_of(name)
    mask = student == 'mask-rcnn-r50'
    values = published_ap(TEACHERS[PAIRS[student][0]], mask).split(' / ')
    metrics = ['coco/bbox_mAP', 'coco/segm_mAP'][: len(values)]
    assert sanity.type == 'TeacherSanityHook' and finite.type == 'NonFiniteLossHook'
    assert sanity.expected == {k: pytest.approx(float(v) / 100) for k, v in zip(metrics, values)}


def pooling(connector):
    """By how much keys and values of the non-local block of a connector are pooled in all."""
    module = RAZOR_MODELS.build({'_scope_': 'mmrazor', **connector, 'in_channels': 8})
    (block,) = (m for n, m in module.named_children() if n.endswith('_non_local'))
    values = block.g(torch.zeros(1, 8, 64, 64))
    assert block.phi(torch.zeros(1, 8, 64, 64)).shape == values.shape
    return 64 // values.shape[-1]


@distillations
def test_loss_locations_and_connectors_are_those_of_the_name(name):
    method, student = DISTILLATIONS[name]
    model = read(name).model
    distiller = model.distiller
    stages = 0 if is_one_stage(student) else 1
    assert model.type == 'FrozenTeacherDistill'
    assert distiller.loss == LOSSES[method][stages]
    if METHODS[method] == 'neck':
        sources = [f'neck[{i}]' for i in range(5)]
    else:
        sources = [f'neck.fpn_convs.{i}.conv' for i in range(4 if stages else 5)]
    assert [(p.student, p.teacher) for p in distiller.pairs] == [(s, s) for s in sources]
    inherits = ['neck', 'bbox_head'] if method in ('fgd', 'mgd') and not stages else None
    assert model.get('init_student') == inherits
    kinds = {key: entries(distiller, key) for key in ('student_connector', 'teacher_connector')}
    if method == 'fkd':
        for role, title in (('student', 'Student'), ('teacher', 'Teacher')):
            connectors = kinds[f'{role}_connector']
            assert {c.type for c in connectors} == {f'FBKD{title}Connector'}
            assert [c.reduction for c in connectors] == [4, 4, 2, 2, 2][: len(sources)]
            assert [pooling(c) for c in connectors] == [8, 4, 2, 2, 2][: len(sources)]
    elif method == 'fgd':
        context = dict(type='GlobalContextConnector', in_channels='auto')
        assert kinds == dict(student_connector=[context], teacher_connector=[context])
    elif method == 'mgd':
        (connector,) = kinds['student_connector']
        assert connector.type == 'MGDConnector'
        assert connector.lambda_mgd == MASKED_SHARES[stages]
        assert not kinds['teacher_connector']
    else:
        assert not kinds['student_connector'] and not kinds['teacher_connector']


@pytest.mark.parametrize('name', SAMPLE[-1:])
def test_config_becomes_one_file(name):
    check_self_contained(name)


@pytest.mark.slow
@all_configs
def test_every_config_becomes_one_file(name):
    check_self_contained(name)


# That it trains


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    """DigitScenes with boxes and masks, as COCO json."""
    root = tmp_path_factory.mktemp('digits')
    generate(root, DigitScenesOptions(train=2, val=1, size=(96, 96), min_digits=2))
    return root


def batch_of(cfg, model, root, sizes):
    """One image of each size with what belongs to it, by the config's own data set and pipeline."""
    samples = []
    for i, size in enumerate(sizes):
        dataset = copy.deepcopy(cfg.train_dataloader.dataset)
        dataset.update(
            data_root=str(root),
            ann_file='coco/train.json',
            data_prefix=dict(img='images/train'),
            metainfo=dict(classes=CLASSES[1:]),
        )
        (resize,) = (step for step in dataset.pipeline if step.type == 'Resize')
        resize.scale = (size, size)
        samples.append(DATASETS.build(dataset)[i])
    batch = model.data_preprocessor(pseudo_collate(samples), training=True)
    given = batch['data_samples']
    assert batch['inputs'].shape == (len(sizes), 3, max(sizes), max(sizes))
    assert [sample.img_shape for sample in given] == [(size, size) for size in sizes]
    assert all(len(sample.gt_instances.bboxes) for sample in given)
    return batch


@DefaultScope.overwrite_default_scope('mmdet')
def check_one_iteration(name, digits, folder):
    """Build the models at full size and train for one iteration on two small images."""
    cfg = buildable(name)
    student = student_of(name)
    torch.manual_seed(0)
    if cfg.model.get('init_student'):
        # there is nothing to inherit from a random teacher: a checkpoint of one will do
        teacher = MODELS.build(resolve_model(cfg.model.teacher))
        cfg.model.teacher_ckpt = str(folder / 'teacher.pth')
        torch.save(teacher.state_dict(), cfg.model.teacher_ckpt)
        del teacher
    model = MODELS.build(cfg.model)
    if cfg.model.get('init_student'):
        model.init_weights()
        theirs = model.teacher.state_dict()
        for key, value in model.student.state_dict().items():
            if key.startswith(('neck.', 'bbox_head.')):
                assert torch.equal(value, theirs[key]), key
    model.train()
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    # the smallest map, of stride 128 or 64, shall have more than one pixel
    size = 256 if is_one_stage(student) else 128
    batch = batch_of(cfg, model, digits, (size, size * 3 // 4))
    has_masks = ['masks' in sample.gt_instances for sample in batch['data_samples']]
    assert has_masks == 2 * [student == 'mask-rcnn-r50'], 'the teacher must do without'
    losses = check_step(cfg, model, optim_wrapper, batch)
    distilled = [key for key in losses if key.startswith('distill.')]
    if is_distillation(cfg):
        method, _ = DISTILLATIONS[name]
        assert len(distilled) == len(cfg.model.distiller.pairs)
        trained = dict(model.distiller.named_parameters())
        assert bool(trained) == (method in ('fkd', 'fgd', 'mgd'))
        own = {key.removeprefix('student.') for key in losses if key not in distilled}
    else:
        own = set(losses)
    expected = {'loss_cls', 'loss_bbox'}
    if not is_one_stage(student):
        expected |= {'loss_rpn_cls', 'loss_rpn_bbox', 'acc'}
    if student == 'mask-rcnn-r50':
        expected |= {'loss_mask'}
    assert own == expected


@pytest.mark.parametrize('name', SAMPLE)
def test_config_trains(name, digits, tmp_path):
    check_one_iteration(name, digits, tmp_path)


@pytest.mark.slow
@all_configs
def test_every_config_trains(name, digits, tmp_path):
    check_one_iteration(name, digits, tmp_path)
