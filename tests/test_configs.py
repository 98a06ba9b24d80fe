"""The segmentation zoo: what every config says, and that each of them trains at full size."""

from functools import cache
from itertools import product
from pathlib import Path
from unittest.mock import patch
from urllib.parse import urlparse

import pytest
import torch
import yaml
from helpers import build, samples
from mmengine.config import utils as config_utils
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmseg import datasets
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

from rawkd_mm.training import (
    is_distillation,
    replace_sync_batchnorm,
    student_config,
)

# dataset: its class, the number of its classes, the size of the crops
DATASETS_OF_THE_ZOO = {
    'cityscapes': ('CityscapesDataset', 19, (512, 1024)),
    'voc12aug': ('PascalVOCDataset', 21, (512, 512)),
    'ade20k': ('ADE20KDataset', 150, (512, 512)),
}
# student: its teacher, what its config is called, backbone (type, depth or width), where the feature
# before the classifier is taken
PAIRS = {
    'pspnet-r18': ('pspnet-r101', 'pspnet_r18-d8', ('ResNetV1c', 18), 'bottleneck'),
    'pspnet-mv2': ('pspnet-r101', 'mobilenet-v2-d8_pspnet', ('MobileNetV2', 1.0), 'bottleneck'),
    'upernet-swin-t': (
        'upernet-swin-b',
        'swin-tiny-patch4-window7-in1k-pre_upernet',
        ('SwinTransformer', 96),
        'fpn-bottleneck',
    ),
}
TEACHERS = {'pspnet-r101': ('ResNetV1c', 101), 'upernet-swin-b': ('SwinTransformer', 128)}
OWN_TEACHER = 'swin-base-patch4-window7-in1k-pre_upernet'
# method: its loss, and its weights for PSPNet and UPerNet, from the papers; not read from
# configs/_base_/methods, so that a slip there is found
METHODS = {
    'lad': ('LADLoss', 3, 3),
    'cad': ('CADLoss', 3, 3),
    'naive': ('NaiveFeatureLoss', 100, 10),
    'md': ('MagnitudeLoss', 100, 10),
    'nfd': ('NFDLoss', 1.5, 1.5),
    'cwd': ('ChannelWiseDivergence', 5, 5),
    'kl': ('KLLoss', 1, 1),
}
SOURCES = {
    'bottleneck': 'decode_head.bottleneck',
    'fpn-bottleneck': 'decode_head.fpn_bottleneck',
    'logits': 'decode_head.conv_seg',
    'backbone': 'backbone[3]',
}
# What MMSegmentation has, too; there with other batches and schedules, except for Swin-T.
IN_MMSEG = {
    'pspnet_r18-d8_8xb2-80k_cityscapes-512x1024': 'pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024',
    'mobilenet-v2-d8_pspnet_8xb2-80k_cityscapes-512x1024': (
        'mobilenet_v2/mobilenet-v2-d8_pspnet_4xb2-80k_cityscapes-512x1024'
    ),
    'mobilenet-v2-d8_pspnet_8xb2-80k_ade20k-512x512': (
        'mobilenet_v2/mobilenet-v2-d8_pspnet_4xb4-160k_ade20k-512x512'
    ),
    'swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512': (
        'swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512'
    ),
}


def ending(student, dataset):
    """'8xb2-80k_cityscapes-512x1024'"""
    height, width = DATASETS_OF_THE_ZOO[dataset][2]
    schedule = '160k' if (student, dataset) == ('upernet-swin-t', 'ade20k') else '80k'
    return f'8xb2-{schedule}_{dataset}-{height}x{width}'


def expected_distillations():
    for (student, pair), dataset in product(PAIRS.items(), DATASETS_OF_THE_ZOO):
        teacher, _, _, before_classifier = pair
        for method in METHODS:
            locations = ['logits' if method in ('cwd', 'kl') else before_classifier]
            if method in ('lad', 'cad') and dataset == 'cityscapes' and teacher == 'pspnet-r101':
                locations.append('backbone')
            for location in locations:
                name = f'{method}_{location}_{teacher}_{student}_{ending(student, dataset)}'
                yield f'{method}/{name}.py', (method, location, teacher, student, dataset)


DISTILLATIONS = dict(expected_distillations())
STUDENTS = {
    f'students/{pair[1]}_{ending(student, dataset)}.py': (student, dataset)
    for (student, pair), dataset in product(PAIRS.items(), DATASETS_OF_THE_ZOO)
}
OWN_TEACHERS = {
    f'teachers/{OWN_TEACHER}_{ending("upernet-swin-t", dataset)}.py': dataset
    for dataset in ('cityscapes', 'voc12aug')
}
ALL = [*STUDENTS, *OWN_TEACHERS, *DISTILLATIONS]
FOLDERS = sorted({name.partition('/')[0] for name in ALL})
# One of each pair and dataset and of the methods whose loss is taken elsewhere or is not ours.
SAMPLE = [
    'lad/lad_backbone_pspnet-r101_pspnet-r18_8xb2-80k_cityscapes-512x1024.py',
    'cwd/cwd_logits_pspnet-r101_pspnet-mv2_8xb2-80k_ade20k-512x512.py',
    'kl/kl_logits_pspnet-r101_pspnet-r18_8xb2-80k_voc12aug-512x512.py',
    'md/md_bottleneck_pspnet-r101_pspnet-mv2_8xb2-80k_voc12aug-512x512.py',
    'cad/cad_fpn-bottleneck_upernet-swin-b_upernet-swin-t_8xb2-80k_voc12aug-512x512.py',
]

pytestmark = pytest.mark.filterwarnings('ignore:Default ``avg_non_ignore``')  # mmseg's own advice
distillations = pytest.mark.parametrize('name', DISTILLATIONS)
all_configs = pytest.mark.parametrize('name', ALL)


@pytest.fixture(scope='module', autouse=True)
def metafiles_read_once():
    """MMEngine reads all metafiles of mmseg for every `mmseg::...`."""
    with patch.object(config_utils, 'load', cache(config_utils.load)):
        yield


def student_and_dataset(name):
    if name in DISTILLATIONS:
        return DISTILLATIONS[name][3:]
    return STUDENTS.get(name) or ('upernet-swin-b', OWN_TEACHERS[name])


def published_miou(name):
    try:
        return str(published(name)['Results']['Metrics']['mIoU'])
    except ValueError:  # it has no such config
        return '-'


# The folders


def test_zoo_is_complete():
    there = {path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob('*.py')}
    other = ('_base_/', 'quickstart/', 'modern/', 'digit_scenes/')
    there = {name for name in there if not name.startswith(other)}
    # for COCO see test_configs_coco.py, for modern/ test_configs_modern.py, for digit_scenes/
    # test_tools/test_shipped_models.py
    assert {name for name in there if not name.endswith('_coco.py')} == set(ALL)
    assert (len(STUDENTS), len(OWN_TEACHERS), len(DISTILLATIONS)) == (9, 2, 67)


@pytest.mark.parametrize('folder', FOLDERS)
def test_readme_has_a_row_for_every_config(folder):
    table = {name: row for name, row in table_rows(folder).items() if not name.endswith('_coco.py')}
    assert set(table) == {name for name in ALL if name.startswith(f'{folder}/')}
    titles = {'cityscapes': 'Cityscapes', 'voc12aug': 'VOC 2012 aug', 'ade20k': 'ADE20K'}
    for name, cells in table.items():
        assert titles[student_and_dataset(name)[1]] in cells
        assert 'not run' in cells
        if name in DISTILLATIONS:
            _, location, _, student, dataset = DISTILLATIONS[name]
            teacher = read(name).model.teacher.cfg_path
            alone = f'{PAIRS[student][1]}_{ending(student, dataset)}'
            assert cells[0] == location
            assert cells[4] == published_miou(teacher.removeprefix('mmseg::'))
            assert cells[5] == published_miou(f'{IN_MMSEG.get(alone)}.py')
    assert '## Assumptions' in (CONFIGS / folder / 'README.md').read_text()


@pytest.mark.parametrize('folder', FOLDERS)
def test_metafile_describes_every_config(folder):
    metafile = yaml.safe_load((CONFIGS / folder / 'metafile.yml').read_text())
    (collection,) = metafile['Collections']
    assert (ROOT / collection['README']).is_file()
    models = [m for m in metafile['Models'] if not m['Config'].endswith('_coco.py')]
    expected = [name for name in ALL if name.startswith(f'{folder}/')]
    assert sorted(model['Config'] for model in models) == sorted(f'configs/{n}' for n in expected)
    for model in models:
        name = model['Config'].removeprefix('configs/')
        assert model['Name'] == Path(name).stem
        assert model['In Collection'] == collection['Name']
        assert 'Results' not in model and 'Weights' not in model, 'nobody has trained it yet'
        assert model['Metadata']['Batch Size'] == 16
        assert model['Metadata']['Training Data'] in collection['Metadata']['Training Data']
        if name in DISTILLATIONS:
            cfg = read(name)
            assert model['Metadata']['Location'] == cfg.model.distiller.pairs[0].teacher
            teacher = model['Metadata']['Teacher']
            assert teacher['Weights'] == cfg.model.teacher_ckpt
            assert cfg.model.teacher.cfg_path.endswith(teacher['Config'].rpartition('/')[2])
            assert (ROOT / model['Metadata']['Student']['Config']).is_file()


# What a config says


@distillations
def test_method_location_and_models_are_those_of_the_name(name):
    method, location, teacher, student, _ = DISTILLATIONS[name]
    model = read(name).model
    assert model.type == 'FrozenTeacherDistill'
    loss, for_pspnet, for_upernet = METHODS[method]
    assert model.distiller.loss.type == loss
    weight = for_upernet if student.startswith('upernet') else for_pspnet
    assert model.distiller.loss.loss_weight == weight
    (pair,) = model.distiller.pairs
    assert pair == dict(student=SOURCES[location], teacher=SOURCES[location])
    for config, expected in (
        (model.architecture, PAIRS[student][2]),
        (teacher_model(model.teacher.cfg_path), TEACHERS[teacher]),
    ):
        backbone = config['backbone']
        size = [backbone[k] for k in ('depth', 'widen_factor', 'embed_dims') if k in backbone]
        assert (backbone['type'], *size) == expected


@distillations
def test_student_is_the_student_alone(name):
    student, dataset = DISTILLATIONS[name][3:]
    alone = read(f'students/{PAIRS[student][1]}_{ending(student, dataset)}.py')
    cfg = read(name)
    assert cfg.model.architecture == alone.model
    reduced = student_config(cfg)
    # which tools/train.py gives the student alone as well
    assert reduced.pop('custom_hooks') == [dict(type='NonFiniteLossHook')]
    assert without(reduced.to_dict(), '_scope_') == without(alone.to_dict(), '_scope_')
    # nothing changes by the rule that the student's own goes before the top level's
    top = without(cfg.data_preprocessor.to_dict(), '_scope_')
    assert top == without(alone.model.data_preprocessor.to_dict(), '_scope_')


@all_configs
def test_classes_and_crops_are_those_of_the_dataset(name):
    cfg = read(name)
    kind, classes, size = DATASETS_OF_THE_ZOO[student_and_dataset(name)[1]]
    assert len(getattr(datasets, kind).METAINFO['classes']) == classes
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        kinds = {t for t in entries(loader, 'type') if t.endswith('Dataset')}
        assert kinds - {'ConcatDataset'} == {kind}
    crops = [t.crop_size for t in entries(cfg.train_dataloader, 'pipeline')[0] if 'crop_size' in t]
    assert crops == [size]
    assert cfg.data_preprocessor['size'] == size
    models = [cfg.model]
    if is_distillation(cfg):
        models = [cfg.model.architecture, teacher_model(cfg.model.teacher.cfg_path)]
    for model in models:
        assert entries(model, 'num_classes') == [classes, classes]  # decode and auxiliary head
        assert model['data_preprocessor']['size'] == size


@all_configs
def test_batch_schedule_and_optimizer(name):
    cfg = read(name)
    student, dataset = student_and_dataset(name)
    iterations = 160_000 if (student, dataset) == ('upernet-swin-t', 'ade20k') else 80_000
    assert f'_8xb2-{iterations // 1000}k_{dataset}-' in name
    assert 8 * cfg.train_dataloader.batch_size == 16
    assert cfg.auto_scale_lr.base_batch_size == 16
    assert cfg.train_cfg.max_iters == iterations
    # ten times, the last iteration among them, whose weights a teacher is
    assert cfg.train_cfg.val_interval == iterations // 10
    assert cfg.default_hooks.checkpoint.interval == iterations // 10
    assert cfg.default_hooks.checkpoint.type == 'ResumableCheckpointHook'
    optimizer, schedulers = cfg.optim_wrapper.optimizer, cfg.param_scheduler
    if 'swin' in student:
        expected = dict(type='AdamW', lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01)
        backbone = entries(cfg.model, 'backbone')[0]
        assert backbone.drop_path_rate == 0.3
        warm_up, decay = schedulers
        assert (warm_up.type, warm_up.begin, warm_up.end) == ('LinearLR', 0, 1500)
        assert (decay.type, decay.power, decay.begin) == ('PolyLR', 1.0, 1500)
    else:
        expected = dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=5e-4)
        (decay,) = schedulers
        assert (decay.type, decay.power, decay.begin) == ('PolyLR', 0.9, 0)
    assert without(optimizer, '_scope_') == expected
    assert decay.end == iterations and not decay.by_epoch


@distillations
def test_teachers_have_weights(name):
    """Published ones fit the teacher's config; the others are where our config leaves them."""
    _, _, teacher, _, dataset = DISTILLATIONS[name]
    model = read(name).model
    path = model.teacher.cfg_path
    if teacher == 'upernet-swin-b' and dataset != 'ade20k':
        assert Path(path).resolve().relative_to(CONFIGS).as_posix() in OWN_TEACHERS
        cfg = read(Path(path).resolve().relative_to(CONFIGS).as_posix())
        last = f'work_dirs/{Path(path).stem}/iter_{cfg.train_cfg.max_iters}.pth'
        assert model.teacher_ckpt == last
        return
    given = urlparse(model.teacher_ckpt)
    assert (given.scheme, given.hostname) == ('https', 'download.openmmlab.com')
    # the fork's metafiles name another host
    assert given.path == urlparse(published(path.removeprefix('mmseg::'))['Weights']).path


@distillations
def test_teacher_is_checked_against_its_published_metric(name):
    geometry, sanity, finite = read(name).custom_hooks
    kinds = ['FeatureGeometryHook', 'TeacherSanityHook', 'NonFiniteLossHook']
    assert [geometry.type, sanity.type, finite.type] == kinds
    value = published_miou(read(name).model.teacher.cfg_path.removeprefix('mmseg::'))
    expected = None if value == '-' else dict(mIoU=float(value))
    assert sanity.get('expected') == expected


@pytest.mark.parametrize('name', IN_MMSEG)
def test_students_are_those_of_mmseg(name):
    theirs = read_theirs(f'{IN_MMSEG[name]}.py')
    ours = read(f'students/{name}.py')
    assert without(ours.model, '_scope_', 'init_cfg') == without(theirs.model, 'init_cfg')
    files = [Path(urlparse(c).path).name for c in entries(ours.model, 'checkpoint')]
    assert files == [Path(urlparse(c).path).name for c in entries(theirs.model, 'checkpoint')]
    parts = ['test_dataloader', 'val_dataloader', 'val_evaluator']
    if '_8xb2-80k_' in name and '-80k_' in IN_MMSEG[name] or '-160k_' in name:
        parts += ['optim_wrapper', 'param_scheduler', 'train_cfg', 'default_hooks']
    assert ours.default_hooks.checkpoint.pop('type') == 'ResumableCheckpointHook'
    assert theirs.default_hooks.checkpoint.pop('type') == 'CheckpointHook'
    for part in parts:
        assert without(ours[part], '_scope_') == without(theirs[part], '_scope_'), part
    # they differ in the batch
    ignored = ('_scope_', 'batch_size')
    assert without(ours.train_dataloader, *ignored) == without(theirs.train_dataloader, *ignored)


@pytest.mark.parametrize('dataset', ['cityscapes', 'voc12aug'])
def test_own_teachers_are_mmseg_teachers_on_another_dataset(dataset):
    theirs = read_theirs(f'swin/{OWN_TEACHER}_{ending("upernet-swin-t", "ade20k")}.py')
    ours = read(f'teachers/{OWN_TEACHER}_{ending("upernet-swin-t", dataset)}.py')
    different = ('_scope_', 'init_cfg', 'num_classes', 'size')
    assert without(ours.model, *different) == without(theirs.model, *different)
    files = [Path(urlparse(c).path).name for c in entries(ours.model, 'checkpoint')]
    assert files == [Path(urlparse(c).path).name for c in entries(theirs.model, 'checkpoint')]


@pytest.mark.parametrize('name', SAMPLE[-2:])
def test_config_becomes_one_file(name):
    check_self_contained(name)


@pytest.mark.slow
@all_configs
def test_every_config_becomes_one_file(name):
    check_self_contained(name)


# That it trains: 2 to 7 seconds a config. The slow tests of this file take 4 minutes on 2 busy cores.


def check_one_iteration(name, size=64):
    """Build the models at full size and train for one iteration on two small crops."""
    cfg = buildable(name)
    for preprocessor in (cfg.data_preprocessor, *entries(cfg.model, 'data_preprocessor')):
        preprocessor['size'] = (size, size)
    cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)  # as the Runner does
    torch.manual_seed(0)
    init_default_scope('mmseg')
    model = build(cfg.model)
    replace_sync_batchnorm(model)
    model.train()
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    classes = DATASETS_OF_THE_ZOO[student_and_dataset(name)[1]][1]
    images = [torch.randint(0, 256, (3, size, size), dtype=torch.uint8) for _ in range(2)]
    batch = dict(inputs=images, data_samples=samples(2, size, classes=classes))

    batch = model.data_preprocessor(batch, training=True)
    assert batch['inputs'].shape == (2, 3, size, size)
    losses = check_step(cfg, model, optim_wrapper, batch)
    assert len([k for k in losses if k.startswith('distill.')]) == int(is_distillation(cfg))


@pytest.mark.parametrize('name', SAMPLE)
def test_config_trains(name):
    check_one_iteration(name)


@pytest.mark.slow
@all_configs
def test_every_config_trains(name):
    check_one_iteration(name)
