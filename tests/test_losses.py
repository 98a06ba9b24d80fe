"""The registered losses: built from configs, weighted, and run by MMRazor's own algorithm."""

import copy
import math

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch._dynamo.utils import counters

import rawkd_mm
from rawkd_mm.registry import MODELS

ANGULAR = ('LADLoss', 'CADLoss', 'PADLoss')
NAMES = (*ANGULAR, 'NaiveFeatureLoss', 'MagnitudeLoss', 'NFDLoss', 'KLLoss')


def cosines(s, t, axis):
    norms = np.sqrt((s * s).sum(axis) * (t * t).sum(axis))
    return (s * t).sum(axis) / np.where(norms == 0, 1, norms)


def reference(name, student, teacher):
    """The loss without its weight, in float64, for features of shape (B, C, H, W)."""
    s, t = (x.detach().double().numpy() for x in (student, teacher))
    if name in ANGULAR:
        axis = {'LADLoss': (1, 2, 3), 'CADLoss': (2, 3), 'PADLoss': (1,)}[name]
        return np.mean(1 - cosines(s, t, axis))
    if name == 'NaiveFeatureLoss':
        return np.mean((s - t) ** 2)
    if name == 'MagnitudeLoss':
        n, m = (np.sqrt((x * x).sum((1, 2, 3))) for x in (s, t))
        return np.mean((m - n) ** 2) / s[0].size
    if name == 'KLLoss':
        p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (s, t))
        return np.mean((q * np.log(q / p)).sum(1))
    x, y = (
        (f - f.mean((2, 3), keepdims=True)) / np.sqrt(f.var((2, 3), keepdims=True) + 1e-8)
        for f in (s, t)
    )
    return np.mean((x - y) ** 2)


def features(size=(4, 5)):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 6, *size, generator=generator) for _ in range(2))
    return student.requires_grad_(), teacher


# Building


def test_all_losses_are_tested():
    # FGDLoss, which takes other arguments, in test_losses_fgd.py
    assert sorted(rawkd_mm.losses.__all__) == sorted([*NAMES, 'FGDLoss'])


@pytest.mark.parametrize('name', NAMES)
def test_registered_in_mmrazor(name):
    import mmrazor.registry  # not at the top: rawkd_mm makes it importable

    loss = mmrazor.registry.MODELS.build(dict(type=name))
    assert MODELS is mmrazor.registry.MODELS and type(loss) is getattr(rawkd_mm.losses, name)
    assert MODELS.get(f'mmrazor.{name}') is type(loss)


@pytest.mark.parametrize('scope', ['mmengine', 'mmseg', 'mmrazor'])
@pytest.mark.parametrize('name', NAMES)
def test_builds_in_default_scope(name, scope):
    with DefaultScope.overwrite_default_scope(scope):
        for registry in (MODELS, ROOT_MODELS):
            assert type(registry.build(dict(type=name))).__name__ == name
            below = dict(type=name, _scope_='mmrazor', loss_weight=2)
            assert registry.build(below).loss_weight == 2


@pytest.mark.parametrize('name', NAMES)
def test_default_weight(name):
    assert MODELS.build(dict(type=name)).loss_weight == (3.0 if name in ANGULAR else 1.0)


@pytest.mark.parametrize('weight', [-1, -1e-9, math.nan, math.inf, -math.inf, True, '3', None, [3]])
@pytest.mark.parametrize('name', NAMES)
def test_bad_weight(name, weight):
    with pytest.raises((ValueError, TypeError)) as info:
        MODELS.build(dict(type=name, loss_weight=weight))
    assert 'loss_weight' in str(info.value) and repr(weight) in str(info.value)


# Value


@pytest.mark.parametrize('name', NAMES)
def test_value(name):
    student, teacher = features()
    loss = MODELS.build(dict(type=name))
    out = loss(preds_S=student, preds_T=teacher)
    expected = (3 if name in ANGULAR else 1) * reference(name, student, teacher)
    assert out.item() == pytest.approx(expected, rel=1e-5)
    assert loss(student, teacher) == out
    assert not list(loss.parameters()) and not loss.state_dict()


@pytest.mark.parametrize('weight', [0, 1, 0.25, 1000.0])
@pytest.mark.parametrize('name', NAMES)
def test_weight_scales_value_and_gradient(name, weight):
    student, teacher = features()
    one = MODELS.build(dict(type=name, loss_weight=1))(student, teacher)
    out = MODELS.build(dict(type=name, loss_weight=weight))(student, teacher)
    assert out.item() == pytest.approx(weight * one.item(), rel=1e-6)
    (unit,) = torch.autograd.grad(one, student)
    (grad,) = torch.autograd.grad(out, student)
    torch.testing.assert_close(grad, weight * unit)
    assert unit.abs().max() > 0


@pytest.mark.parametrize('name', NAMES)
def test_teacher_gets_no_gradient(name):
    student, teacher = features()
    MODELS.build(dict(type=name))(student, teacher.requires_grad_()).backward()
    assert teacher.grad is None and student.grad is not None


@pytest.mark.parametrize('name', NAMES)
def test_shape_mismatch(name):
    with pytest.raises(ValueError, match=r'\(2, 6, 4, 5\).*\(2, 6, 4, 6\)'):
        MODELS.build(dict(type=name))(torch.ones(2, 6, 4, 5), torch.ones(2, 6, 4, 6))


@pytest.mark.parametrize('name', ['LADLoss', 'CADLoss', 'NaiveFeatureLoss', 'KLLoss'])
def test_compiled(name):
    eager = MODELS.build(dict(type=name, loss_weight=2.5))
    loss = MODELS.build(dict(type=name, loss_weight=2.5, compile=True))
    torch._dynamo.reset()
    counters.clear()
    for size in ((4, 5), (8, 10), (3, 3), (1, 7)):
        student, teacher = features(size)
        # as many losses as levels of a pyramid
        out = copy.deepcopy(loss)(student, teacher)
        assert out.item() == pytest.approx(2.5 * reference(name, student, teacher), rel=1e-5)
        (grad,) = torch.autograd.grad(out, student)
        (expected,) = torch.autograd.grad(eager(student, teacher), student)
        torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-8)
    graphs = counters['stats']['unique_graphs']
    assert graphs > 0
    if not torch.__version__.startswith('2.1.'):  # which cuts the graph at an autograd.Function
        # one for the first shape, then for all shapes, or all but those with a size of 1
        assert graphs <= 3
    with pytest.raises(ValueError, match=r'\(2, 6, 8, 10\).*\(2, 6, 4, 6\)'):
        loss(features((8, 10))[0], torch.ones(2, 6, 4, 6))
    with torch.no_grad():  # which code compiled with gradients must notice
        assert not loss(*features((4, 5))).requires_grad
    assert loss(*features((4, 5))).requires_grad


@pytest.mark.parametrize('value', [None, 1, 'inductor', {}])
def test_bad_compile(value):
    with pytest.raises(TypeError, match=f'compile must be True or False, got {value!r}'):
        MODELS.build(dict(type='LADLoss', compile=value))


def test_options_are_shown():
    shown = repr(MODELS.build(dict(type='CADLoss', loss_weight=2.5, compile=True)))
    assert 'loss_weight=2.5' in shown and 'compile=True' in shown


@pytest.mark.parametrize('compiled', [False, True])
def test_temperature(compiled):
    student, teacher = features()
    loss = MODELS.build(dict(type='KLLoss', loss_weight=2, tau=4, compile=compiled))
    expected = 2 * 16 * reference('KLLoss', student / 4, teacher / 4)
    assert loss(student, teacher).item() == pytest.approx(expected, rel=1e-4)
    assert 'tau=4.0' in repr(loss)


@pytest.mark.parametrize('tau', [0, -1, math.nan, math.inf, True, '3', None])
def test_bad_temperature(tau):
    with pytest.raises((ValueError, TypeError), match=f'tau must be .* got {tau!r}'):
        MODELS.build(dict(type='KLLoss', tau=tau))


# In place of ChannelWiseDivergence, under MMRazor's own SingleTeacherDistill

CLASSES = 4


def segmentor(base_channels, head_channels):
    norm = dict(type='BN', requires_grad=True)
    return dict(
        _scope_='mmseg',
        type='EncoderDecoder',
        data_preprocessor=dict(
            type='SegDataPreProcessor', mean=[127.5] * 3, std=[50.0] * 3, size=(64, 64)
        ),
        backbone=dict(
            type='ResNetV1c',
            depth=18,
            base_channels=base_channels,
            stem_channels=base_channels,
            strides=(1, 2, 1, 1),
            dilations=(1, 1, 2, 4),
            norm_cfg=norm,
            contract_dilation=True,
        ),
        decode_head=dict(
            type='PSPHead',
            in_channels=base_channels * 8,
            in_index=3,
            channels=head_channels,
            num_classes=CLASSES,
            norm_cfg=norm,
            align_corners=False,
            dropout_ratio=0.1,
            loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False),
        ),
        train_cfg=dict(),
        test_cfg=dict(mode='whole'),
    )


def distillation(loss, source):
    """A config as MMRazor's own, e.g. configs/distill/mmseg/cwd; only the loss is another."""
    recorder = dict(feature=dict(type='ModuleOutputs', source=source))
    return Config(
        dict(
            model=dict(
                _scope_='mmrazor',
                type='SingleTeacherDistill',
                architecture=segmentor(4, 8),
                teacher=segmentor(8, 8),
                distiller=dict(
                    type='ConfigurableDistiller',
                    student_recorders=recorder,
                    teacher_recorders=recorder,
                    distill_losses=dict(loss_kd=loss),
                    loss_forward_mappings=dict(
                        loss_kd=dict(
                            preds_S=dict(from_student=True, recorder='feature'),
                            preds_T=dict(from_student=False, recorder='feature'),
                        )
                    ),
                ),
            )
        )
    )


def batch():
    generator = torch.Generator().manual_seed(1)
    samples = []
    for _ in range(2):
        label = torch.randint(0, CLASSES, (1, 64, 64), generator=generator)
        sample = SegDataSample(gt_sem_seg=PixelData(data=label))
        sample.set_metainfo(dict(img_shape=(64, 64), ori_shape=(64, 64)))
        samples.append(sample)
    return torch.randn(2, 3, 64, 64, generator=generator), samples


def run(loss, source='decode_head.bottleneck'):
    """One training step: the algorithm, its losses and copies of the two features."""
    torch.manual_seed(0)
    algorithm = MODELS.build(distillation(loss, source).model)
    algorithm.train()
    seen = {}
    for role in ('student', 'teacher'):
        module = getattr(algorithm, role).get_submodule(source)
        module.register_forward_hook(
            lambda _, __, out, role=role: seen.update({role: out.detach().clone()})
        )
    return algorithm, algorithm(*batch(), mode='loss'), seen


@pytest.mark.parametrize('source', ['decode_head.bottleneck', 'decode_head.conv_seg'])
@pytest.mark.parametrize('name', NAMES)
def test_drops_into_configurable_distiller(name, source):
    algorithm, losses, seen = run(dict(type=name, loss_weight=5), source)
    assert 'student.decode.loss_ce' in losses
    distill = losses['distill.loss_kd']
    assert seen['student'].shape == seen['teacher'].shape and seen['student'].shape[0] == 2
    expected = 5 * reference(name, seen['student'], seen['teacher'])
    assert math.isfinite(expected) and expected > 0
    assert distill.item() == pytest.approx(expected, rel=1e-4)

    distill.backward()
    for name_, parameter in algorithm.student.backbone.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name_
    assert algorithm.student.backbone.stem[0].weight.grad.abs().max() > 0
    assert all(p.grad is None for p in algorithm.teacher.parameters())


def test_same_config_as_channel_wise_divergence():
    """The config above is one that MMRazor's own loss takes too."""
    _, losses, _ = run(dict(type='ChannelWiseDivergence', tau=1, loss_weight=5))
    assert losses['distill.loss_kd'].isfinite()
