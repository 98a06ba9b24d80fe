"""Recording features while a model runs; a wrong feature is refused."""

import difflib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only

from .source import FeatureSource

__all__ = ['FeatureCapture', 'ModuleRecord', 'Recording', 'find_module']


def find_module(model: nn.Module, path: str) -> nn.Module:
    """Give the module of a path.

    Args:
        model (nn.Module): The model.
        path (str): As in ``model.named_modules()``.

    Returns:
        nn.Module: The module.

    Raises:
        ValueError: If the model has no such module; names the closest that it has.
    """
    try:
        if path:
            return model.get_submodule(path)
    except AttributeError:
        pass
    names = [name for name, _ in model.named_modules() if name]
    close = difflib.get_close_matches(path, names, n=5, cutoff=0.5)
    parent = path.rpartition('.')[0]
    if not close:
        close = [n for n in names if n.rpartition('.')[0] == parent][:10] or names[:10]
    raise ValueError(
        f'{type(model).__name__} has no module {path!r}; '
        f'the closest are {", ".join(repr(name) for name in close)}'
    )


def _tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(output)[0] if isinstance(leaf, Tensor)]


class ModuleRecord:
    """What one module put out, or was given, in one forward of a model.

    Args:
        path (str): Path of the module in ``model.named_modules()``.
        is_input (bool): Record the module's first positional argument instead of its output.
            Defaults to False.
        is_copied (bool): Keep a copy, because something overwrites the output. Defaults to False.

    Attributes:
        outputs (list): What was recorded, an entry for each call of the module.
    """

    def __init__(self, path: str, is_input: bool = False, is_copied: bool = False) -> None:
        self.path = path
        self.is_input = is_input
        self.is_copied = is_copied
        self.outputs: list = []
        self._versions: list = []

    def append(self, output: Any) -> None:
        """Record an output, and the versions of its tensors."""
        if self.is_copied:
            output = tree_map_only(Tensor, torch.Tensor.clone, output)
        self.outputs.append(output)
        self._versions.append([tensor._version for tensor in _tensors(output)])

    def clear(self) -> None:
        """Forget what was recorded."""
        self.outputs, self._versions = [], []

    @property
    def is_overwritten(self) -> bool:
        """Whether something worked in place on what was recorded, since then."""
        return any(
            tensor._version != version
            for output, versions in zip(self.outputs, self._versions)
            for tensor, version in zip(_tensors(output), versions)
        )

    def accept_overwriting(self) -> None:
        """Take the outputs as they are now: their shapes are right, their values may not be."""
        self._versions = [[tensor._version for tensor in _tensors(x)] for x in self.outputs]

    def feature(self, model: nn.Module | None, index: int | None = None) -> Tensor:
        """Give what the module produced.

        Args:
            model (nn.Module, optional): The model that ran, for errors.
            index (int, optional): Index into the output if that is a tuple or list.

        Returns:
            Tensor: The feature.

        Raises:
            RuntimeError: If the module ran not at all or more than once, or its output was
                overwritten since.
            TypeError: If an index is missing, or given for an output that has none.
            IndexError: If the index is out of range.
        """
        name = repr(self.path)
        verb = 'is given' if self.is_input else 'outputs'
        notation = FeatureSource(self.path, is_input=self.is_input).text
        if not self.outputs:
            raise RuntimeError(f'{name} produced no feature: {self._why_nothing(model)}')
        if len(self.outputs) > 1:
            raise RuntimeError(
                f'{name} produced {len(self.outputs)} features in one forward, and it is not '
                'clear which one is meant. Choose a module that runs once (a head that all levels '
                'of a neck share runs once per level: distil the outputs of the neck instead).'
            )
        if self.is_overwritten:
            raise RuntimeError(
                f'the feature of {name} was overwritten in place after it was recorded. Choose '
                'the module that overwrites it, or the next one.'
            )
        output = self.outputs[0]
        if isinstance(output, (list, tuple)):
            if index is None:
                raise TypeError(
                    f'{name} {verb} a {type(output).__name__} of {len(output)}; say which one with '
                    f"an index, such as '{notation}[0]'"
                )
            if not 0 <= index < len(output):
                raise IndexError(
                    f'{name} {verb} {len(output)} features, so the index must be in '
                    f'0..{len(output) - 1}, got {index}'
                )
            output = output[index]
        elif index is not None:
            raise TypeError(
                f'{name} {verb} a {type(output).__name__}, not a tuple: leave out [{index}]'
            )
        if not isinstance(output, Tensor):
            raise TypeError(f'{name} {verb} a {type(output).__name__}, not a tensor')
        return output

    def _why_nothing(self, model: nn.Module | None) -> str:
        module = model.get_submodule(self.path) if model is not None else None
        below = [name for name, _ in module.named_children()] if module is not None else []
        if not below:
            return (
                'it was not called in this forward. Choose a module that runs in every forward of '
                'the model.'
            )
        # A method of a module is no call of the module, so that no hook sees it.
        paths = ', '.join(repr(f'{self.path}.{name}') for name in below[-5:])
        return (
            f'nothing called it as a module in this forward. Either it did not run, or the model '
            f'called one of its methods (forward, loss, predict), as MMSegmentation and MMDetection '
            f'call their heads; such calls cannot be recorded. Choose a module within it, such as '
            f'{paths}, or what the head is given: the output of the neck or the backbone.'
        )


class Recording:
    """The features of one forward, while the model runs and afterwards.

    Args:
        model (nn.Module): The model that runs.
        records (dict): A :class:`ModuleRecord` for each module and side of it that is recorded.
    """

    def __init__(self, model: nn.Module, records: dict[tuple[str, bool], ModuleRecord]) -> None:
        self._model = model
        self._records = records

    @property
    def is_complete(self) -> bool:
        """Whether every module that is recorded has run."""
        return all(record.outputs for record in self._records.values())

    @property
    def overwritten(self) -> frozenset[str]:
        """Paths of the modules whose outputs something has worked on in place."""
        return frozenset(r.path for r in self._records.values() if r.is_overwritten)

    def accept_overwriting(self) -> None:
        """Take overwritten features as they are, for their shapes."""
        for record in self._records.values():
            record.accept_overwriting()

    def feature(self, source: FeatureSource) -> Tensor:
        """Give a feature; see :meth:`ModuleRecord.feature` for the errors."""
        return self._records[source.module, source.is_input].feature(self._model, source.index)


class FeatureCapture(NamedTuple):
    """Which features of a model are recorded.

    Attributes:
        sources (tuple[FeatureSource, ...]): Their names.
        copied (frozenset[str]): Paths of modules whose output is copied when it is recorded, because
            the model overwrites it in place (``out += identity`` behind a ResNet block's last norm,
            say).
    """

    sources: tuple[FeatureSource, ...] = ()
    copied: frozenset[str] = frozenset()

    @property
    def modules(self) -> set[str]:
        """Paths of the modules that are recorded."""
        return {source.module for source in self.sources}

    @contextmanager
    def record(self, model: nn.Module) -> Iterator[Recording]:
        """Record the features within the context; the hooks are removed at its end.

        Args:
            model (nn.Module): The model that runs in the context.

        Yields:
            Recording: Has the features as soon as the model has run.

        Raises:
            ValueError: If the model has no module of that path.
        """
        records: dict[tuple[str, bool], ModuleRecord] = {}
        with ExitStack() as hooks:
            for path, _, is_input in self.sources:
                if (path, is_input) in records:
                    continue
                record = ModuleRecord(path, is_input, path in self.copied)
                records[path, is_input] = record
                hooks.callback(_hook(find_module(model, path), record).remove)
            yield Recording(model, records)

    def features(self, recording: Recording, role: str) -> dict[FeatureSource, Tensor]:
        """Give the features of a forward.

        Args:
            recording (Recording): What :meth:`record` gave.
            role (str): 'student' or 'teacher', for errors.

        Returns:
            dict[FeatureSource, Tensor]: Each feature by its name.

        Raises:
            RuntimeError, TypeError, IndexError: As :meth:`ModuleRecord.feature`; the text begins with
            the role.
        """
        try:
            return {source: recording.feature(source) for source in self.sources}
        except (RuntimeError, TypeError, IndexError) as error:
            raise type(error)(f'{role}: {error}') from error


def _hook(module: nn.Module, record: ModuleRecord) -> Any:
    if record.is_input:
        # before the module runs: it may work in place
        return module.register_forward_pre_hook(
            lambda module, args: record.append(args[0] if args else None)
        )
    return module.register_forward_hook(lambda module, args, output: record.append(output))
