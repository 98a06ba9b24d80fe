"""The global context block of FGD, against its formula written as loops in float64."""

import math

import numpy as np
import pytest
import torch
from mmengine.model import Sequential

from rawkd_mm.connectors import GlobalContextConnector
from rawkd_mm.registry import MODELS


def randomized(channels, seed=0, dtype=torch.float64):
    """A block whose parameters are no initial values any more."""
    block = GlobalContextConnector(channels).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    for parameter in block.parameters():
        values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data.copy_(values)
    return block


def reference(block, feature):
    """R(F) of features of shape (B, C, H, W)."""
    key, first, norm, _, last = (block.key, *block.transform)
    w_k, b_k = key.weight.detach().double().numpy().ravel(), key.bias.item()
    matrix = {
        name: (m.weight.detach().double().numpy()[:, :, 0, 0], m.bias.detach().double().numpy())
        for name, m in (('first', first), ('last', last))
    }
    scale, shift = (p.detach().double().numpy().ravel() for p in (norm.weight, norm.bias))
    result = []
    for image in feature.detach().double().numpy():
        positions = [image[:, i, j] for i in range(image.shape[1]) for j in range(image.shape[2])]
        exponentials = [math.exp(w_k @ x + b_k) for x in positions]
        pooled = sum(e * x for e, x in zip(exponentials, positions)) / sum(exponentials)
        hidden = matrix['first'][0] @ pooled + matrix['first'][1]
        hidden = (hidden - hidden.mean()) / np.sqrt(hidden.var() + 1e-5) * scale + shift
        added = matrix['last'][0] @ np.maximum(hidden, 0) + matrix['last'][1]
        result.append(image + added[:, None, None])
    return np.stack(result)


@pytest.mark.parametrize('shape', [(2, 6, 3, 4), (1, 2, 1, 1), (3, 5, 4, 1)])
def test_value(shape):
    block = randomized(shape[1])
    feature = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    same, context = block(feature)
    assert same is feature
    np.testing.assert_allclose(context.detach().numpy(), reference(block, feature), rtol=1e-10)
    assert (context - feature).abs().min() > 0


def test_gradient():
    block = randomized(4)
    feature = torch.randn(2, 4, 2, 3, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in block.named_parameters()]

    def context(feature, *parameters):
        return torch.func.functional_call(block, dict(zip(names, parameters)), (feature,))[1]

    assert torch.autograd.gradcheck(context, (feature, *block.parameters()))


def test_first_values():
    torch.manual_seed(0)
    block = MODELS.build(dict(type='GlobalContextConnector', in_channels=512))
    feature = torch.randn(2, 512, 3, 3)
    assert torch.equal(block(feature)[1], feature)
    assert all(not p.any() for p in block.transform[-1].parameters())
    assert block.transform[0].weight.shape[:2] == (256, 512)
    # Kaiming, fan in 512, for ReLU
    assert block.key.weight.std().item() == pytest.approx(math.sqrt(2 / 512), rel=0.15)
    assert not block.key.bias.any()


def test_first_values_survive_the_initialisation_of_a_model():
    block = GlobalContextConnector(8)
    before = {name: value.clone() for name, value in block.state_dict().items()}
    model = Sequential(block)
    model.init_weights()
    assert block.is_init
    assert all(torch.equal(before[name], value) for name, value in block.state_dict().items())


def test_init_cfg_is_followed():
    block = GlobalContextConnector(8, init_cfg=dict(type='Constant', layer='Conv2d', val=0.5))
    block.init_weights()
    assert (block.transform[-1].weight == 0.5).all()


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_float32_under_autocast(dtype):
    block = randomized(6, dtype=torch.float32)
    feature = torch.randn(2, 6, 3, 4, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected = block(feature.float())[1]
    with torch.autocast('cpu', torch.bfloat16):
        same, context = block(feature)
    assert same is feature
    assert context.dtype == torch.float32
    assert torch.equal(context, expected)


@pytest.mark.parametrize('channels', [1, 0, -3])
def test_too_few_channels(channels):
    with pytest.raises(ValueError, match=f'at least 2, got {channels}'):
        GlobalContextConnector(channels)
