"""Probing a model: running it without leaving a trace, and finding out which images it takes."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from .recorder import FeatureRecorder

__all__ = ['dry_run', 'image_channels', 'run_for_features', 'without_traces']

# Arguments that tell how many channels a layer takes: of convolutions, linear layers, norms.
_INPUT_CHANNELS = ('in_channels', 'in_features', 'num_features')
# Height and width of the image; windows and patches of the usual sizes divide it.
_SIZE = 64


@contextmanager
def without_traces(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradient, and everything as it was afterwards: modes and random state.

    Args:
        model (nn.Module): What is run meanwhile.
    """
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        for module, mode in training.items():
            module.training = mode


def run_for_features(
    model: nn.Module, inputs: Tensor, data_samples: list | None, sources: Iterable[str]
) -> None:
    """Run a model on images without computing losses.

    An auxiliary head of an mmseg segmentor, which only its training runs, runs if a source lies in
    it, right behind the backbone and the neck.

    Args:
        model (nn.Module): A model of MMEngine's interface.
        inputs (Tensor): Images, shape (B, C, H, W).
        data_samples (list, optional): What belongs to them.
        sources (Iterable[str]): Paths of the modules whose outputs are wanted.
    """
    heads = getattr(model, 'auxiliary_head', None)
    named = {'auxiliary_head': heads}
    if isinstance(heads, nn.ModuleList):
        named = {f'auxiliary_head.{i}': head for i, head in enumerate(heads)}
    wanted = [h for n, h in named.items() if any(f'{s}.'.startswith(f'{n}.') for s in sources)]
    if not wanted:
        model(inputs, data_samples, mode='tensor')
        return

    def run_heads(module: nn.Module, args: tuple, features: object) -> None:
        for head in wanted:
            head(features)

    body = model.neck if getattr(model, 'with_neck', False) else model.backbone
    handle = body.register_forward_hook(run_heads)
    try:
        model(inputs, data_samples, mode='tensor')
    finally:
        handle.remove()


def dry_run(model: nn.Module, shape: Sequence[int], recorders: Sequence[FeatureRecorder]) -> None:
    """Let a model produce features from an empty image, in eval mode and without gradient.

    Args:
        model (nn.Module): A model of MMEngine's interface.
        shape (Sequence[int]): Channels, height and width of the image.
        recorders (Sequence[FeatureRecorder]): Hold what the model produced, afterwards.

    Raises:
        RuntimeError: If the model fails before each recorder has a feature.
    """
    inputs = next(model.parameters()).new_zeros((1, *shape))

    def is_complete() -> bool:
        return all(recorder.data_buffer for recorder in recorders)

    with without_traces(model), ExitStack() as stack:
        for recorder in recorders:
            stack.enter_context(recorder)
        try:
            run_for_features(model, inputs, None, [recorder.source for recorder in recorders])
        except Exception as error:
            # A detector's head may want what an empty image lacks. Nothing is lost by that once
            # all features are there.
            if not is_complete():
                raise RuntimeError(
                    f'{type(model).__name__} failed on an empty image of shape {tuple(shape)} '
                    f'before it had produced all features: {error!r}. Set dry_run_shape of the '
                    'distiller if the model needs another one; a feature must be computed from '
                    'the image alone (backbone, neck, heads of a segmentor).'
                ) from error


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
    means = getattr(getattr(model, 'data_preprocessor', None), 'mean', None)
    assumed = len(means) if means is not None and len(means) > 1 else 3
    found = _run_to_first_layer(model, assumed)
    if found is None or assumed * found.takes % found.gets:
        return assumed
    return assumed * found.takes // found.gets


def _run_to_first_layer(model: BaseModel, channels: int) -> _FirstLayer | None:
    image = next(model.parameters()).new_zeros((1, channels, _SIZE, _SIZE))
    # the images first: a forward may begin with something else, a text for example
    ways = [lambda: model(image, None, mode='tensor')]
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
