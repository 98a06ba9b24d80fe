"""Runs a model on an image and restores its state; finds what in it sees images, and which."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

__all__ = ['detector_within', 'image_channels', 'without_traces']

# Arguments that tell how many channels a layer takes: of convolutions, linear layers, norms.
_INPUT_CHANNELS = ('in_channels', 'in_features', 'num_features')
# Height and width of the image; windows and patches of the usual sizes divide it.
_SIZE = 64


@contextmanager
def without_traces(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradient; modes, caches and random state are restored at the end.

    SAN's text encoder keeps what it makes of the classes. What it makes before its weights are loaded
    must not stay.

    Args:
        model (nn.Module): What is run meanwhile.
    """
    training = {module: module.training for module in model.modules()}
    caches = [
        (value, dict(value))
        for module in model.modules()
        for name, value in vars(module).items()
        if type(value) is dict and not name.startswith('_')
    ]
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        for module, mode in training.items():
            module.training = mode
        for cache, before in caches:
            cache.clear()
            cache.update(before)


def detector_within(model: nn.Module) -> str | None:
    """Name the detector that a model holds and runs on images.

    It is ``detector`` of a tracker. A semi-supervised detector has two, of which one predicts.

    Args:
        model (nn.Module): A model of MMEngine's interface.

    Returns:
        str | None: The name of the attribute; None if the model holds no detector.
    """
    name = 'detector'
    if hasattr(model, 'semi_test_cfg'):
        name = (model.semi_test_cfg or {}).get('forward_on', 'teacher')
    return name if isinstance(getattr(model, name, None), BaseModel) else None


class _FirstLayer(Exception):
    """Ends the forward at the first layer that has weights."""

    def __init__(self, takes: int, gets: int) -> None:
        super().__init__()
        self.takes, self.gets = takes, gets


def _stop(module: nn.Module, args: tuple) -> None:
    takes = next(getattr(module, name, None) for name in _INPUT_CHANNELS if hasattr(module, name))
    image = args[0] if args else None
    if not isinstance(takes, int) or not isinstance(image, Tensor) or image.dim() < 3:
        return
    # A linear layer or LayerNorm takes channels last: patches in a sequence.
    gets = image.shape[-1 if isinstance(module, nn.Linear) else 1]
    raise _FirstLayer(takes, gets)


def image_channels(model: BaseModel) -> int:
    """Find out how many channels the images have that a model takes.

    The model runs on an image of zeros as far as its first layer with weights (a convolution, a patch
    embedding), which tells how many channels it takes. The ``data_preprocessor`` cannot tell: one
    mean serves any number of channels. What comes before that layer counts: four neighbours stacked
    (YOLOX), say, are four times as many channels as the image has.

    Args:
        model (BaseModel): A model of MMEngine's interface; stays as it is.

    Returns:
        int: The number of channels. If no such layer runs on the image, that of the
        data_preprocessor's means; 3 where there is one mean or none.

    Example:
        >>> from torch import nn
        >>> from mmengine.model import BaseModel
        >>> class Net(BaseModel):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.stem = nn.Conv2d(4, 8, 3)
        ...     def forward(self, inputs, data_samples=None, mode='tensor'):
        ...         return self.stem(inputs)
        >>> image_channels(Net())
        4
    """
    within = detector_within(model)
    if within is not None:
        return image_channels(getattr(model, within))
    means = getattr(getattr(model, 'data_preprocessor', None), 'mean', None)
    assumed = len(means) if means is not None and len(means) > 1 else 3
    found = _run_to_first_layer(model, assumed)
    if found is None or assumed * found.takes % found.gets:
        return assumed
    return assumed * found.takes // found.gets


def _run_to_first_layer(model: BaseModel, channels: int) -> _FirstLayer | None:
    image = next(model.parameters()).new_zeros((1, channels, _SIZE, _SIZE))
    # the images first: a forward may begin with something else, a text for example
    ways = [lambda: model(image, None, mode='tensor'), lambda: model.backbone(image)]
    if hasattr(model, 'extract_feat'):
        ways.insert(0, lambda: model.extract_feat(image))
    with without_traces(model), ExitStack() as stack:
        for module in model.modules():
            if any(hasattr(module, name) for name in _INPUT_CHANNELS):
                if next(module.parameters(recurse=False), None) is not None:
                    stack.callback(module.register_forward_pre_hook(_stop).remove)
        for run in ways:
            try:
                run()
            except _FirstLayer as found:
                return found
            except Exception:  # noqa: S112 (it wants more than an image, which the next may not)
                continue
    return None
