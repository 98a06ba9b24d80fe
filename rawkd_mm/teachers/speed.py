"""What the teacher computes in: precision, memory format, and graphs of ``torch.compile``."""

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only

from ..compat import autocast_dtype, begin_graph_step
from .external import ExternalTeacher

__all__ = ['PRECISIONS', 'SpeedSettings', 'TeacherCompute', 'check_settings']

# What teacher_precision may be, and the type that convolutions and linear layers then compute in.
PRECISIONS = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}

# Modules whose weights autocast would convert in every forward. Subclasses with a forward of their
# own may do anything with their weights and keep them.
_CONVERTED_FORWARDS = tuple(
    kind.forward
    for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
)

# Methods in whose place graphs come.
_REPLACED = ('forward', 'forward_maps')


def _keep_operators(model: nn.Module) -> set[nn.Module]:
    """Let MMCV's own operators run in every layout and precision.

    They take contiguous maps only, and no bfloat16: under its autocast they run in float32.

    Returns:
        set[nn.Module]: They and all below them.
    """
    found = [m for m in model.modules() if type(m).__module__.startswith('mmcv.ops')]
    for module in found:
        module.forward = functools.partial(_run_operator, type(module).forward, module)
    return {below for module in found for below in module.modules()}


def _run_operator(forward: Callable, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    leaves = tree_flatten((args, kwargs))[0]
    device_type = next(x for x in leaves if isinstance(x, Tensor)).device.type
    without = autocast_dtype(device_type) == torch.bfloat16

    def convert(value: Tensor) -> Tensor:
        return (value.float() if value.dtype == torch.bfloat16 else value).contiguous()

    args, kwargs = tree_map_only(Tensor, convert, (args, kwargs))
    with torch.autocast(device_type, enabled=False) if without else nullcontext():
        return forward(module, *args, **kwargs)


def check_settings(precision: object, graphs: object) -> None:
    """Check the settings before anything is built.

    Args:
        precision (object): Of :class:`SpeedSettings`.
        graphs (object): Likewise.

    Raises:
        ValueError: If there is no such precision.
        TypeError: If ``graphs`` is neither a bool nor a dict.
    """
    if precision is not None and precision not in PRECISIONS:
        raise ValueError(
            f'teacher_precision must be one of {list(PRECISIONS)}, or None for what the student '
            f'computes in, got {precision!r}'
        )
    if not isinstance(graphs, (bool, dict)):
        raise TypeError(
            'teacher_compile must be True, False or a dict of arguments of torch.compile, such '
            f"as dict(mode='max-autotune'), got {graphs!r}"
        )


class SpeedSettings(NamedTuple):
    """What a teacher computes in.

    Attributes:
        precision (str | None): A key of ``PRECISIONS``; None for what the student computes in.
        channels_last (bool): Whether the channels of maps and weights are their last dimension in
            memory.
        graphs (bool | dict): Whether ``torch.compile`` makes graphs of the modules that run; a dict
            holds its arguments.
    """

    precision: str | None = None
    channels_last: bool = False
    graphs: bool | dict = False

    @property
    def text(self) -> str:
        """The settings in words, for logs."""
        words = [self.precision or '', 'channels last' if self.channels_last else '']
        words.append('compiled' if self.graphs is not False else '')
        return ', '.join(filter(None, words)) or 'as it comes'


class TeacherCompute:
    """Makes a teacher compute in a precision, a memory format and graphs.

    In low precision it runs under autocast, so that each operation has the type that PyTorch deems
    safe for it, and the weights that autocast would convert in every forward are stored converted:
    the model takes less memory, and the features are the same.

    Args:
        model (nn.Module): The teacher, with its weights; changed.
        settings (SpeedSettings): What it computes in.
        sources (set[str]): Paths of the modules that features are taken from.
        kept (set[str]): Names of parameters that keep their type.

    Attributes:
        settings (SpeedSettings): What it computes in now.
        is_open (bool): Whether better settings are still to be found.

    Raises:
        ValueError: If there is no such precision.
        TypeError: If ``graphs`` is neither a bool nor a dict.
    """

    def __init__(
        self, model: nn.Module, settings: SpeedSettings, sources: set[str], kept: set[str]
    ) -> None:
        self._model = model
        self._sources = sources
        self._kept = kept
        self._use_graphs = False
        self._operators = _keep_operators(model)
        self.settings = SpeedSettings()
        self.is_open = False
        self.apply(settings)

    def apply(self, settings: SpeedSettings) -> None:
        """Make the model, which is as it was loaded, compute in other settings.

        Args:
            settings (SpeedSettings): The new ones. Weights that were converted do not come back by
                themselves: see :meth:`remember`.

        Raises:
            ValueError: If there is no such precision.
            TypeError: If ``graphs`` is neither a bool nor a dict.
        """
        precision, channels_last, graphs = settings
        check_settings(precision, graphs)
        self.settings = settings
        if precision in ('bf16', 'fp16'):
            for name, module in self._model.named_modules():
                if type(module).forward in _CONVERTED_FORWARDS and module not in self._operators:
                    for key, value in module.named_parameters(prefix=name, recurse=False):
                        if key not in self._kept:
                            value.data = value.data.to(PRECISIONS[precision])
        if channels_last:
            self._model.to(memory_format=torch.channels_last)
            for module in self._operators:
                module.to(memory_format=torch.contiguous_format)
        if graphs is not False:
            self._compile(self._model, self._sources, {} if graphs is True else graphs)

    def remember(self) -> Callable[[], None]:
        """Note how the model is now.

        Returns:
            Callable: Brings it back, as often as it is called. It keeps the weights of now in memory.
        """
        settings = self.settings
        weights = [(value, value.data) for value in self._model.parameters()]
        modules = [
            (module, dict(module._buffers), {k: vars(module).get(k) for k in _REPLACED})
            for module in self._model.modules()
        ]

        def restore() -> None:
            self.settings = settings
            for value, data in weights:
                value.data = data
            for module, buffers, forwards in modules:
                module._buffers.update(buffers)
                for key, forward in forwards.items():
                    vars(module).pop(key, None)
                    if forward is not None:
                        vars(module)[key] = forward

        return restore

    def _compile(self, model: nn.Module, sources: set[str], arguments: dict) -> None:
        """Compile the largest modules that no feature is taken from within.

        Features are recorded by hooks, and these stay outside of the graphs. Each size of images has
        graphs of its own unless ``dynamic`` is given: PyTorch 2.10 did not finish a graph of a Swin
        for all sizes in a bearable time.
        """
        arguments = {'dynamic': False, **arguments}

        def walk(module: nn.Module, name: str) -> None:
            has_forward = type(module).forward is not nn.Module.forward
            if has_forward and not any(source.startswith(f'{name}.') for source in sources):
                # not module.compile(), which would take the hooks of the module into the graph
                module.forward = self._in_graphs(
                    module.forward, torch.compile(module.forward, **arguments)
                )
                return
            for key, child in module.named_children():
                walk(child, f'{name}.{key}')

        if isinstance(model, ExternalTeacher) and not any(
            source.startswith(ExternalTeacher.weights_prefix) for source in sources
        ):
            # the network may be run by another method than its forward
            model.forward_maps = self._in_graphs(
                model.forward_maps, torch.compile(model.forward_maps, **arguments)
            )
            return
        for name, child in model.named_children():
            if child is not model.data_preprocessor:
                walk(child, name)

    def _in_graphs(self, plain: Callable, compiled: Callable) -> Callable:
        """Use graphs for features alone: the images of a validation have any size."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            return (compiled if self._use_graphs else plain)(*args, **kwargs)

        return forward

    @contextmanager
    def graphs(self) -> Iterator[None]:
        """Let the model run in its graphs, if it has any, within the context.

        CUDA graphs overwrite in the next context what they have given in this one.
        """
        if self.settings.graphs is not False:
            begin_graph_step()
        self._use_graphs = True
        try:
            yield
        finally:
            self._use_graphs = False

    def autocast(self, device_type: str) -> AbstractContextManager:
        """Give the context that the model runs in.

        Args:
            device_type (str): 'cpu' or 'cuda'.
        """
        if self.settings.precision is None:
            return nullcontext()
        is_low = self.settings.precision != 'fp32'
        dtype = PRECISIONS[self.settings.precision] if is_low else None
        return torch.autocast(device_type, dtype=dtype, enabled=is_low)

    @property
    def changes_features(self) -> bool:
        """Whether features may come in another type or layout than the student's."""
        return self.settings.precision is not None or self.settings.channels_last
