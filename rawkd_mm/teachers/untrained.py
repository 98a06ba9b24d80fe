"""Telling weights that were never trained: by their values, and by what they compute."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ['initial_vectors', 'shuffled_weights']

_STATISTICS = ('running_mean', 'running_var')


def initial_vectors(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Find out whether the norms and biases of a model are as they were initialised.

    Every initialisation gives all channels of a norm the same weight, the same bias and the same
    running statistics, and every step of a training makes them differ. Biases of other layers begin
    with one value, or with PyTorch's uniform numbers between +-1/sqrt(inputs).

    Args:
        model (nn.Module): The model.
        names (Iterable[str]): The parameters and buffers that count, by their names in
            ``model.state_dict()``.

    Returns:
        list[str]: The vectors that tell it, if the weights are those of an initialisation. With norms
        these are all of their vectors, each with one single value; the biases of other layers have
        one value, too, or lie within PyTorch's initial range as their layers' weights do. Without
        norms they are all biases, each with one value. Empty if anything was trained, and if there
        is no vector to tell it by.
    """
    state = dict(model.named_parameters(remove_duplicate=False))
    state.update((n, b) for n, b in model.named_buffers() if n.rpartition('.')[2] in _STATISTICS)
    norms, biases = [], {}
    for name in names:
        value = state.get(name)
        if value is None or value.dim() != 1 or len(value) < 2:
            continue
        weight = state.get(f'{name.rpartition(".")[0]}.weight')
        if weight is not None and weight.dim() > 1:
            biases[name] = weight
        else:
            norms.append(name)
    if not all(_is_constant(state[name]) for name in norms):
        return []
    constant = [name for name in biases if _is_constant(state[name])]
    if not norms:
        # biases within PyTorch's range tell nothing then: a training may leave them so small
        return constant if len(constant) == len(biases) else []
    others = {name: weight for name, weight in biases.items() if name not in constant}
    return norms if all(_is_uniform(w, state[n]) for n, w in others.items()) else []


def _is_constant(vector: Tensor) -> bool:
    return bool((vector == vector[0]).all())


def _is_uniform(weight: Tensor, bias: Tensor) -> bool:
    """Whether a layer could be as PyTorch's Linear and Conv layers begin."""
    bound = 1 / math.sqrt(weight[0].numel()) * (1 + 1e-3)
    return bool(bias.abs().max() <= bound) and bool(weight.abs().max() <= bound)


@contextmanager
@torch.no_grad()
def shuffled_weights(model: nn.Module, seed: int) -> Iterator[None]:
    """Put the values within each parameter into random order for a block.

    A network whose weights were drawn at random, each parameter from one distribution, is as likely as
    any of its shuffled copies, whatever the distribution. So nothing that is computed tells it from
    them but by chance. A training gives the order of the values a meaning.

    Args:
        model (nn.Module): Gets its own values back at the end, bit by bit.
        seed (int): Of the order. PyTorch's own random numbers are not drawn.
    """
    parameters = list(model.parameters())
    kept = [parameter.detach().clone() for parameter in parameters]
    generators: dict[torch.device, torch.Generator] = {}
    try:
        for parameter in parameters:
            device = parameter.device
            if device not in generators:
                generators[device] = torch.Generator(device).manual_seed(seed)
            order = torch.randperm(parameter.numel(), generator=generators[device], device=device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
        yield
    finally:
        for parameter, value in zip(parameters, kept):
            parameter.copy_(value)
