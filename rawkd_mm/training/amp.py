"""Mixed precision on whatever device there is."""

from contextlib import contextmanager

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from mmengine.runner.amp import autocast
from torch import nn

from ..registry import type_name
from .errors import UsageError

__all__ = ['Bf16OptimWrapper', 'set_amp']

# Arguments of MMEngine's AmpOptimWrapper that bfloat16 has no use for.
_SCALER_ARGUMENTS = ('loss_scale', 'dtype', 'use_fsdp')


@OPTIM_WRAPPERS.register_module()
class Bf16OptimWrapper(OptimWrapper):
    """Runs the forward under bfloat16 autocast, on CPU and GPU.

    MMEngine's ``AmpOptimWrapper`` refuses to run on a CPU. bfloat16 has float32's range, so that no
    loss has to be scaled.

    Args:
        **kwargs: As for MMEngine's ``OptimWrapper``.
    """

    @contextmanager
    def optim_context(self, model: nn.Module):
        """Enter autocast, and leave out the exchange of gradients while they accumulate.

        Args:
            model (nn.Module): The model that is trained.
        """
        with super().optim_context(model), autocast(dtype=torch.bfloat16):
            yield


def set_amp(cfg: Config, enable: bool) -> list[str]:
    """Make a config's mixed precision fit the device.

    Args:
        cfg (Config): Changed in place.
        enable (bool): Turn mixed precision on if the config does not.

    Returns:
        list[str]: What was done, for the log.

    Raises:
        UsageError: If the config's optimizer wrapper has no mixed precision counterpart.
    """
    notes = []
    wrapper = cfg.get('optim_wrapper') or {}
    name = type_name(wrapper.get('type', 'OptimWrapper'))
    if enable and name in ('AmpOptimWrapper', 'Bf16OptimWrapper'):
        notes.append(
            f'--amp changes nothing: the config uses {name}, mixed precision is on already.'
        )
    elif enable:
        if name != 'OptimWrapper' or not wrapper:
            raise UsageError(
                f'--amp: optim_wrapper.type is {name!r}, expected OptimWrapper. Set a mixed '
                'precision wrapper in the config, for example AmpOptimWrapper'
            )
        name = wrapper.type = 'AmpOptimWrapper'
        wrapper.setdefault('loss_scale', 'dynamic')
    if name == 'AmpOptimWrapper' and get_device() == 'cpu':
        wrapper.type = 'Bf16OptimWrapper'
        for argument in _SCALER_ARGUMENTS:
            wrapper.pop(argument, None)
        notes.append(
            'No GPU: mixed precision is bfloat16 on the CPU, by Bf16OptimWrapper instead of '
            'AmpOptimWrapper.'
        )
    return notes
