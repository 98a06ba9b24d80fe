"""Running a model for its features: in a dry run, and as far as the last of them."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from typing import Any, NamedTuple

from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

from .mmrazor_adapter import RazorSide
from .probe import detector_within, without_traces
from .recorder import FeatureCapture
from .source import FeatureSource
from .tokens import GridSearch

__all__ = [
    'DryRun',
    'FeaturesComplete',
    'blank_samples',
    'dry_run',
    'run_for_features',
    'run_to_last_feature',
]


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
    if data_samples is None:
        data_samples = blank_samples(inputs)
    within = detector_within(model)
    if within is not None:  # a tracker has no tensor mode
        prefix = f'{within}.'
        inner = [s.removeprefix(prefix) for s in sources if s.startswith(prefix)]
        run_for_features(getattr(model, within), inputs, data_samples, inner)
        return
    heads = getattr(model, 'auxiliary_head', None)
    named = {'auxiliary_head': heads}
    if isinstance(heads, nn.ModuleList):
        named = {f'auxiliary_head.{i}': head for i, head in enumerate(heads)}
    wanted = [h for n, h in named.items() if any(f'{s}.'.startswith(f'{n}.') for s in sources)]
    if not wanted:
        _run(model, inputs, data_samples)
        return

    def run_heads(module: nn.Module, args: tuple, features: object) -> None:
        for head in wanted:
            head(features)

    body = model.neck if getattr(model, 'with_neck', False) else model.backbone
    handle = body.register_forward_hook(run_heads)
    try:
        _run(model, inputs, data_samples)
    finally:
        handle.remove()


def blank_samples(inputs: Tensor) -> list[BaseDataElement]:
    """Give data samples that say how large images are, and nothing else: no padding, no labels.

    Heads with queries ask for these sizes in every forward.

    Args:
        inputs (Tensor): Images, shape (B, C, H, W).

    Returns:
        list[BaseDataElement]: One for each image.
    """
    shape = tuple(inputs.shape[-2:])
    sizes = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape'), shape)
    metainfo = dict(sizes, scale_factor=(1.0, 1.0), flip=False, padding_size=[0, 0, 0, 0])
    return [BaseDataElement(metainfo=metainfo) for _ in inputs]


def _run(model: nn.Module, inputs: Tensor, data_samples: list) -> None:
    head = getattr(model, 'decode_head', None)
    if hasattr(model, 'encode_decode') and _takes_more_than_features(head):
        # mmseg's tensor mode hands features to its heads and nothing else
        model.encode_decode(inputs, [sample.metainfo for sample in data_samples])
    elif hasattr(model, 'track_head'):
        # Mask2Former for videos, which has no tensor mode
        model.track_head(model.backbone(inputs), data_samples)
    else:
        model(inputs, data_samples, mode='tensor')


def _takes_more_than_features(head: nn.Module | None) -> bool:
    """Whether a decode head cannot run on features alone: those with queries ask for image sizes."""
    if head is None or isinstance(head, nn.ModuleList):
        return False
    parameters = list(inspect.signature(head.forward).parameters.values())
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p for p in parameters if p.kind in kinds and p.default is p.empty]
    return len(needed) > 1


class FeaturesComplete(Exception):
    """Ends a forward: all features that it was for are recorded."""


def run_to_last_feature(
    model: nn.Module,
    inputs: Tensor,
    data_samples: list | None,
    capture: FeatureCapture,
    razor: RazorSide | None = None,
    role: str = 'teacher',
) -> dict[FeatureSource, Tensor]:
    """Run a model as far as the last feature that is wanted.

    What lies behind it (a classifier, auxiliary heads, boxes) would cost time and serve nothing. A
    forward cannot be left in another way: a hook raises an exception that is caught here.

    Args:
        model (nn.Module): A model of MMEngine's interface.
        inputs (Tensor): Images, shape (B, C, H, W).
        data_samples (list, optional): What belongs to them.
        capture (FeatureCapture): The features.
        razor (RazorSide, optional): MMRazor's recorders of this model, which record beside. They must
            record modules.
        role (str): 'student' or 'teacher', for errors. Defaults to 'teacher'.

    Returns:
        dict[FeatureSource, Tensor]: The features.

    Raises:
        RuntimeError: If a feature was not produced, or overwritten.
    """
    modules = capture.modules | (razor.modules if razor else set())
    with capture.record(model) as recording, ExitStack() as hooks:

        def stop(*_: object) -> None:
            if recording.is_complete and (razor is None or razor.is_complete):
                raise FeaturesComplete

        for path in modules:
            hooks.callback(model.get_submodule(path).register_forward_hook(stop).remove)
        try:
            run_for_features(model, inputs, data_samples, modules)
        except FeaturesComplete:
            pass
        return capture.features(recording, role)


class DryRun(NamedTuple):
    """What a model gave for an empty image.

    Attributes:
        features (dict[FeatureSource, Tensor]): The features; their shapes count, not their values.
        capture (FeatureCapture): How to record them in a training.
        names_in_use (list[str]): Names in ``model.state_dict()`` of what the features depend on:
            parameters and buffers of every module that ran before the last feature, all below a
            module that ran to its end, and whatever else a function was given.
    """

    features: dict[FeatureSource, Tensor] = {}
    capture: FeatureCapture = FeatureCapture()
    names_in_use: list[str] = []


def dry_run(
    model: nn.Module,
    shape: Sequence[int],
    sources: Iterable[FeatureSource],
    role: str,
    razor: RazorSide | None = None,
) -> DryRun:
    """Let a model produce features from an empty image, in eval mode and without gradient.

    Args:
        model (nn.Module): A model of MMEngine's interface; stays as it is.
        shape (Sequence[int]): Channels, height and width of the image.
        sources (Iterable[FeatureSource]): The features.
        role (str): 'student' or 'teacher', for errors.
        razor (RazorSide, optional): MMRazor's recorders of this model, which count for
            ``names_in_use``.

    Returns:
        DryRun: The features, how to record them, and what they depend on.

    Raises:
        ValueError: If the model has no such module.
        RuntimeError: If the model fails before every feature is there, or a module produces none or
            several.
    """
    capture = FeatureCapture(tuple(dict.fromkeys(sources)))
    is_whole = razor is not None and razor.needs_whole_forward
    if is_whole or (razor is not None and not razor.recorders):
        razor = None
    inputs = next(model.parameters()).new_zeros((1, *shape))
    search = GridSearch(capture.sources, shape)
    with (
        without_traces(model),
        capture.record(model) as recording,
        search.watch(model),
    ):
        modules = capture.modules | (razor.modules if razor else set())

        def is_complete() -> bool:
            return recording.is_complete and (razor is None or razor.is_complete)

        with (
            nullcontext() if razor is None else razor.record(model),
            _Usage(model, modules, is_complete) as usage,
        ):
            try:
                run_for_features(model, inputs, None, modules)
            except Exception as error:
                # A detector's head may fail on an empty image: ignored if all features are recorded.
                if not recording.has_all:
                    raise RuntimeError(
                        f'{type(model).__name__} failed on an empty image of shape {tuple(shape)} '
                        f'before it had produced all features: {error!r}. Set dry_run_shape of the '
                        'distiller if the model needs another one; a feature must be computed from '
                        'the image alone (backbone, neck, heads of a segmentor).'
                    ) from error
        copied = recording.overwritten
        recording.accept_overwriting()
        features = capture.features(recording, role, as_recorded=True)
        grids = {}
        for source, tokens in features.items():
            if source.is_tokens:
                grids[source], sizes = search.find(source, tokens)
                features[source] = grids[source].to_map(tokens, sizes, source)
        names = usage.names
    if is_whole:
        names = [n for n in model.state_dict() if not n.endswith('num_batches_tracked')]
    return DryRun(features, capture._replace(copied=copied, grids=grids), names)


class _Usage(TorchFunctionMode):
    """Finds the parameters and buffers that a forward uses until its features are complete.

    Args:
        model (nn.Module): The model.
        modules (set[str]): Paths of the modules that give the features.
        is_complete (Callable[[], bool]): Whether all features are there.
    """

    # what asks for a property of a tensor does not use its values
    _ASKING = {
        getattr(Tensor, name).__get__
        for name in ('shape', 'device', 'dtype', 'ndim', 'layout', 'requires_grad', 'is_cuda')
    }

    def __init__(
        self, model: nn.Module, modules: set[str], is_complete: Callable[[], bool]
    ) -> None:
        super().__init__()
        self._tensors = model.state_dict(keep_vars=True)
        self._used: set[int] = set()
        self._begun: set[str] = set()
        self._ended = set(modules)
        self._is_over = False
        self._is_complete = is_complete
        self._model = model
        self._hooks = ExitStack()

    def __enter__(self) -> '_Usage':
        for name, module in self._model.named_modules():
            for handle in (
                module.register_forward_pre_hook(partial(self._begin, name)),
                module.register_forward_hook(partial(self._end, name)),
            ):
                self._hooks.callback(handle.remove)
        super().__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._hooks.close()

    def _begin(self, name: str, module: nn.Module, args: tuple) -> None:
        if not self._is_over:
            self._begun.add(name)

    def _end(self, name: str, module: nn.Module, args: tuple, output: Any) -> None:
        # A training's forward ends behind the module that completes the features.
        if not self._is_over:
            self._ended.add(name)
            self._is_over = self._is_complete()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not self._is_over and func not in self._ASKING:
            leaves = tree_flatten((args, kwargs))[0]
            self._used.update(id(leaf) for leaf in leaves if isinstance(leaf, Tensor))
        return func(*args, **kwargs)

    @property
    def names(self) -> list[str]:
        """Names in ``model.state_dict()``, but for the numbers of batches."""

        def is_in_use(name: str) -> bool:
            parts = name.split('.')[:-1]
            above = {'.'.join(parts[:i]) for i in range(len(parts) + 1)}
            module = '.'.join(parts)
            return (
                module in self._begun
                or bool(above & self._ended)
                or id(self._tensors[name]) in self._used
            )

        names = [name for name in self._tensors if not name.endswith('num_batches_tracked')]
        return [name for name in names if is_in_use(name)]
