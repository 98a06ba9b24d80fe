"""A forward that leaves the running statistics of norms as they are."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ['kept_statistics']

_NAMES = ('running_mean', 'running_var', 'num_batches_tracked')


@contextmanager
def kept_statistics(model: nn.Module) -> Iterator[None]:
    """Let the norms of a model update copies of their running statistics.

    Each still normalises with its batch. The statistics themselves are not written to: the backward
    of a forward before this one may need them.

    Args:
        model (nn.Module): What runs in the context.
    """
    kept = [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if name in _NAMES and buffer is not None
    ]
    try:
        for module, name, buffer in kept:
            module._buffers[name] = buffer.clone()
        yield
    finally:
        for module, name, buffer in kept:
            module._buffers[name] = buffer
