"""A recorder of module outputs that refuses to give a wrong feature."""

import difflib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from mmrazor.models.task_modules.recorder import ModuleOutputsRecorder
from torch import nn

from ..registry import register_task_util


class FeatureSource(NamedTuple):
    """Where a feature comes from: ``'decode_head.bottleneck'``, or ``'neck[2]'`` of a tuple.

    ``'decode_head.dropout:input'`` is what a module is given, for features that no module outputs
    (a sum of levels, say).

    Attributes:
        module (str): Path of the module, as in ``model.named_modules()``.
        index (int | None): Index into the module's output (or input) if that is a tuple or list.
        is_input (bool): Whether the module's first positional argument is meant, not its output.
    """

    module: str
    index: int | None = None
    is_input: bool = False

    @classmethod
    def parse(cls, text: str) -> 'FeatureSource':
        """Parse ``'path'``, ``'path:input'`` and either with an ``'[index]'``.

        Raises:
            ValueError: If the text has none of these forms.

        Examples:
            >>> FeatureSource.parse('neck[2]')
            FeatureSource(module='neck', index=2, is_input=False)
        """
        pattern = r'([\w.-]+)(:input)?(?:\[(\d+)\])?'
        match = re.fullmatch(pattern, text) if isinstance(text, str) else None
        if match is None:
            raise ValueError(
                f'a feature is named by the path of a module, optionally with an index, such as '
                f"'decode_head.bottleneck' or 'neck[0]'; got {text!r}"
            )
        return cls(match[1], None if match[3] is None else int(match[3]), match[2] is not None)

    @property
    def text(self) -> str:
        """What :meth:`parse` reads: ``'neck[2]'``."""
        suffix = ':input' if self.is_input else ''
        return f'{self.module}{suffix}' + ('' if self.index is None else f'[{self.index}]')

    @property
    def label(self) -> str:
        """The name without brackets, for log entries: ``'neck.2'``."""
        return self.text.replace(':', '.').replace('[', '.').replace(']', '')


def _tensors(output: Any) -> list:
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, (list, tuple)):
        return [tensor for item in output for tensor in _tensors(item)]
    return []


def _map(function: Callable, output: Any) -> Any:
    if isinstance(output, torch.Tensor):
        return function(output)
    if isinstance(output, dict):
        return {key: _map(function, value) for key, value in output.items()}
    if isinstance(output, (list, tuple)):
        mapped = [_map(function, item) for item in output]
        return type(output)(*mapped) if hasattr(output, '_fields') else type(output)(mapped)
    return output


@register_task_util
class FeatureRecorder(ModuleOutputsRecorder):
    """MMRazor's ``ModuleOutputsRecorder`` for one feature of one forward.

    It stops the run where the original goes on or fails without a hint: the module does not exist,
    ran not at all or more than once, or its output was overwritten in place after it was recorded
    (``out += identity`` behind a ResNet block's last norm, say). In a recorder config its type is
    ``'Feature'``.

    Args:
        source (str): Path of the module in ``model.named_modules()``.
        is_input (bool): Record the module's first positional argument instead of its output.
            Defaults to False.

    Attributes:
        clone (bool): Keep a copy of the output, because something overwrites it. Set by
            :meth:`clone_if_overwritten`. Defaults to False.
    """

    def __init__(self, source: str, is_input: bool = False) -> None:
        super().__init__(source)
        self.is_input = is_input
        self.clone = False
        self._versions: list = []
        self._model: nn.Module | None = None
        self._hooked: nn.Module | None = None

    def prepare_from_model(self, model: nn.Module | None = None) -> None:
        """Hook the module.

        Raises:
            ValueError: If the model has no such module; names the closest that it has.
        """
        modules = dict(model.named_modules())
        if self.source not in modules or not self.source:
            names = [name for name in modules if name]
            close = difflib.get_close_matches(self.source, names, n=5, cutoff=0.5)
            parent = self.source.rpartition('.')[0]
            if not close:
                close = [n for n in names if n.rpartition('.')[0] == parent][:10] or names[:10]
            raise ValueError(
                f'{type(model).__name__} has no module {self.source!r}; '
                f'the closest are {", ".join(repr(name) for name in close)}'
            )
        self._model = model
        self._hooked = None
        self._hook()

    def _hook(self) -> None:
        module = self._model.get_submodule(self.source)
        # A runner may have put another module in its place, BN for SyncBN or the other way round.
        if module is not self._hooked:
            if self.is_input:
                module.register_forward_pre_hook(self._forward_pre_hook)
            else:
                module.register_forward_hook(self.forward_hook)
            self._hooked = module

    def __enter__(self) -> None:
        """Start recording."""
        super().__enter__()
        self._hook()

    def _forward_pre_hook(self, module: nn.Module, inputs: tuple) -> None:
        # before it runs: it may work in place
        self.forward_hook(module, inputs, inputs[0] if inputs else None)

    def forward_hook(self, module: nn.Module, inputs: tuple, outputs: Any) -> None:
        """Record the output and the versions of its tensors."""
        if self.recording:
            recorded = _map(torch.Tensor.clone, outputs) if self.clone else outputs
            self.data_buffer.append(recorded)
            self._versions.append([tensor._version for tensor in _tensors(recorded)])

    def reset_data_buffer(self) -> None:
        """Forget what was recorded."""
        super().reset_data_buffer()
        self._versions = []

    def _is_overwritten(self) -> bool:
        return any(
            tensor._version != version
            for record, versions in zip(self.data_buffer, self._versions)
            for tensor, version in zip(_tensors(record), versions)
        )

    def clone_if_overwritten(self) -> None:
        """If the last forward overwrote the output, keep a copy of it from the next forward on.

        The record at hand is accepted as it is: its shape is right, its values are not.
        """
        if self._is_overwritten():
            self.clone = True
            self._versions = [[t._version for t in _tensors(r)] for r in self.data_buffer]

    def replace(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Replace each recorded tensor by what a function makes of it.

        A record that was overwritten stays as it is, to be found out by :meth:`get_record_data`.

        Args:
            function (Callable): Takes and gives a tensor.
        """
        if not self._is_overwritten():
            self.data_buffer[:] = [_map(function, record) for record in self.data_buffer]
            self._versions = [[t._version for t in _tensors(r)] for r in self.data_buffer]

    def _why_not(self) -> str:
        """Say why there may be no record."""
        module = self._model.get_submodule(self.source) if self._model is not None else None
        below = [name for name, _ in module.named_children()] if module is not None else []
        if not below:
            return (
                'it was not called in this forward. Choose a module that runs in every forward of '
                'the model.'
            )
        # A method of a module is no call of the module, so that no hook sees it.
        paths = ', '.join(repr(f'{self.source}.{name}') for name in below[-5:])
        return (
            f'nothing called it as a module in this forward. Either it did not run, or the model '
            f'called one of its methods (forward, loss, predict), as MMSegmentation and MMDetection '
            f'call their heads; such calls cannot be recorded. Choose a module within it, such as '
            f'{paths}, or what the head is given: the output of the neck or the backbone.'
        )

    def get_record_data(self, record_idx: int = 0, data_idx: int | None = None) -> Any:
        """Give what the module produced in the last forward.

        Args:
            record_idx (int): Must be 0, there is one record.
            data_idx (int, optional): Index into the output if that is a tuple or list.

        Returns:
            torch.Tensor: The feature.

        Raises:
            RuntimeError: If the module ran not at all, more than once, or its output was
                overwritten since.
            TypeError: If an index is missing, or given for an output that has none.
            IndexError: If the index is out of range.
        """
        name = repr(self.source)
        verb = 'is given' if self.is_input else 'outputs'
        notation = FeatureSource(self.source, is_input=self.is_input).text
        if len(self.data_buffer) != 1:
            if not self.data_buffer:
                raise RuntimeError(f'{name} produced no feature: {self._why_not()}')
            raise RuntimeError(
                f'{name} produced {len(self.data_buffer)} features in one forward, and it is not '
                'clear which one is meant. Choose a module that runs once (a head that all levels '
                'of a neck share runs once per level: distil the outputs of the neck instead).'
            )
        if record_idx != 0:
            raise IndexError(f'{name} has one record, record_idx must be 0, got {record_idx}')
        if self._is_overwritten():
            raise RuntimeError(
                f'the feature of {name} was overwritten in place after it was recorded. Choose '
                'the module that overwrites it, or the next one.'
            )
        output = self.data_buffer[0]
        if isinstance(output, (list, tuple)):
            if data_idx is None:
                raise TypeError(
                    f'{name} {verb} a {type(output).__name__} of {len(output)}; say which one with '
                    f"an index, such as '{notation}[0]'"
                )
            if not 0 <= data_idx < len(output):
                raise IndexError(
                    f'{name} {verb} {len(output)} features, so the index must be in '
                    f'0..{len(output) - 1}, got {data_idx}'
                )
            output = output[data_idx]
        elif data_idx is not None:
            raise TypeError(
                f'{name} {verb} a {type(output).__name__}, not a tuple: leave out [{data_idx}]'
            )
        if not isinstance(output, torch.Tensor):
            raise TypeError(f'{name} {verb} a {type(output).__name__}, not a tensor')
        return output
