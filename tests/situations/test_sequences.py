"""Losses on tokens (B, N, C): those that tell channels from positions ask which they are.

CAD on a Swin block or a ViT would take each token for a channel, without a word.
"""

import pytest
import torch
from helpers import distill, feature_distiller, images, pair, samples, total, upernet_swin

from rawkd_mm.functional import angular_distance, normalized_distance
from rawkd_mm.registry import MODELS

TOKENS = 'backbone.stages.0.blocks.1'
CHANNEL = ('CADLoss', 'PADLoss', 'NFDLoss')
ANY = ('LADLoss', 'NaiveFeatureLoss', 'MagnitudeLoss')


def maps(height=4, width=5, channels=6):
    generator = torch.Generator().manual_seed(0)
    shape = (2, channels, height, width)
    return [torch.randn(shape, generator=generator) for _ in range(2)]


def tokens(feature):
    """(B, C, H, W) -> (B, H * W, C), as a transformer has it."""
    return feature.flatten(2).transpose(1, 2).contiguous()


def build(name, **kwargs):
    return MODELS.build(dict(type=name, **kwargs))


@pytest.mark.parametrize('name', CHANNEL)
def test_three_dimensions_are_refused_without_a_layout(name):
    student, teacher = map(tokens, maps())
    with pytest.raises(ValueError) as error:
        build(name)(student, teacher)
    message = str(error.value)
    assert message.startswith(f'{name}: a feature of shape (2, 20, 6) may be tokens (B, N, C) or')
    assert "layout='BNC' or layout='BCN'" in message and 'LADLoss' in message


@pytest.mark.parametrize('compiled', [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize('name', CHANNEL)
def test_tokens_are_what_their_map_is(name, compiled):
    """The right value: that of the map (B, C, H, W), and its gradient."""
    student, teacher = maps()
    given = tokens(student).requires_grad_()
    value = build(name, layout='BNC', compile=compiled)(given, tokens(teacher))
    value.backward()
    student.requires_grad_()
    expected = build(name)(student, teacher)
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(given.grad, tokens(student.grad), rtol=1e-4, atol=1e-7)
    wrong = build(name, layout='BCN')(given.detach(), tokens(teacher))
    assert wrong.item() != pytest.approx(expected.item(), rel=1e-2), 'else it would not matter'


@pytest.mark.parametrize('name', CHANNEL)
def test_flattened_maps(name):
    student, teacher = maps()
    value = build(name, layout='BCN')(student.flatten(2), teacher.flatten(2))
    assert value.item() == pytest.approx(build(name)(student, teacher).item(), rel=1e-5)


@pytest.mark.parametrize('name', ANY)
def test_what_does_not_depend_on_the_layout_passes(name):
    student, teacher = maps()
    loss = build(name)
    expected = loss(student, teacher).item()
    assert loss(tokens(student), tokens(teacher)).item() == pytest.approx(expected, rel=1e-5)
    assert loss(student.flatten(2), teacher.flatten(2)).item() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(TypeError):
        build(name, layout='BNC')


@pytest.mark.parametrize('name', CHANNEL)
@pytest.mark.parametrize('layout', [None, 'BNC', 'BCN'])
def test_maps_are_what_they_were(name, layout):
    """(B, C, H, W) does not ask, and the layout of sequences does not touch it: the same bits."""
    student, teacher = maps()
    function = dict(
        CADLoss=lambda s, t: 3.0 * angular_distance(s, t, 'channel'),
        PADLoss=lambda s, t: 3.0 * angular_distance(s, t, 'pixel'),
        NFDLoss=normalized_distance,
    )[name]
    assert torch.equal(build(name, layout=layout)(student, teacher), function(student, teacher))


@pytest.mark.parametrize('name', ['CADLoss', 'PADLoss'])
def test_vectors_are_what_they_were(name):
    student, teacher = (x.mean((2, 3)) for x in maps())
    assert build(name)(student, teacher).isfinite()


@pytest.mark.parametrize('layout', ['NBC', 'bnc', '', 3])
def test_unknown_layout(layout):
    with pytest.raises(ValueError, match=r"layout must be one of \('BNC', 'BCN'\) or None, got"):
        build('CADLoss', layout=layout)


def test_refused_when_the_distillation_is_built():
    """Not in the first iteration."""
    swin = upernet_swin()
    with pytest.raises(ValueError, match=r'loss_cad_.*: CADLoss: a feature of shape \(1, 256, 8\)'):
        distill(pair(TOKENS), student=swin, teacher=swin)


@pytest.mark.parametrize('loss', [dict(type='CADLoss', layout='BNC'), dict(type='LADLoss')])
def test_tokens_are_distilled(loss):
    """A Swin block of both models, in a distillation that says the layout or need not."""
    swin = upernet_swin()
    algorithm = distill(
        distiller=feature_distiller(pair(TOKENS, name='x'), loss=loss), student=swin, teacher=swin
    )
    losses = algorithm(images(), samples(), mode='loss')
    assert 0 < losses['distill.loss_x'].item() < 6
    total(losses).backward()
    assert algorithm.student.backbone.patch_embed.projection.weight.grad.abs().max() > 0
