"""What the processes of a training tell each other after an iteration, in one reduction."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from mmengine.dist import all_reduce, get_world_size, is_distributed
from torch import Tensor

__all__ = ['Exchanged', 'ProcessExchange']


class Exchanged(NamedTuple):
    """What is known after an iteration.

    Attributes:
        averages (dict[str, Tensor]): What the model's train_step gave, as float32 averages over the
            processes, by name; of a single process its own values.
        is_finite (bool): Whether the losses of all processes are finite.
        is_own_finite (bool): Whether those of this process are.
        is_told_to_stop (bool): Whether any process was told to stop.
    """

    averages: dict[str, Tensor]
    is_finite: bool
    is_own_finite: bool
    is_told_to_stop: bool


class ProcessExchange:
    """Reduces once an iteration what several hooks want to know of all processes.

    The hooks of an iteration ask the same object. The first that asks makes the reduction; all
    processes have to ask in the same iterations.

    Args:
        is_told_to_stop (Callable, optional): Whether this process was told to stop. Defaults to never.
    """

    def __init__(self, is_told_to_stop: Callable[[], bool] = lambda: False) -> None:
        self._is_told_to_stop = is_told_to_stop
        self._iteration: int | None = None
        self._exchanged: Exchanged | None = None

    def after(self, iteration: int, outputs: dict | None) -> Exchanged:
        """Give what is known after an iteration.

        Args:
            iteration (int): Its number.
            outputs (dict, optional): What the model's train_step gave in this process: tensors by
                name, the same names and shapes in every process. Those with 'loss' in their name
                are looked at. They are not changed.

        Returns:
            Exchanged: That of the first call for this iteration.
        """
        if iteration != self._iteration:
            self._exchanged = _exchange(outputs or {}, self._is_told_to_stop())
            self._iteration = iteration
        return self._exchanged


def _exchange(outputs: dict, is_told_to_stop: bool) -> Exchanged:
    # the same order in every process
    names = sorted(name for name, value in outputs.items() if isinstance(value, Tensor))
    values = [outputs[name].detach().float() for name in names]
    losses = [
        value.mean() if value.dim() else value
        for name, value in zip(names, values)
        if 'loss' in name
    ]
    is_finite = torch.stack(losses).isfinite().all() if losses else torch.tensor(True)
    if not is_distributed():
        found = bool(is_finite)
        return Exchanged(dict(zip(names, values)), found, found, is_told_to_stop)
    flags = torch.stack([~is_finite, torch.tensor(is_told_to_stop, device=is_finite.device)])
    # A flag adds up to the number of processes that have it.
    total = torch.cat([*(value.flatten() for value in values), flags.float()])
    all_reduce(total, op='sum')
    *sums, counts = total.split([*(value.numel() for value in values), len(flags)])
    averages = [each.reshape(value.shape) / get_world_size() for each, value in zip(sums, values)]
    bad, told, own_bad = torch.cat([counts, flags[:1].float()]).tolist()  # waits for a GPU once
    return Exchanged(dict(zip(names, averages)), not bad, not own_bad, bool(told))
