"""New-style configs: classes and functions as types, ``read_base``, lazy imports.

Public source: MMEngine's documentation, "A Pure Python style Configuration File"; no report found.
"""

import functools
import importlib.util
import sys

import pytest
import torch
from helpers import pspnet
from mmengine.config import Config
from mmengine.config.lazy import LazyAttr, LazyObject
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.model import PretrainedInit
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import (
    DATASETS,
    HOOKS,
    LOOPS,
    MODELS,
    OPTIM_WRAPPERS,
    OPTIMIZERS,
    TRANSFORMS,
    WEIGHT_INITIALIZERS,
)
from mmrazor.engine import StopDistillHook
from mmseg.models.decode_heads import PSPHead
from torch import nn
from zoo import ROOT

import rawkd_mm
from rawkd_mm import distill_config
from rawkd_mm.analysis.report import write_report
from rawkd_mm.hooks import FeatureGeometryHook, NonFiniteLossHook, ResumableCheckpointHook
from rawkd_mm.losses import CADLoss
from rawkd_mm.registry import find_type, type_name
from rawkd_mm.training import (
    UsageError,
    build_runner,
    inline_models,
    is_distillation,
    load_config,
    name_types,
    package_of,
    refuse_what_is_no_text,
    resolve_model,
    run_one_iteration,
    set_amp,
    student_config,
    teacher_config,
    use_resumable_checkpoints,
)

sys.path.insert(0, str(ROOT / 'tools'))
import dump_config  # noqa: E402
import make_distill_config  # noqa: E402

DATA = """
from mmcv.transforms import LoadImageFromFile
from mmengine.dataset import DefaultSampler, InfiniteSampler, pseudo_collate
from mmengine.hooks import CheckpointHook, EMAHook, LoggerHook
from mmengine.model import ExponentialMovingAverage
from mmengine.optim import OptimWrapper, PolyLR
from mmengine.runner import IterBasedTrainLoop, TestLoop, ValLoop
from mmseg.datasets import BaseSegDataset, LoadAnnotations, PackSegInputs
from mmseg.evaluation import IoUMetric
from torch.optim import SGD

pipeline = [dict(type=LoadImageFromFile), dict(type=LoadAnnotations), dict(type=PackSegInputs)]
dataset = dict(
    type=BaseSegDataset, data_root={root!r}, pipeline=pipeline, img_suffix='.png',
    seg_map_suffix='.png', data_prefix=dict(img_path='img', seg_map_path='ann'),
    metainfo=dict(classes=tuple('abcde'), palette=[[i, i, i] for i in range(5)]))
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type=InfiniteSampler, shuffle=True),
    collate_fn=dict(type=pseudo_collate), dataset=dataset)
val_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type=DefaultSampler, shuffle=False), dataset=dataset)
test_dataloader = val_dataloader
val_evaluator = dict(type=IoUMetric, iou_metrics=['mIoU'])
test_evaluator = val_evaluator
train_cfg = dict(type=IterBasedTrainLoop, max_iters=2, val_interval=2)
val_cfg = dict(type=ValLoop)
test_cfg = dict(type=TestLoop)
optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=SGD, lr=0.01))
param_scheduler = [dict(type=PolyLR, eta_min=1e-4, power=0.9, begin=0, end=2, by_epoch=False)]
default_hooks = dict(
    logger=dict(type=LoggerHook, interval=1, log_metric_by_epoch=False),
    checkpoint=dict(type=CheckpointHook, by_epoch=False, interval=2))
custom_hooks = [dict(type=EMAHook, ema_type=ExponentialMovingAverage)]
randomness = dict(seed=0)
log_level = 'WARNING'
"""

STUDENT = """
from mmengine.config import read_base

with read_base():
    from .data import *

import torch.nn as nn
from mmseg.models import EncoderDecoder, SegDataPreProcessor
from mmseg.models.backbones import ResNetV1c
from mmseg.models.decode_heads import PSPHead
from mmseg.models.losses import CrossEntropyLoss

custom_hooks.clear()
norm_cfg = dict(type=nn.BatchNorm2d, requires_grad=True)
model = dict(
    type=EncoderDecoder,
    data_preprocessor=dict(
        type=SegDataPreProcessor, mean=[1.0, 2.0, 3.0], std=[2.0, 2.0, 2.0], bgr_to_rgb=True,
        pad_val=0, seg_pad_val=255, size=(32, 32)),
    backbone=dict(
        type=ResNetV1c, depth=18, stem_channels=8, base_channels=4, num_stages=4,
        out_indices=(0, 1, 2, 3), dilations=(1, 1, 2, 4), strides=(1, 2, 1, 1),
        norm_cfg=norm_cfg, norm_eval=False),
    decode_head=dict(
        type=PSPHead, in_channels=32, in_index=3, channels=8, pool_scales=(1, 2),
        dropout_ratio=0.1, act_cfg=dict(type=nn.ReLU, inplace=True), num_classes=5,
        norm_cfg=norm_cfg, align_corners=False,
        loss_decode=dict(type=CrossEntropyLoss, use_sigmoid=False, avg_non_ignore=True)),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'))
"""

# What the same is as a text config.
TEXT = STUDENT[STUDENT.index('norm_cfg =') :]
for _name, _text in {
    'nn.BatchNorm2d': 'BN',
    'nn.ReLU': 'ReLU',
    **{x: f'mmseg.{x}' for x in ('EncoderDecoder', 'SegDataPreProcessor', 'ResNetV1c', 'PSPHead')},
    'CrossEntropyLoss': 'mmseg.CrossEntropyLoss',
}.items():
    TEXT = TEXT.replace(f'type={_name},', f'type={_text!r},')

HAND = """
from mmengine.config import read_base

with read_base():
    from .student import *

from mmengine.hooks import EMAHook
from rawkd_mm.algorithms import FrozenTeacherDistill
from rawkd_mm.distillers import FeatureDistiller
from rawkd_mm.hooks import FeatureGeometryHook, NonFiniteLossHook
from rawkd_mm.losses import CADLoss

model = dict(
    type=FrozenTeacherDistill, architecture=model, teacher=dict(cfg_path={teacher!r}),
    teacher_ckpt={checkpoint!r},
    distiller=dict(
        type=FeatureDistiller, loss=dict(type=CADLoss),
        pairs=[dict(student='decode_head.bottleneck', teacher='decode_head.bottleneck')]))
custom_hooks = [
    dict(type=FeatureGeometryHook, interval=1), dict(type=NonFiniteLossHook, patience=3),
    dict(type=EMAHook)]
"""

BACKBONE = """
from mmseg.models.backbones import ResNetV1c
from mmseg.registry import MODELS

@MODELS.register_module(force=True)
class NewStyleNet(ResNetV1c):
    pass
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """New-style configs of a student, a teacher and their distillation, and their data."""
    from PIL import Image

    folder = tmp_path_factory.mktemp('new_style')
    generator = torch.Generator().manual_seed(0)
    for kind, top, shape in (('img', 256, (32, 32, 3)), ('ann', 5, (32, 32))):
        (folder / 'data' / kind).mkdir(parents=True)
        for i in range(4):
            pixels = torch.randint(0, top, shape, generator=generator).to(torch.uint8)
            Image.fromarray(pixels.numpy()).save(folder / 'data' / kind / f'{i}.png')
    sys.path.insert(0, str(folder))
    (folder / 'new_style_net.py').write_text(BACKBONE)
    (folder / 'data.py').write_text(DATA.format(root=str(folder / 'data')))
    (folder / 'student.py').write_text(STUDENT)
    wider = STUDENT.replace('base_channels=4', 'base_channels=8').replace('=32, in_i', '=64, in_i')
    wider = wider.replace(
        'import torch.nn', 'from new_style_net import NewStyleNet\nimport torch.nn'
    )
    (folder / 'teacher.py').write_text(wider.replace('type=ResNetV1c', 'type=NewStyleNet'))
    teacher = MODELS.build(Config.fromfile(folder / 'teacher.py').model)
    torch.save(dict(state_dict=teacher.state_dict()), folder / 'teacher.pth')
    paths = dict(teacher=str(folder / 'teacher.py'), checkpoint=str(folder / 'teacher.pth'))
    (folder / 'hand.py').write_text(HAND.format(**paths))
    yield folder
    sys.path.remove(str(folder))


def call(tool, *args):
    """Run a tool's main here; gives the message with which it ended, if it did not succeed."""
    before = sys.argv
    sys.argv = [tool.__file__, *map(str, args)]
    try:
        tool.main()
    except SystemExit as stop:
        return stop.code
    finally:
        sys.argv = before


@pytest.mark.parametrize(
    ('kind', 'name'),
    [
        ('CADLoss', 'CADLoss'),
        ('mmrazor.CADLoss', 'CADLoss'),
        ('rawkd_mm.losses.CADLoss', 'CADLoss'),
        (CADLoss, 'CADLoss'),
        (LazyObject('rawkd_mm.losses', 'CADLoss'), 'CADLoss'),
        (LazyAttr('CADLoss', LazyObject('rawkd_mm.losses')), 'CADLoss'),
        (functools.partial(CADLoss, loss_weight=2), 'CADLoss'),
        (torch.relu, 'relu'),
        (EMAHook.before_train, 'before_train'),
        (None, ''),
    ],
)
def test_type_name(kind, name):
    assert type_name(kind) == name


@pytest.mark.parametrize(
    'kind',
    [
        'FeatureGeometryHook',
        'rawkd_mm.hooks.FeatureGeometryHook',
        FeatureGeometryHook,
        LazyObject('rawkd_mm.hooks', 'FeatureGeometryHook'),
        LazyAttr('FeatureGeometryHook', LazyObject('rawkd_mm.hooks')),
    ],
)
def test_find_type(kind):
    assert find_type(kind, HOOKS) is FeatureGeometryHook
    assert find_type(kind, HOOKS, 'mmseg') is FeatureGeometryHook


def test_find_type_of_nothing():
    assert find_type('NoSuchHook', HOOKS) is None
    assert find_type('no_such_package.NoSuchHook', HOOKS) is None
    assert find_type('mmrazor.StopDistillHook', HOOKS) is StopDistillHook


def test_read_as_the_text_config_that_it_is(folder):
    expected = Config.fromstring(TEXT, '.py')
    cfg = load_config(str(folder / 'student.py'))
    assert cfg.model.to_dict() == expected.model.to_dict()
    assert cfg.norm_cfg.to_dict() == expected.norm_cfg.to_dict()
    assert not {'EncoderDecoder', 'nn', 'read_base', 'SGD'} & set(cfg.keys())
    assert cfg.optim_wrapper.to_dict() == dict(
        type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01)
    )
    assert cfg.train_dataloader.collate_fn == dict(type='pseudo_collate')
    assert 'custom_imports' not in cfg
    assert load_config(str(folder / 'hand.py')).custom_imports['imports'] == ['rawkd_mm']
    assert package_of(cfg) == package_of(Config.fromfile(folder / 'student.py')) == 'mmseg'


def test_text_configs_are_left_alone():
    cfg = Config(dict(model=pspnet()))
    assert name_types(cfg) is cfg


def everything_registered():
    """Classes of all kinds, with and without a name in text configs, of several packages."""
    from mmcv.transforms import Resize
    from mmengine.dataset import ConcatDataset
    from mmengine.runner import EpochBasedTrainLoop
    from mmrazor.models import ChannelWiseDivergence
    from mmseg.datasets import CityscapesDataset
    from mmseg.models.losses import CrossEntropyLoss
    from torch.optim import AdamW

    return [
        *(nn.BatchNorm2d, nn.GELU, nn.Conv2d, nn.SyncBatchNorm, nn.Identity, AdamW, CADLoss),
        *(PretrainedInit, Resize, ConcatDataset, EpochBasedTrainLoop, ChannelWiseDivergence),
        *(CityscapesDataset, CrossEntropyLoss, PSPHead, CheckpointHook, AmpOptimWrapper),
    ]


@pytest.mark.parametrize('scope', [None, 'mmseg', 'mmdet', 'mmrazor'])
def test_names_mean_the_same_in_every_scope(scope, mmdet):
    kinds = everything_registered()
    names = [entry['type'] for entry in name_types(Config(dict(a=[dict(type=k) for k in kinds]))).a]
    assert all(isinstance(name, str) for name in names)
    for kind, name in zip(kinds, names):
        found = {find_type(name, root, scope) for root in ROOTS}
        # in the registry that it is of, the class; in none another one
        assert found - {None} == {kind}, name
    # what mmengine and mmcv compare by name
    assert {'BN', 'Pretrained'} <= set(names)


ROOTS = (
    MODELS,
    HOOKS,
    DATASETS,
    TRANSFORMS,
    LOOPS,
    OPTIMIZERS,
    OPTIM_WRAPPERS,
    WEIGHT_INITIALIZERS,
)


def plain_config(**kwargs):
    return Config(
        dict(
            optim_wrapper=dict(type=OptimWrapper, optimizer=dict(type='SGD', lr=0.1)),
            default_hooks=dict(checkpoint=dict(type=CheckpointHook, interval=7)),
            **kwargs,
        )
    )


@pytest.mark.parametrize('lazy', [False, True])
def test_amp_and_resumable_checkpoints(lazy, folder):
    """Classes in a Config that was not read by load_config; and as MMEngine reads the file."""
    cfg = Config.fromfile(folder / 'student.py') if lazy else plain_config()
    (note,) = set_amp(cfg, True)
    assert 'bfloat16' in note
    assert cfg.optim_wrapper.type == 'Bf16OptimWrapper'
    assert 'instead of CheckpointHook' in use_resumable_checkpoints(cfg)[0]
    hook = cfg.default_hooks.checkpoint
    assert HOOKS.build(hook).__class__ is ResumableCheckpointHook
    assert hook.interval == (2 if lazy else 7)
    assert use_resumable_checkpoints(cfg) == []
    cfg.default_hooks.checkpoint.type = ResumableCheckpointHook
    assert use_resumable_checkpoints(cfg) == []
    cfg.optim_wrapper.type = AmpOptimWrapper
    assert 'on already' in set_amp(cfg, True)[0]


def test_student_and_teacher(folder):
    for cfg in (Config.fromfile(folder / 'hand.py'), load_config(str(folder / 'hand.py'))):
        assert is_distillation(cfg)
        student = student_config(cfg)
        assert MODELS.build(student.model).decode_head.channels == 8
        # FeatureGeometryHook goes, the others stay
        kinds = [find_type(hook['type'], HOOKS) for hook in student.custom_hooks]
        assert kinds == [NonFiniteLossHook, EMAHook]
        teacher = teacher_config(cfg)
        assert MODELS.build(teacher.model).backbone.base_channels == 8
        inlined = inline_models(cfg)
        assert inlined.model.teacher.backbone.base_channels == 8
    resolved = resolve_model(dict(cfg_path=str(folder / 'teacher.py')))
    assert resolved['type'] == 'mmseg.EncoderDecoder'
    # registered by the import of its module, which the path does
    assert resolved['backbone']['type'] == 'new_style_net.NewStyleNet'


def test_trained_by_the_tools_runner(folder, tmp_path):
    """As train.py --amp: the work dir's config can be read again, by MMEngine too."""
    cfg = load_config(str(folder / 'hand.py'))
    cfg.update(work_dir=str(tmp_path), launcher='none', experiment_name='new_style')
    set_amp(cfg, True)
    use_resumable_checkpoints(cfg)
    runner = build_runner(cfg)
    assert [type(h) for h in runner.hooks if isinstance(h, CheckpointHook)] == [
        ResumableCheckpointHook
    ]
    runner.train()
    assert runner.iter == 2 and type(runner.optim_wrapper).__name__ == 'Bf16OptimWrapper'
    again = Config.fromfile(tmp_path / 'hand.py')
    assert again.to_dict() == runner.cfg.to_dict()
    alone = MODELS.build(student_config(again).model)
    state = torch.load(tmp_path / 'iter_2.pth', map_location='cpu', weights_only=False)
    missing, _ = alone.load_state_dict(state['state_dict'], strict=False)
    assert missing == []


def test_dumped(folder, tmp_path):
    """One file, without a class, that MMEngine reads and builds."""
    out = tmp_path / 'dumped.py'
    assert call(dump_config, folder / 'hand.py', out) is None
    text = out.read_text()
    assert 'read_base' not in text and '<class' not in text
    cfg = Config.fromfile(out)
    assert cfg.model.architecture.to_dict() == Config.fromstring(TEXT, '.py').model.to_dict()
    assert cfg.custom_imports['imports'] == ['rawkd_mm']
    model = MODELS.build(cfg.model)
    assert type(model.teacher.backbone).__name__ == 'NewStyleNet'
    losses = run_one_iteration(model, cfg.optim_wrapper, (32, 32))
    assert losses['distill.loss_cad_decode_head.bottleneck'] > 0


def test_made(folder, tmp_path):
    out = tmp_path / 'made.py'
    error = call(
        make_distill_config, '--method', 'cad', '-o', out, '--student', folder / 'student.py',
        '--teacher', folder / 'teacher.py', '--teacher-ckpt', folder / 'teacher.pth',
    )  # fmt: skip
    assert error is None
    cfg = Config.fromfile(out)
    assert cfg.model.architecture.to_dict() == Config.fromstring(TEXT, '.py').model.to_dict()
    student = load_config(str(folder / 'student.py'))
    for key in ('train_cfg', 'optim_wrapper', 'param_scheduler', 'default_hooks', 'val_evaluator'):
        assert cfg[key] == student[key], key
    assert [hook.type for hook in cfg.custom_hooks] == ['FeatureGeometryHook']


# What a text config has no way to write, with the entry that the error must name.
NO_TEXT = {
    'a class that is no type': (
        'custom_hooks = [dict(type=EMAHook, ema_type=ExponentialMovingAverage)]',
        'custom_hooks[0].ema_type = the class mmengine.model.averaged_model.Exp',
    ),
    'a partial function': (
        'import functools\noptim_wrapper.optimizer.type = functools.partial(SGD, momentum=0.9)',
        'optim_wrapper.optimizer.type = functools.partial',
    ),
    'a function without a name': (
        'train_dataloader.collate_fn.type = lambda x: x',
        'train_dataloader.collate_fn.type = the function',
    ),
    'a number that is none': (
        "optim_wrapper.clip_grad = dict(max_norm=float('inf'))",
        'optim_wrapper.clip_grad.max_norm = inf (float)',
    ),
}


@pytest.mark.parametrize('case', NO_TEXT)
def test_what_cannot_be_written_is_said_before(case, folder, tmp_path):
    lines, entry = NO_TEXT[case]
    student = folder / f'odd_{len(case)}.py'
    base = 'with read_base():\n    from .student import *\n'
    head = 'from mmengine.config import read_base\n' + base
    head += (
        'from mmengine.hooks import EMAHook\nfrom mmengine.model import ExponentialMovingAverage\n'
    )
    student.write_text(head + 'from torch.optim import SGD\n' + lines + '\n')
    out = tmp_path / 'out.py'
    try:
        Config.fromfile(student)
    except RuntimeError:  # MMEngine 0.10.7 calls no functools.partial in a new-style config
        assert case == 'a partial function'
        assert f'{student} cannot be read: RuntimeError' in call(dump_config, student, out)
        return
    error = call(
        make_distill_config, '--method', 'cad', '-o', out, '--student', student,
        '--teacher', folder / 'teacher.py', '--teacher-ckpt', folder / 'teacher.pth',
    )  # fmt: skip
    assert 'cannot be written as a text config' in error and entry in error
    error = call(dump_config, student, out)
    assert 'cannot be written as a text config' in error and entry in error
    assert not out.exists()
    # its data and schedule are not written where it is the teacher
    refuse_what_is_no_text(load_config(str(student)).model, 'model')


def test_teachers_model_that_cannot_be_written(folder, tmp_path):
    teacher = folder / 'odd_teacher.py'
    text = (folder / 'teacher.py').read_text() + '\nmodel["backbone"]["odd"] = nn.GELU\n'
    teacher.write_text(text)
    with pytest.raises(UsageError, match=r'--teacher .*model.backbone.odd = the class torch'):
        distill_config.read_config(str(teacher), 'teacher')


@pytest.mark.slow
def test_the_report_of_a_training(folder, tmp_path, monkeypatch):
    """report.py reads the work dir's config, draws and evaluates."""
    cfg = load_config(str(folder / 'hand.py'))
    cfg.update(work_dir=str(tmp_path), launcher='none', experiment_name='new_style_report')
    build_runner(cfg).train()
    tools = ROOT / 'tools' / 'analysis_tools'
    monkeypatch.setattr(sys, 'path', [str(tools), str(tools.parent), *sys.path])
    spec = importlib.util.spec_from_file_location('new_style_report', tools / 'report.py')
    report = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(report)
    monkeypatch.setattr(sys, 'argv', ['report.py', str(tmp_path), '--images', '1'])
    write_report(**vars(report.parse_args()))
    text = (tmp_path / 'report.html').read_text()
    assert 'mIoU' in text
    assert rawkd_mm.__version__
