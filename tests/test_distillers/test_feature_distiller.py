"""The distiller: pairs of features in, named losses out."""

import copy
import random
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fgd_reference import reference as fgd_reference
from helpers import (
    BOTTLENECK,
    Watch,
    build,
    distill,
    feature_distiller,
    images,
    pair,
    pspnet,
    retinanet,
    samples,
    total,
    upernet_swin,
)
from mmengine.logging import MessageHub
from mmengine.model import ExponentialMovingAverage
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from mmrazor.models import losses as mmrazor_losses
from mmrazor.registry import MODELS
from torch import nn

from rawkd_mm.distillers import FeatureDistiller
from rawkd_mm.distillers.auto_channels import fill_channels
from rawkd_mm.features import dry_run
from rawkd_mm.functional import angular_distance
from rawkd_mm.losses import CADLoss, LADLoss
from rawkd_mm.training.random_numbers import separate_random_numbers


@pytest.fixture(autouse=True)
def _scope():
    """MMRazor's, whatever scope another test left."""
    with DefaultScope.overwrite_default_scope('mmrazor'):
        yield


CAD = dict(type='CADLoss')
CAD_BOTTLENECK = 'distill.loss_cad_decode_head.bottleneck'


def make(*pairs, **kwargs):
    return MODELS.build(feature_distiller(*pairs, **kwargs))


def losses_and_features(algorithm, student, teacher, size=32):
    """One training forward with independent records of two modules' outputs."""
    with Watch(algorithm.student, student) as s, Watch(algorithm.teacher, teacher) as t:
        losses = algorithm(images(size=size), samples(size=size), mode='loss')
    return losses, s[student], t[teacher]


# Alignment


@pytest.mark.parametrize(
    ('channels', 'path', 'convolution'),
    [
        (16, BOTTLENECK, (8, 16)),
        (8, BOTTLENECK, None),
        (16, 'backbone.layer4.1.bn2', (32, 64)),
        (16, 'backbone.stem.0', None),
    ],
)
def test_connector_is_a_1x1_convolution_where_channels_differ(channels, path, convolution):
    algorithm = distill(pair(path), teacher=pspnet(8, channels))
    convolutions = [
        m for m in algorithm.distiller.connectors.modules() if isinstance(m, torch.nn.Conv2d)
    ]
    shapes = [(m.in_channels, m.out_channels) for m in convolutions]
    assert shapes == ([] if convolution is None else [convolution])
    assert all(m.kernel_size == (1, 1) and m.bias is not None for m in convolutions)
    # neither an activation nor a norm: the connector is linear
    kinds = {type(m).__name__ for m in algorithm.distiller.connectors.modules()}
    assert not kinds & {'ReLU', 'BatchNorm2d'}


@pytest.mark.parametrize(
    ('loss', 'distance'),
    [(dict(type='LADLoss'), 'layer'), (dict(type='CADLoss', loss_weight=0.5), 'channel')],
)
def test_loss_is_that_of_the_connected_features(loss, distance):
    algorithm = distill(pair(name='x', loss=loss))
    losses, student, teacher = losses_and_features(algorithm, BOTTLENECK, BOTTLENECK)
    (connector,) = algorithm.distiller.connectors.values()
    expected = angular_distance(connector(student), teacher, distance)
    weight = loss.get('loss_weight', 3.0)
    torch.testing.assert_close(losses['distill.loss_x'], weight * expected)


@pytest.mark.parametrize('strides', [(1, 2, 2, 1), (1, 1, 1, 1)])
def test_student_map_is_resized_to_the_teachers(strides):
    algorithm = distill(pair(), teacher=pspnet(8, 8, strides=strides))
    losses, student, teacher = losses_and_features(algorithm, BOTTLENECK, BOTTLENECK)
    assert student.shape[2:] != teacher.shape[2:]
    resized = F.interpolate(student, size=teacher.shape[2:], mode='bilinear', align_corners=False)
    torch.testing.assert_close(losses[CAD_BOTTLENECK], CADLoss()(resized, teacher))
    assert losses[CAD_BOTTLENECK] != 0


def test_channels_and_size_may_both_differ():
    algorithm = distill(pair(), teacher=pspnet(8, 16, strides=(1, 2, 2, 1)))
    losses, student, teacher = losses_and_features(algorithm, BOTTLENECK, BOTTLENECK)
    (connector,) = algorithm.distiller.connectors.values()
    aligned = F.interpolate(connector(student), teacher.shape[2:], mode='bilinear')
    expected = CADLoss()(aligned, teacher)
    torch.testing.assert_close(losses[CAD_BOTTLENECK], expected, rtol=1e-4, atol=1e-5)


def test_align_may_be_any_connector():
    align = dict(type='ConvModuleConnector', in_channel=8, out_channel=16, kernel_size=3, padding=1)
    algorithm = distill(pair(align=align))
    losses, student, teacher = losses_and_features(algorithm, BOTTLENECK, BOTTLENECK)
    (connector,) = algorithm.distiller.connectors.values()
    assert connector.conv_module.conv.kernel_size == (3, 3)
    torch.testing.assert_close(losses[CAD_BOTTLENECK], CADLoss()(connector(student), teacher))


def test_align_connector_applies_where_channels_agree_too():
    align = dict(type='ConvModuleConnector', in_channel=8, out_channel=8)
    algorithm = distill(pair(align=align), teacher=pspnet(8, 8))
    assert len(algorithm.distiller.connectors) == 1


def test_connector_that_does_not_fit_is_shown_with_the_shapes():
    align = dict(type='ConvModuleConnector', in_channel=8, out_channel=12)
    with pytest.raises(ValueError, match=r'\(1, 12, .*\(1, 8, .*\(1, 16, '):
        distill(pair(align=align))


def test_align_none_leaves_equal_features_alone():
    algorithm = distill(pair(align=None), teacher=pspnet(8, 8))
    losses, student, teacher = losses_and_features(algorithm, BOTTLENECK, BOTTLENECK)
    assert not algorithm.distiller.connectors
    torch.testing.assert_close(losses[CAD_BOTTLENECK], CADLoss()(student, teacher))


@pytest.mark.parametrize('loss', ['CADLoss', 'L2Loss', 'ChannelWiseDivergence'])
def test_align_none_with_other_channels_is_an_error_with_both_shapes(loss):
    with pytest.raises(ValueError, match=r'\b8, .*\b16, '):
        algorithm = distill(pair(align=None, loss=dict(type=loss)))
        algorithm(images(), samples(), mode='loss')


def test_auto_does_not_guess_for_what_is_no_map():
    # a Swin block gives tokens, shape (B, H * W, C)
    path = 'backbone.stages.0.blocks.1'
    teacher = upernet_swin(16)
    align = dict(type='ConvModuleConnector', in_channel=8, out_channel=16)
    with pytest.raises(ValueError, match=r"align='auto' aligns feature maps.*connector"):
        distill(pair(path), student=upernet_swin(), teacher=teacher)
    lad = dict(type='LADLoss')  # to which the order of a feature's dimensions is all one
    distill(pair(path, loss=lad), student=upernet_swin(), teacher=upernet_swin())
    with pytest.raises(RuntimeError):
        distill(pair(path, align=align), student=upernet_swin(), teacher=teacher)


# Connectors

FKD = dict(
    loss=dict(type='FBKDLoss'),
    student_connector=dict(type='FBKDStudentConnector', in_channels='auto', sub_sample=True),
    teacher_connector=dict(type='FBKDTeacherConnector', in_channels='auto', sub_sample=True),
)
MGD = dict(
    loss=dict(type='MGDLoss', alpha_mgd=0.01),
    student_connector=dict(
        type='MGDConnector', student_channels='auto', teacher_channels='auto', lambda_mgd=0.5
    ),
)
CONTEXT = dict(type='GlobalContextConnector', in_channels='auto')
FGD = dict(
    loss=dict(type='FGDLoss'), student_connector=dict(CONTEXT), teacher_connector=dict(CONTEXT)
)
KEY = 'loss_x'


def boxed_samples(shape=(32, 32)):
    """Two samples of segmentation, padded to 32 x 32, the first of which has a box too."""
    result = samples()
    for sample, boxes in zip(result, ([[3.0, 5.0, 17.0, 12.0]], [])):
        sample.set_metainfo(dict(img_shape=shape, batch_input_shape=(32, 32)))
        sample.gt_instances = InstanceData(bboxes=torch.tensor(boxes).reshape(-1, 4))
    return result


def with_connectors(method, path=BOTTLENECK, channels=16, **kwargs):
    """Distil one pair, named x, whose student feature has 8 channels."""
    distiller = feature_distiller(pair(path, name='x'), **method)
    return distill(distiller=distiller, teacher=pspnet(8, channels), **kwargs)


@pytest.mark.parametrize('channels', [8, 16])
@pytest.mark.parametrize('method', [FKD, MGD, FGD])
def test_methods_with_connectors(method, channels):
    """The loss is that of what the connectors make of the aligned features."""
    algorithm = with_connectors(method, channels=channels).train()
    data = boxed_samples(shape=(20, 32))
    with Watch(algorithm.student, BOTTLENECK) as s, Watch(algorithm.teacher, BOTTLENECK) as t:
        torch.manual_seed(3)
        losses = algorithm(images(), data, mode='loss')
    connectors = algorithm.distiller.connectors
    teacher_key = [f'{KEY}_teacher'] if 'teacher_connector' in method else []
    aligned_key = [] if channels == 8 else [KEY]
    assert list(connectors) == [*aligned_key, f'{KEY}_student', *teacher_key]

    torch.manual_seed(3)
    algorithm.student(images(), data, mode='loss')  # draws what its dropout drew before
    student = s[BOTTLENECK] if channels == 8 else connectors[KEY](s[BOTTLENECK])
    iteration = MessageHub.get_current_instance().get_info('iter', 0)
    with separate_random_numbers(2 * iteration + 1):  # what the method draws is not the student's
        student = connectors[f'{KEY}_student'](student)
        teacher = connectors[f'{KEY}_teacher'](t[BOTTLENECK]) if teacher_key else t[BOTTLENECK]
        loss = MODELS.build(method['loss'])
        extra = (data,) if method is FGD else ()
        expected = loss(student, teacher, *extra)
    torch.testing.assert_close(losses['distill.loss_x'], expected)
    assert expected > 0

    total(losses).backward()
    assert all(p.grad is not None for p in algorithm.distiller.parameters())
    assert all(p.grad is not None for p in algorithm.student.parameters())
    assert all(p.grad is None for p in algorithm.teacher.parameters())


@pytest.mark.parametrize('method', [FKD, MGD, FGD])
def test_connectors_are_trained_saved_and_copied(method):
    algorithm = with_connectors(method)
    parameters = {id(p): p for p in algorithm.distiller.parameters()}
    optimizer = build_optim_wrapper(
        algorithm, dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1))
    )
    given = {id(p) for group in optimizer.param_groups for p in group['params']}
    assert parameters.keys() <= given

    state = {name: value.clone() for name, value in algorithm.state_dict().items()}
    own = [name for name in state if name.startswith('distiller.')]
    assert own[:2] == [
        f'distiller.connectors.{KEY}.conv_module.conv.{n}' for n in ('weight', 'bias')
    ]
    assert all(n.startswith(f'distiller.connectors.{KEY}') for n in own)
    assert any(f'.{KEY}_student.' in name for name in own)

    average = ExponentialMovingAverage(algorithm, momentum=0.5)
    for seed in range(2):
        torch.manual_seed(seed)
        losses = algorithm.train()(images(seed=seed), boxed_samples(), mode='loss')
        optimizer.update_params(total(losses))
        average.update_parameters(algorithm)
    changed = algorithm.state_dict()
    trained = [n for n, _ in algorithm.named_parameters() if f'.{KEY}_student.' in n]
    assert any(not torch.equal(changed[name], state[name]) for name in trained)
    copied = {n.removeprefix('module.'): v for n, v in average.state_dict().items()}
    assert copied.keys() - {'steps'} == changed.keys()

    other = with_connectors(method, seed=1)
    other.load_state_dict(changed)  # strict
    twin = copy.deepcopy(algorithm)
    results = []
    for model in (algorithm, other, twin):
        model.teacher.load_state_dict(algorithm.teacher.state_dict())
        torch.manual_seed(5)
        results.append(model.train()(images(), boxed_samples(), mode='loss'))
    for result in results[1:]:
        torch.testing.assert_close(result['distill.loss_x'], results[0]['distill.loss_x'])


@pytest.mark.parametrize('method', [FKD, MGD, FGD])
def test_initial_values_survive_the_start_of_a_run(method):
    algorithm = with_connectors(method)
    before = {name: v.clone() for name, v in algorithm.distiller.state_dict().items()}
    algorithm.init_weights()
    after = algorithm.distiller.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize(
    'connector',
    [
        dict(type='ConvModuleConnector', in_channel=8, out_channel=16, act_cfg=None),
        dict(
            type='TorchNNConnector',
            module_name='Conv2d',
            module_args=dict(in_channels=8, out_channels=16, kernel_size=1),
        ),
    ],
    ids=lambda config: config['type'],
)
@pytest.mark.parametrize('listed', [False, True])
def test_init_cfg_of_an_align_is_followed(connector, listed):
    """MMCV's ConvModule would initialise itself once more, with a bias of 0."""
    init = dict(type='Constant', layer='Conv2d', val=0.25, bias=0.5)
    algorithm = distill(pair(align={**connector, 'init_cfg': [init] if listed else init}))
    algorithm.init_weights()
    bias, weight = sorted(algorithm.distiller.connectors.parameters(), key=torch.Tensor.dim)
    assert bias.eq(0.5).all() and weight.eq(0.25).all() and weight.shape[:2] == (16, 8)


def test_init_cfg_of_a_connector_is_followed():
    init = dict(type='Constant', layer='Conv2d', val=0.25)
    algorithm = with_connectors({**FGD, 'student_connector': dict(CONTEXT, init_cfg=init)})
    student, teacher = (
        algorithm.distiller.connectors[f'{KEY}_{r}'] for r in ('student', 'teacher')
    )
    assert (student.transform[-1].weight == 0.25).all()
    assert (teacher.transform[-1].weight == 0).all()


def test_each_pair_has_its_own_connectors():
    algorithm = distill(
        distiller=feature_distiller(
            pair(name='a'),
            pair('backbone[3]', name='b', teacher_connector=None),
            pair('backbone[2]', name='c', student_connector=MGD['student_connector']),
            pair('backbone[1]', name='d', student_connector=None, teacher_connector=None),
            student_connector=dict(type='ConvModuleConnector', in_channel='auto', out_channel=6),
            teacher_connector=dict(type='ConvModuleConnector', in_channel='auto', out_channel=6),
            loss=dict(type='CADLoss'),
        )
    )
    connectors = algorithm.distiller.connectors
    extra = [name for name in connectors if name.endswith(('_student', '_teacher'))]
    assert extra == [
        'loss_a_student',
        'loss_a_teacher',
        'loss_b_student',
        'loss_c_student',
        'loss_c_teacher',
    ]
    kinds = {name: type(connectors[name]).__name__ for name in extra}
    assert kinds.pop('loss_c_student') == 'MGDConnector'
    assert set(kinds.values()) == {'ConvModuleConnector'}
    # the number of channels of each pair's own teacher
    assert connectors['loss_a_student'].conv_module.in_channels == 16
    assert connectors['loss_b_student'].conv_module.in_channels == 64
    assert connectors['loss_c_teacher'].conv_module.in_channels == 32
    assert connectors['loss_c_student'].generation[0].in_channels == 32


def test_features_are_aligned_before_the_connectors():
    """Also in height and width, and hooks see the aligned features."""
    algorithm = distill(
        distiller=feature_distiller(pair(name='x'), **FGD),
        teacher=pspnet(8, 16, strides=(1, 2, 2, 1)),
    )
    with Watch(algorithm.student, BOTTLENECK) as s, Watch(algorithm.teacher, BOTTLENECK) as t:
        algorithm(images(), boxed_samples(), mode='loss')
    student, teacher = s[BOTTLENECK], t[BOTTLENECK]
    assert student.shape[2:] != teacher.shape[2:]
    connector = algorithm.distiller.connectors[KEY]
    aligned = F.interpolate(connector(student), teacher.shape[2:], mode='bilinear')
    found = algorithm.distiller.last_comparison.pairs[KEY]
    for given, expected in zip(found, (student, aligned, teacher)):
        assert not given.requires_grad
        torch.testing.assert_close(given, expected.detach(), rtol=1e-4, atol=1e-5)


def test_idle_connectors_have_a_gradient_after_the_stop():
    algorithm = with_connectors(FGD)
    algorithm.distillation_stopped = True
    total(algorithm(images(), boxed_samples(), mode='loss')).backward()
    for parameter in algorithm.distiller.parameters():
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))


def test_fgd_on_a_padded_batch_of_a_detector(mmdet):
    """Two images of different sizes through MMDetection's own preprocessor."""
    from mmdet.structures import DetDataSample

    algorithm = distill(
        distiller=feature_distiller(*[pair(f'neck[{i}]', name=f'x{i}') for i in range(3)], **FGD),
        student=retinanet(),
        teacher=retinanet(),
    )
    raw = dict(inputs=[], data_samples=[])
    boxes = [[[2.0, 3.0, 30.0, 40.0], [20.0, 20.0, 60.0, 56.0]], [[40.0, 8.0, 88.0, 30.0]]]
    for (height, width), given in zip([(64, 64), (32, 96)], boxes):
        raw['inputs'].append(torch.randint(0, 256, (3, height, width)).to(torch.uint8))
        sample = DetDataSample(metainfo=dict(img_shape=(height, width), scale_factor=(1.0, 1.0)))
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor(given), labels=torch.zeros(len(given), dtype=torch.long)
        )
        raw['data_samples'].append(sample)
    data = algorithm.data_preprocessor(raw, training=True)
    assert data['inputs'].shape == (2, 3, 64, 96)
    with Watch(algorithm.student, 'neck') as s, Watch(algorithm.teacher, 'neck') as t:
        losses = algorithm(**data, mode='loss')
    for i in range(3):
        student, teacher = s['neck'][i], t['neck'][i]
        # the blocks begin as the identity
        expected = fgd_reference(
            (student, student), (teacher, teacher), boxes, [(64, 96), (64, 96)]
        )
        value = sum(w * x for w, x in zip((1e-3, 5e-4, 1e-3, 5e-6), expected.values()))
        assert losses[f'distill.loss_x{i}'].item() == pytest.approx(value, rel=1e-4)


# The number of channels


class SamplesLoss(nn.Module):
    """A loss as a user may write it: with channels of its own, and data samples."""

    def __init__(self, channels=1, bias='none', sizes=()):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))
        self.seen = []

    def forward(self, student, teacher, data_samples):
        self.seen.append(data_samples)
        return ((student - teacher).mean((0, 2, 3)) * self.scale).square().sum()


class OptionalSamplesLoss(SamplesLoss):
    def forward(self, student, teacher, *, data_samples=None):
        return super().forward(student, teacher, data_samples)


class KeywordsLoss(SamplesLoss):
    def forward(self, student, teacher, **kwargs):
        return super().forward(student, teacher, kwargs)


for _loss in (SamplesLoss, OptionalSamplesLoss, KeywordsLoss):
    MODELS.register_module(module=_loss, force=True)


def test_channels_of_a_loss():
    algorithm = with_connectors(dict(loss=dict(type='SamplesLoss', channels='auto')), channels=12)
    (loss,) = algorithm.distiller.distill_losses.values()
    assert loss.scale.shape == (12,)
    assert f'distiller.distill_losses.{KEY}.scale' in algorithm.state_dict()
    total(algorithm(images(), samples(), mode='loss')).backward()
    assert loss.scale.grad.abs().sum() > 0


@pytest.mark.parametrize(
    'name',
    [
        'in_channel',
        'in_channels',
        'out_channel',
        'out_channels',
        'channels',
        'student_channels',
        'teacher_channels',
    ],
)
def test_arguments_that_are_numbers_of_channels(name):
    config = dict(type='x', **{name: 'auto'}, kernel_size=3)
    filled = fill_channels(config, torch.zeros(1, 7, 2, 2), 'x')
    assert filled == dict(type='x', **{name: 7}, kernel_size=3)
    assert config[name] == 'auto'


@pytest.mark.parametrize(
    'arguments',
    [
        dict(bias='auto'),
        dict(channels=3, bias='auto'),
        dict(channels=['auto']),
        dict(channels='auto', sizes=[1, dict(channels='auto')]),
    ],
)
def test_auto_elsewhere(arguments):
    with pytest.raises(ValueError, match="loss_x: loss: 'auto' in .*has no meaning.*in_channels"):
        with_connectors(dict(loss=dict(type='SamplesLoss', **arguments)))


def test_auto_of_what_is_no_map():
    connector = dict(type='ConvModuleConnector', in_channel='auto', out_channel=8)
    with pytest.raises(ValueError, match=r"loss_x: teacher_connector: 'auto'.*\(1, 256, 8\)"):
        distill(
            pair('backbone.stages.0.blocks.1', name='x', teacher_connector=connector),
            student=upernet_swin(),
            teacher=upernet_swin(),
        )


# Data samples


@pytest.mark.parametrize('kind', ['SamplesLoss', 'OptionalSamplesLoss'])
def test_loss_that_asks_for_data_samples_gets_them(kind):
    algorithm = with_connectors(dict(loss=dict(type=kind)), channels=8)
    data = samples()
    algorithm(images(), data, mode='loss')
    (loss,) = algorithm.distiller.distill_losses.values()
    assert len(loss.seen) == 1
    assert loss.seen[0] is data


def test_other_losses_get_none():
    algorithm = with_connectors(dict(loss=dict(type='KeywordsLoss')), channels=8)
    algorithm(images(), samples(), mode='loss')
    (loss,) = algorithm.distiller.distill_losses.values()
    assert loss.seen == [{}]


def _under_mmrazor(kind):
    distiller = feature_distiller(pair(name='x'), loss=dict(type=kind))
    return _single_teacher(None, distiller={'_scope_': 'mmrazor', **distiller})


def test_data_samples_are_missed_under_mmrazors_own_algorithm():
    algorithm = _under_mmrazor('SamplesLoss')
    with pytest.raises(RuntimeError, match='loss_x: SamplesLoss needs.*FrozenTeacherDistill'):
        algorithm(images(), samples(), mode='loss')
    algorithm = _under_mmrazor('OptionalSamplesLoss')
    assert algorithm(images(), samples(), mode='loss')['distill.loss_x'].isfinite()


# Names


@pytest.mark.parametrize(
    ('pairs', 'names'),
    [
        ([pair()], ['loss_cad_decode_head.bottleneck']),
        (
            [pair(loss=dict(type='mmrazor.ChannelWiseDivergence'))],
            ['loss_channelwisedivergence_decode_head.bottleneck'],
        ),
        ([pair(loss=dict(type=LADLoss))], ['loss_lad_decode_head.bottleneck']),
        ([pair(name='loss_head')], ['loss_head']),
        ([pair(name='head')], ['loss_head']),
        ([pair('neck[0]'), pair('neck[1]')], ['loss_cad_neck.0', 'loss_cad_neck.1']),
        (
            [pair('a', 'x'), pair('a', 'y'), pair('b', 'y')],
            ['loss_cad_a_x', 'loss_cad_a_y', 'loss_cad_b'],
        ),
        ([pair('a'), pair('a', loss=dict(type='LADLoss'))], ['loss_cad_a', 'loss_lad_a']),
        ([pair('a', name='first'), pair('a')], ['loss_first', 'loss_cad_a']),
    ],
)
def test_log_names_are_readable_and_unique(pairs, names):
    distiller = make(*pairs)
    assert [p.name for p in distiller.pairs] == names


@pytest.mark.parametrize(
    'pairs',
    [
        [pair('a'), pair('a')],
        [pair('a', name='x'), pair('b', name='x')],
        [pair('a', name='x'), pair('b', name='loss_x')],
        [pair('a', name='x.y'), pair('b', name='x_y')],
    ],
)
def test_equal_log_names_are_refused(pairs):
    with pytest.raises(ValueError, match='several pairs would be logged.*name='):
        make(*pairs)


def test_pairs_share_a_loss_config_and_no_loss():
    loss = dict(type='CADLoss', loss_weight=2.0)
    distiller = make(pair('a'), pair('b'), pair('c', loss=dict(type='NFDLoss')), loss=loss)
    a, b, c = distiller.distill_losses.values()
    assert a is not b
    assert (a.loss_weight, b.loss_weight, type(c).__name__) == (2.0, 2.0, 'NFDLoss')
    assert loss == dict(type='CADLoss', loss_weight=2.0)


def test_log_entries_of_a_run():
    algorithm = distill(pair(), pair('backbone[3]'), pair('auxiliary_head.convs.0', name='aux'))
    losses = algorithm(images(), samples(), mode='loss')
    assert [name for name in losses if name.startswith('distill.')] == [
        'distill.loss_cad_decode_head.bottleneck',
        'distill.loss_cad_backbone.3',
        'distill.loss_aux',
    ]


# Malformed configs


@pytest.mark.parametrize(
    ('pairs', 'error', 'message'),
    [
        (pair(), TypeError, 'pairs must be a list of dicts, got dict'),
        ('neck', TypeError, 'pairs must be a list of dicts, got str'),
        (None, TypeError, 'pairs must be a list of dicts, got NoneType'),
        (['neck'], TypeError, r"pairs\[0\] must be a dict.*got 'neck'"),
        ([pair(), 3], TypeError, r'pairs\[1\] must be a dict.*got 3'),
        ([dict(student='a')], ValueError, r"pairs\[0\].*lacks \['teacher'\]"),
        ([dict(teacher='a')], ValueError, r"pairs\[0\].*lacks \['student'\]"),
        ([pair(conector=None)], ValueError, r"pairs\[0\].*unknown keys \['conector'\]"),
        ([pair(loss=None)], ValueError, r'pairs\[0\] has no loss'),
        ([pair(loss='CADLoss')], ValueError, r"pairs\[0\] has no loss.*'CADLoss'"),
        ([pair(loss=dict(loss_weight=3))], ValueError, r'pairs\[0\] has no loss'),
        ([pair(align='none')], ValueError, r"align of pairs\[0\].*got 'none'"),
        ([pair(align=True)], ValueError, r'align of pairs\[0\].*got True'),
        ([pair(align=[CAD])], ValueError, r'align of pairs\[0\].*got \['),
        ([pair(student_connector='x')], ValueError, r"student_connector of pairs\[0\].*'x'"),
        ([pair(teacher_connector=dict(a=1))], ValueError, r'teacher_connector of pairs\[0\].*a'),
        ([pair('a b')], ValueError, "path of a module.*got 'a b'"),
        ([pair('a', 'b[x]')], ValueError, r"path of a module.*got 'b\[x\]'"),
        ([pair(student=None, teacher='a')], ValueError, 'path of a module.*got None'),
        ([pair(name=3)], (TypeError, ValueError), r'name of pairs\[0\].*got 3'),
        ([], ValueError, 'nothing to distil'),
        ((), ValueError, 'nothing to distil'),
        ([pair(loss=dict(type='CADLos'))], ValueError, "no 'CADLos' .*closest are CADLoss"),
    ],
)
def test_malformed_pairs(pairs, error, message):
    with pytest.raises(error, match=message):
        MODELS.build(dict(type='FeatureDistiller', pairs=pairs, loss=CAD))


def test_loss_is_needed():
    with pytest.raises(ValueError, match='has no loss.*for all pairs'):
        MODELS.build(dict(type='FeatureDistiller', pairs=[pair()]))


@pytest.mark.parametrize(
    ('pairs', 'error', 'message'),
    [
        (pair('decode_head.botleneck', BOTTLENECK), ValueError, "'decode_head.bottleneck'"),
        (pair(BOTTLENECK, 'decode_head.bottle'), ValueError, "'decode_head.bottleneck'"),
        (pair('backbone', 'backbone[0]'), TypeError, r"student: 'backbone' outputs a tuple of 4"),
        (pair('backbone[0]', 'backbone'), TypeError, r"teacher: 'backbone' outputs a tuple of 4"),
        (pair('backbone[4]'), IndexError, r'student: .*0\.\.3, got 4'),
        (pair(f'{BOTTLENECK}[0]', BOTTLENECK), TypeError, r'leave out \[0\]'),
        (pair('decode_head.loss_decode'), RuntimeError, 'student: .*produced no feature'),
        (pair('backbone.layer1.0.relu'), RuntimeError, 'student: .*produced 2 features'),
        (pair(BOTTLENECK, 'backbone.layer1.0.relu'), RuntimeError, 'teacher: .*produced 2 feat'),
    ],
)
def test_wrong_features_stop_at_build_time(pairs, error, message):
    with pytest.raises(error, match=message):
        distill(pairs)


def test_shared_head_of_a_detector_runs_once_per_level(mmdet):
    with pytest.raises(RuntimeError, match="'bbox_head.retina_cls' produced 5 features"):
        distill(pair('bbox_head.retina_cls'), student=retinanet(), teacher=retinanet())


def test_input_that_a_model_cannot_take_is_shown():
    with pytest.raises(RuntimeError, match=r'\(4, 32, 32\).*dry_run_shape'):
        distill(distiller=feature_distiller(dry_run_shape=(4, 32, 32)))


def test_dry_run_shape_is_used():
    algorithm = distill(
        distiller=feature_distiller(dry_run_shape=(4, 32, 32)),
        student=pspnet(backbone=dict(in_channels=4)),
        teacher=pspnet(8, 16, backbone=dict(in_channels=4)),
    )
    losses = algorithm(images(channels=4), samples(), mode='loss')
    assert losses[CAD_BOTTLENECK].isfinite()


# The dry run leaves no trace


def _random_state():
    return torch.random.get_rng_state(), np.random.get_state()[1], random.getstate()


def _assert_same_random_state(a, b):
    assert torch.equal(a[0], b[0])
    assert (a[1] == b[1]).all()
    assert a[2] == b[2]


@pytest.mark.parametrize('path', [BOTTLENECK, 'auxiliary_head.convs.0', 'backbone.layer4.1.bn2'])
def test_dry_run_changes_nothing(path):
    model = build(pspnet()).train()
    model.backbone.layer1.eval()
    model.decode_head.dropout.eval()
    distiller, teacher = make(pair(path)), build(pspnet())
    state = {name: value.clone() for name, value in model.state_dict().items()}
    training = {name: module.training for name, module in model.named_modules()}
    random_state = _random_state()
    distiller.prepare(model, teacher)
    _assert_same_random_state(_random_state(), random_state)
    assert {name: module.training for name, module in model.named_modules()} == training
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class Noisy(torch.nn.Module):
    """A model that draws random numbers in eval mode too."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 1)

    def forward(self, x, data_samples=None, mode='tensor'):
        return self.conv(x + torch.rand_like(x))


def test_dry_run_gives_the_random_state_back():
    model = Noisy()
    state = _random_state()
    dry_run(model, (3, 8, 8), [], 'student')
    _assert_same_random_state(_random_state(), state)


def test_connectors_are_as_new_after_the_build():
    align = dict(type='ConvModuleConnector', in_channel=8, out_channel=16, norm_cfg=dict(type='BN'))
    algorithm = distill(pair(align=align))
    (connector,) = algorithm.distiller.connectors.values()
    norm = connector.conv_module.bn
    assert norm.num_batches_tracked == 0
    assert torch.equal(norm.running_mean, torch.zeros(16))
    assert torch.equal(norm.running_var, torch.ones(16))
    assert connector.training
    assert algorithm(images(), samples(), mode='loss')[CAD_BOTTLENECK].isfinite()


# Training


def test_gradient_reaches_the_student_and_its_connectors_only():
    algorithm = distill(pair(), pair('backbone[3]'), calculate_student_loss=False)
    losses = algorithm(images(), samples(), mode='loss')
    assert set(losses) == {CAD_BOTTLENECK, 'distill.loss_cad_backbone.3'}
    total(losses).backward()
    for name, parameter in algorithm.student.named_parameters():
        reached = name.startswith('backbone') or 'psp_modules' in name or 'bottleneck' in name
        assert (parameter.grad is not None) == reached, name
    assert algorithm.student.backbone.stem[0].weight.grad.abs().sum() > 0
    assert all(p.grad is not None for p in algorithm.distiller.connectors.parameters())
    assert all(p.grad is None for p in algorithm.teacher.parameters())


def test_nothing_is_kept_after_an_iteration():
    algorithm = distill(pair(), pair('backbone.layer4.1.bn2'))
    algorithm(images(), samples(), mode='loss')
    hooks = [h for m in algorithm.modules() for h in m._forward_hooks.values()]
    hooks += [h for m in algorithm.teacher.modules() for h in m._forward_hooks.values()]
    assert not hooks
    comparison = algorithm.distiller.last_comparison
    assert not any(loss.requires_grad for loss in comparison.losses.values())
    assert not any(x.requires_grad for pair in comparison.pairs.values() for x in pair)
    algorithm.eval()
    assert algorithm.distiller.last_comparison is None


def test_feature_that_only_training_overwrites_is_an_error():
    student = pspnet()
    student['decode_head']['dropout_ratio'] = 0.5
    student = build(student)
    student.decode_head.dropout.inplace = True
    algorithm = distill(pair(), student=student, module_inplace=True)
    student.decode_head.dropout.inplace = True
    # the bottleneck's own ReLU output is what the dropout overwrites, in training only
    with pytest.raises(RuntimeError, match='student: .*overwritten in place'):
        algorithm(images(), samples(), mode='loss')


@pytest.mark.parametrize('teacher_width', [4, 8])
@pytest.mark.parametrize(
    'path',
    ['backbone.layer4.1.bn2', 'backbone.layer3.0.bn1', 'decode_head.bottleneck.bn', BOTTLENECK],
)
@pytest.mark.parametrize('kind', ['FrozenTeacherDistill', 'SingleTeacherDistill'])
def test_features_are_those_before_overwriting(path, teacher_width, kind):
    if kind == 'FrozenTeacherDistill':
        algorithm = distill(pair(path), teacher=pspnet(teacher_width, 8))
    else:
        algorithm = _single_teacher(path, teacher_width)
    losses, student, teacher = losses_and_features(algorithm, path, path)
    for connector in algorithm.distiller.connectors.values():
        student = connector(student)
    expected = CADLoss()(student, teacher)
    torch.testing.assert_close(losses[f'distill.loss_cad_{path}'], expected)
    total(losses).backward()


def _single_teacher(path, teacher_width=8, distiller=None):
    torch.manual_seed(0)
    return build(
        dict(
            type='mmrazor.SingleTeacherDistill',
            architecture=pspnet(),
            teacher=pspnet(teacher_width, 8),
            distiller=distiller or {'_scope_': 'mmrazor', **feature_distiller(pair(path))},
        )
    )


@pytest.mark.parametrize('path', ['auxiliary_head.convs.0', 'auxiliary_head.convs.0.conv'])
def test_features_of_the_auxiliary_head(path):
    algorithm = distill(pair(path), pair())
    for _ in range(2):
        losses, student, teacher = losses_and_features_last(algorithm, path)
        (connector, _) = algorithm.distiller.connectors.values()
        expected = CADLoss()(connector(student), teacher)
        torch.testing.assert_close(losses[f'distill.loss_cad_{path}'], expected)


def losses_and_features_last(algorithm, path):
    """As losses_and_features, where the module may run more than once."""
    with Watch(algorithm.student, path) as s, Watch(algorithm.teacher, path) as t:
        losses = algorithm(images(), samples(), mode='loss')
    return losses, s.outputs[path][-1], t.outputs[path][-1]


def test_feature_within_a_checkpointed_block_reaches_the_student():
    # With activation checkpointing a block may run without gradient, and its features with it.
    algorithm = distill(
        pair('backbone.layer3.1.conv1'),
        student=pspnet(backbone=dict(with_cp=True)),
        calculate_student_loss=False,
    )
    try:
        total(algorithm(images(), samples(), mode='loss')).backward()
    except RuntimeError as error:
        assert 'layer3.1.conv1' in str(error)  # refusing it clearly would do as well
    else:
        gradient = algorithm.student.backbone.layer3[1].conv1.weight.grad
        assert gradient is not None
        assert gradient.abs().sum() > 0


# Beside MMRazor's own arguments

LOGITS = dict(logits=dict(type='ModuleOutputs', source='decode_head.conv_seg'))
CWD_ON_LOGITS = dict(
    student_recorders=LOGITS,
    teacher_recorders=LOGITS,
    connectors=dict(same=dict(type='ConvModuleConnector', in_channel=5, out_channel=5)),
    distill_losses=dict(loss_cwd=dict(type='ChannelWiseDivergence', tau=1, loss_weight=5)),
    loss_forward_mappings=dict(
        loss_cwd=dict(
            preds_S=dict(from_student=True, recorder='logits', connector='same'),
            preds_T=dict(from_student=False, recorder='logits'),
        )
    ),
)


def _cwd_value(distiller):
    algorithm = distill(distiller=distiller)
    torch.nn.init.dirac_(algorithm.distiller.connectors['same'].conv_module.conv.weight)
    torch.manual_seed(1)  # of the dropout before the classifier
    return algorithm(images(), samples(), mode='loss')


def test_mmrazors_arguments_work_beside_pairs():
    expected = _cwd_value(dict(type='ConfigurableDistiller', **CWD_ON_LOGITS))
    both = _cwd_value(feature_distiller(pair(), pair('backbone[3]'), **CWD_ON_LOGITS))
    without_pairs = _cwd_value(dict(type='FeatureDistiller', **CWD_ON_LOGITS))
    for losses in (both, without_pairs):
        torch.testing.assert_close(losses['distill.loss_cwd'], expected['distill.loss_cwd'])
    assert {CAD_BOTTLENECK, 'distill.loss_cad_backbone.3'} < set(both)
    assert set(without_pairs) == set(expected)


def test_pair_does_not_replace_another_loss():
    # The pair would take the place of the loss in distill_losses of the same name.
    with pytest.raises(ValueError, match='loss_cwd'):
        distill(distiller=feature_distiller(pair(name='loss_cwd'), **CWD_ON_LOGITS))


def test_pair_does_not_replace_another_connector():
    arguments = {**CWD_ON_LOGITS, 'connectors': {}, 'loss_forward_mappings': {}}
    arguments['connectors'] = {
        'loss_same': dict(type='ConvModuleConnector', in_channel=5, out_channel=5)
    }
    with pytest.raises(ValueError, match='loss_same'):
        distill(distiller=feature_distiller(pair(name='loss_same'), **arguments))


def test_connector_of_a_pair_does_not_replace_another_module():
    arguments = {**CWD_ON_LOGITS, 'loss_forward_mappings': {}}
    arguments['connectors'] = {'loss_x_student': CWD_ON_LOGITS['connectors']['same']}
    with pytest.raises(ValueError, match="'loss_x_student', which another pair"):
        make(pair(name='x', student_connector=CONTEXT), **arguments)
    make(pair(name='x'), **arguments)
    with pytest.raises(ValueError, match="'loss_x_student', which another pair"):
        make(pair(name='x', student_connector=CONTEXT), pair('a', name='x_student'))
    make(pair(name='x'), pair('a', name='x_student'))


def test_feature_recorder_can_be_used_in_a_plain_distiller():
    recorders = dict(x=dict(type='Feature', source=BOTTLENECK))
    mapping = dict(
        preds_S=dict(from_student=True, recorder='x'),
        preds_T=dict(from_student=False, recorder='x'),
    )
    plain = dict(
        type='ConfigurableDistiller',
        student_recorders=recorders,
        teacher_recorders=recorders,
        distill_losses=dict(loss_cad=CAD),
        loss_forward_mappings=dict(loss_cad=mapping),
    )
    losses, student, teacher = losses_and_features(
        distill(distiller=plain, teacher=pspnet(8, 8)), BOTTLENECK, BOTTLENECK
    )
    torch.testing.assert_close(losses['distill.loss_cad'], CADLoss()(student, teacher))


@pytest.mark.parametrize(
    ('loss', 'reference'),
    [
        (
            dict(type='L2Loss', normalize=False),
            lambda s, t: mmrazor_losses.L2Loss(normalize=False)(s, t),
        ),
        (dict(type='L1Loss', loss_weight=2), lambda s, t: 2 * F.l1_loss(s, t)),
        (dict(type='KLDivergence', tau=2), lambda s, t: mmrazor_losses.KLDivergence(2)(s, t)),
        (
            dict(type='mmrazor.ChannelWiseDivergence', tau=4),
            lambda s, t: mmrazor_losses.ChannelWiseDivergence(4)(s, t),
        ),
        (dict(type='ATLoss', loss_weight=1), lambda s, t: mmrazor_losses.ATLoss(1)(s, t)),
        (dict(type='PKDLoss'), lambda s, t: mmrazor_losses.PKDLoss()(s, t)),
    ],
)
def test_mmrazors_losses_work_in_pairs(loss, reference):
    algorithm = distill(pair(loss=loss, name='x'), teacher=pspnet(8, 8))
    losses, student, teacher = losses_and_features(algorithm, BOTTLENECK, BOTTLENECK)
    torch.testing.assert_close(losses['distill.loss_x'], reference(student, teacher))


def test_pair_under_mmrazors_own_algorithm():
    algorithm = _single_teacher(BOTTLENECK)
    assert isinstance(algorithm.distiller, FeatureDistiller)
    algorithm.train()
    losses, student, teacher = losses_and_features(algorithm, BOTTLENECK, BOTTLENECK)
    torch.testing.assert_close(losses[CAD_BOTTLENECK], CADLoss()(student, teacher))


def test_losses_drop_into_a_config_of_mmrazor():
    losses = {
        kind: _single_teacher(
            None,
            distiller=dict(
                _scope_='mmrazor',
                type='ConfigurableDistiller',
                student_recorders=LOGITS,
                teacher_recorders=LOGITS,
                distill_losses=dict(loss_kd=dict(type=kind)),
                loss_forward_mappings=dict(
                    loss_kd=dict(
                        preds_S=dict(from_student=True, recorder='logits'),
                        preds_T=dict(from_student=False, recorder='logits'),
                    )
                ),
            ),
        )(images(), samples(), mode='loss')['distill.loss_kd']
        for kind in ('ChannelWiseDivergence', 'LADLoss', 'CADLoss', 'PADLoss', 'NaiveFeatureLoss')
    }
    assert all(value.isfinite() and value.requires_grad for value in losses.values())
    assert len({round(float(value), 6) for value in losses.values()}) == len(losses)


def test_docstring_example_is_the_documented_name():
    names = re.findall(r"'(loss_\w[\w.]*)'|``(loss_\w[\w.]*)``", FeatureDistiller.__doc__)
    assert 'loss_cad_decode_head.bottleneck' in {a or b for a, b in names}
