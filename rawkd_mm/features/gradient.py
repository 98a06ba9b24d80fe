"""Which parameters of a model learn from its features."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from .dry_run import run_to_last_feature
from .mmrazor_adapter import RazorSide
from .probe import without_traces
from .recorder import FeatureCapture

__all__ = ['learning_parameters']


def learning_parameters(
    model: nn.Module, shape: Sequence[int], capture: FeatureCapture, razor: RazorSide
) -> set[str] | None:
    """Find the parameters that features depend on, by a backward from all of them.

    A forward cannot tell: a neck runs to its end, and the convolutions of the levels that nobody
    compares get no gradient. DDP waits for the gradient of every parameter.

    Args:
        model (nn.Module): A model of MMEngine's interface, without gradients; stays as it is.
        shape (Sequence[int]): Channels, height and width of the image.
        capture (FeatureCapture): The features.
        razor (RazorSide): MMRazor's recorders of the model, which record modules.

    Returns:
        set[str] | None: Names of parameters. None if a recorder has recorded nothing: its module
        runs only where losses are computed.
    """
    inputs = next(model.parameters()).new_zeros((1, *shape))
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    try:
        for p in model.parameters():
            p.requires_grad_(p.is_floating_point())
        with without_traces(model), torch.enable_grad():
            with razor.record(model):
                found = run_to_last_feature(model, inputs, None, capture, razor, 'student')
                if not razor.is_complete:
                    return None
                records = [r.data_buffer for r in razor.recorders]
            leaves = tree_flatten([list(found.values()), records])[0]
            ends = [x for x in leaves if isinstance(x, Tensor) and x.requires_grad]
            if ends:
                torch.autograd.backward([x.float().sum() for x in ends])
        reached = {name for name, p in model.named_parameters() if p.grad is not None}
    finally:
        razor.clear()
        for name, p in model.named_parameters():
            p.grad = None
            p.requires_grad_(before[name])
    return reached | razor.parameters
