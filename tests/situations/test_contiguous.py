"""Losses and connectors get contiguous maps of both models, whatever made them.

A head on a transformer gives maps that are channels last, and MMRazor's losses call ``view``
(open-mmlab/mmrazor#367).
"""

import pytest
import torch
from helpers import distill, feature_distiller, images, pair, pspnet, samples, total
from torch import nn

from rawkd_mm.features.mmrazor_adapter import for_module
from rawkd_mm.registry import MODELS

LOGITS = 'decode_head.conv_seg'
CWD = dict(type='ChannelWiseDivergence', tau=1.0, loss_weight=5.0)


def segformer(classes=5):
    """A small SegFormer: the output of its classifier is channels last."""
    return dict(
        type='EncoderDecoder',
        data_preprocessor=pspnet()['data_preprocessor'],
        backbone=dict(
            type='MixVisionTransformer',
            embed_dims=8,
            num_stages=4,
            num_layers=[1, 1, 1, 1],
            num_heads=[1, 1, 2, 2],
            out_indices=(0, 1, 2, 3),
        ),
        decode_head=dict(
            type='SegformerHead',
            in_channels=[8, 8, 16, 16],
            in_index=[0, 1, 2, 3],
            channels=256,  # the published width: of narrow maps the layout is another
            num_classes=classes,
            norm_cfg=dict(type='BN'),
            align_corners=False,
        ),
        test_cfg=pspnet()['test_cfg'],
    )


@MODELS.register_module(force=True)
class LayoutSpy(nn.Module):
    """A loss of nobody's, that wants contiguous maps and remembers what it was given."""

    def __init__(self):
        super().__init__()
        self.given = []

    def forward(self, preds_S, preds_T):  # noqa: N803
        self.given.append((preds_S, preds_T))
        return (preds_S.view(-1) - preds_T.view(-1)).square().mean()


@MODELS.register_module(force=True)
class OwnSpy(LayoutSpy):
    """The same, of a loss that takes any layout."""

    any_layout = True

    def forward(self, preds_S, preds_T):  # noqa: N803
        self.given.append((preds_S, preds_T))
        return (preds_S - preds_T).square().mean()


@MODELS.register_module(force=True)
class SpyConnector(nn.Module):
    """A connector that wants a contiguous map and gives a channels last one."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, feature):
        shape = feature.shape
        result = (self.scale * feature.view(-1)).view(shape)
        return result.contiguous(memory_format=torch.channels_last)


def channels_last(model):
    """A student or teacher that computes channels last from its first layer on."""
    model.to(memory_format=torch.channels_last)
    model.backbone.register_forward_pre_hook(
        lambda module, args: (args[0].contiguous(memory_format=torch.channels_last),)
    )


def spied(algorithm, key='loss_x'):
    losses = algorithm(images(), samples(), mode='loss')
    total(losses).backward()
    gradient = algorithm.student.backbone.stem[0].weight.grad
    assert gradient.isfinite().all() and gradient.abs().max() > 0
    ((student, teacher),) = algorithm.distiller.distill_losses[key].given
    return student, teacher


def is_channels_last(feature):
    return not feature.is_contiguous() and feature.is_contiguous(memory_format=torch.channels_last)


def test_cwd_from_a_segformer():
    """The reported pair, and what it should give: MMRazor's loss of contiguous copies."""
    algorithm = distill(
        distiller=feature_distiller(pair(LOGITS, name='x'), loss=CWD), teacher=segformer()
    )
    recorded = []
    algorithm.teacher.decode_head.conv_seg.register_forward_hook(
        lambda module, inputs, output: recorded.append(output), prepend=True
    )
    losses = algorithm(images(size=64), samples(size=64), mode='loss')
    assert not recorded[0].is_contiguous(), 'else this shows nothing'
    total(losses).backward()
    ((_, student, teacher),) = algorithm.distiller.last_comparison.pairs.values()
    expected = algorithm.distiller.distill_losses['loss_x'](
        student.contiguous(), teacher.contiguous()
    )
    assert losses['distill.loss_x'].item() == pytest.approx(expected.item(), rel=1e-6)


def test_cwd_from_a_segformer_by_mmrazors_own_arguments():
    """MMRazor's recorders and mappings, with its distiller and within ours."""
    recorders = dict(logits=dict(type='ModuleOutputs', source=LOGITS))
    arguments = dict(
        student_recorders=recorders,
        teacher_recorders=recorders,
        distill_losses=dict(loss_cwd=CWD),
        loss_forward_mappings=dict(
            loss_cwd=dict(
                preds_S=dict(from_student=True, recorder='logits'),
                preds_T=dict(from_student=False, recorder='logits'),
            )
        ),
    )
    values = []
    for kind in ('ConfigurableDistiller', 'FeatureDistiller'):
        student = segformer()  # mappings compare maps of one size
        student['decode_head']['dropout_ratio'] = 0.0
        algorithm = distill(
            distiller=dict(type=kind, **arguments), student=student, teacher=segformer()
        )
        losses = algorithm(images(), samples(), mode='loss')
        total(losses).backward()
        values.append(losses['distill.loss_cwd'].item())
    assert values[0] == values[1] > 0


@pytest.mark.parametrize('who', ['student', 'teacher', 'both', 'setting'])
def test_loss_gets_contiguous_maps(who):
    """Whichever of the two computes channels last, or both, or the teacher by its own setting."""
    options = dict(teacher_channels_last=True) if who == 'setting' else {}
    distiller = feature_distiller(pair(LOGITS, name='x'), loss=dict(type='LayoutSpy'))
    algorithm = distill(distiller=distiller, **options)
    for role in ('student', 'teacher'):
        if who in (role, 'both'):
            channels_last(getattr(algorithm, role))
    student, teacher = spied(algorithm)
    assert student.is_contiguous() and teacher.is_contiguous()


@pytest.mark.parametrize('who', ['student', 'teacher'])
def test_connectors_get_and_give_contiguous_maps(who):
    """A connector is given a contiguous map, and the loss too, whatever the connector gives."""
    connector = dict(type='SpyConnector')
    distiller = feature_distiller(
        pair(LOGITS, name='x', align=connector),
        loss=dict(type='LayoutSpy'),
        student_connector=connector,
        teacher_connector=connector,
    )
    algorithm = distill(distiller=distiller)
    channels_last(getattr(algorithm, who))
    student, teacher = spied(algorithm)
    assert student.is_contiguous() and teacher.is_contiguous()


def test_connectors_of_mappings_get_contiguous_maps():
    """The same by MMRazor's own arguments."""
    recorders = dict(logits=dict(type='ModuleOutputs', source=LOGITS))
    distiller = dict(
        type='ConfigurableDistiller',
        student_recorders=recorders,
        teacher_recorders=recorders,
        connectors=dict(spy=dict(type='SpyConnector')),
        distill_losses=dict(loss_x=dict(type='LayoutSpy')),
        loss_forward_mappings=dict(
            loss_x=dict(
                preds_S=dict(from_student=True, recorder='logits', connector='spy'),
                preds_T=dict(from_student=False, recorder='logits'),
            )
        ),
    )
    algorithm = distill(distiller=distiller)
    channels_last(algorithm.student)
    channels_last(algorithm.teacher)
    student, teacher = spied(algorithm)
    assert student.is_contiguous() and teacher.is_contiguous()


def test_our_own_losses_get_what_there_is():
    """They take any layout; a copy of both maps would cost more than it saves."""
    distiller = feature_distiller(pair(LOGITS, name='x'), loss=dict(type='OwnSpy'))
    algorithm = distill(distiller=distiller)
    channels_last(algorithm.student)
    channels_last(algorithm.teacher)
    assert all(map(is_channels_last, spied(algorithm)))


@pytest.mark.parametrize(
    'name', ['LADLoss', 'CADLoss', 'PADLoss', 'NaiveFeatureLoss', 'MagnitudeLoss', 'NFDLoss']
)
def test_our_own_losses_take_any_layout(name):
    """Value and gradient are those of contiguous maps."""
    loss = MODELS.build(dict(type=name))
    assert loss.any_layout
    student, teacher = images(2, 6, seed=1, channels=4), images(2, 6, seed=2, channels=4)
    values, gradients = [], []
    for convert in (
        torch.clone,
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        lambda x: torch.stack([x, x], -1)[..., 0],
    ):
        given = convert(student).requires_grad_()
        value = loss(given, convert(teacher))
        value.backward()
        values.append(value.item())
        gradients.append(given.grad)
    assert values == pytest.approx([values[0]] * len(values), rel=1e-5)
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-4, atol=1e-8)


def test_contiguous_maps_are_not_copied():
    feature, flat = images(), images(1).transpose(2, 3)
    module = nn.Identity()
    same, (copied, number) = for_module(module, feature), for_module(module, (flat, 3))
    assert same is feature
    assert copied.is_contiguous() and torch.equal(copied, flat) and number == 3
    module.any_layout = True
    assert for_module(module, flat) is flat
