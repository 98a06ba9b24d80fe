"""Recording features while a model runs; a wrong feature is refused."""

import difflib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only

from .source import FeatureSource
from .tokens import TokenGrid

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

    def feature(
        self, model: nn.Module | None, indices: Sequence[int] = (), run: int | None = None
    ) -> Tensor:
        """Give what the module produced.

        Args:
            model (nn.Module, optional): The model that ran, for errors.
            indices (Sequence[int]): Indices into the output if that is a tuple or list, of others
                perhaps. Defaults to none.
            run (int, optional): Which run of the module is meant, if it ran several times.

        Returns:
            Tensor: The feature.

        Raises:
            RuntimeError: If the module ran not at all, more than once and it is not said which run is
                meant, or its output was overwritten since.
            TypeError: If an index is missing, or given for an output that has none.
            IndexError: If an index or the run is out of range.
        """
        name = repr(self.path)
        verb = 'is given' if self.is_input else 'outputs'
        source = FeatureSource(self.path, is_input=self.is_input, run=run)
        if not self.outputs:
            raise RuntimeError(f'{name} produced no feature: {self._why_nothing(model)}')
        number = len(self.outputs)
        if run is None and number > 1:
            raise RuntimeError(
                f'{name} produced {number} features in one forward, and it is not clear which one '
                f'is meant: {self._runs(source)}. Name one of them so, or choose a module that runs '
                'once (a head that all levels of a neck share runs once per level: distil the outputs '
                'of the neck instead).'
            )
        if run is not None and not -number <= run < number:
            raise IndexError(
                f'{name} produced {number} features in one forward, so there is no [run={run}]: '
                f'{self._runs(source)}'
            )
        if self.is_overwritten:
            raise RuntimeError(
                f'the feature of {name} was overwritten in place after it was recorded. Choose '
                'the module that overwrites it, or the next one.'
            )
        output = self.outputs[run or 0]
        for position in range(len(indices) + 1):
            index = indices[position] if position < len(indices) else None
            if isinstance(output, (list, tuple)):
                notation = source._replace(index=tuple(indices[:position]) or None).text
                if index is None:
                    raise TypeError(
                        f'{name} {verb} a {type(output).__name__} of {len(output)}; say which one '
                        f"with an index, such as '{notation}[0]'"
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

    def _runs(self, source: FeatureSource) -> str:
        """List what each run gave, by its name."""
        return ', '.join(
            f'{source._replace(run=number).text!r} gave '
            + (' and '.join(str(tuple(t.shape)) for t in _tensors(output)[:4]) or 'no tensor')
            for number, output in enumerate(self.outputs)
        )

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
        sources (Sequence[FeatureSource]): The features.
        grids (dict[FeatureSource, TokenGrid]): The grids of those that are sequences.
    """

    def __init__(
        self,
        model: nn.Module,
        records: dict[tuple[str, bool], ModuleRecord],
        sources: Sequence[FeatureSource],
        grids: dict[FeatureSource, TokenGrid],
    ) -> None:
        self._model = model
        self._records = records
        self._sources = sources
        self._grids = grids
        # rows and columns of the maps that a module put out last, by the feature they are for
        self.sizes: dict[FeatureSource, tuple[tuple[int, int], ...]] = {}

    @property
    def is_complete(self) -> bool:
        """Whether all features are there, whatever the model does from here on."""
        # which run is the last one, only the end of the forward tells
        return self.has_all and all((source.run or 0) >= 0 for source in self._sources)

    @property
    def has_all(self) -> bool:
        """Whether all features are there; a module may run once more."""
        return all(
            len(self._records[source.module, source.is_input].outputs) >= _runs_needed(source.run)
            for source in self._sources
        )

    @property
    def overwritten(self) -> frozenset[str]:
        """Paths of the modules whose outputs something has worked on in place."""
        return frozenset(r.path for r in self._records.values() if r.is_overwritten)

    def accept_overwriting(self) -> None:
        """Take overwritten features as they are, for their shapes."""
        for record in self._records.values():
            record.accept_overwriting()

    def feature(self, source: FeatureSource) -> Tensor:
        """Give a feature, tokens as a map.

        Raises:
            RuntimeError, TypeError, IndexError: As :meth:`ModuleRecord.feature`; ``RuntimeError`` also
                if the grid of tokens is not known.
        """
        value = self.as_recorded(source)
        if not source.is_tokens:
            return value
        if source not in self.sizes:
            raise RuntimeError(
                f'the grid of {source.text!r} is not known: '
                + (
                    f'{self._grids[source].module!r}, which tells it, did not run'
                    if source in self._grids
                    else 'it is found in a dry run of the model, and there was none'
                )
            )
        return self._grids[source].to_map(value, self.sizes[source], source)

    def as_recorded(self, source: FeatureSource) -> Tensor:
        """Give a feature as the model put it out, tokens as a sequence."""
        record = self._records[source.module, source.is_input]
        return record.feature(self._model, source.indices, source.run)


class FeatureCapture(NamedTuple):
    """Which features of a model are recorded.

    Attributes:
        sources (tuple[FeatureSource, ...]): Their names.
        copied (frozenset[str]): Paths of modules whose output is copied when it is recorded, because
            the model overwrites it in place (``out += identity`` behind a ResNet block's last norm,
            say).
        grids (dict[FeatureSource, TokenGrid]): How the features that are sequences become maps.
    """

    sources: tuple[FeatureSource, ...] = ()
    copied: frozenset[str] = frozenset()
    grids: dict[FeatureSource, TokenGrid] = {}

    @property
    def modules(self) -> set[str]:
        """Paths of the modules that are recorded."""
        return {source.module for source in self.sources}

    @property
    def hooked(self) -> set[str]:
        """Paths of the modules that hooks watch: those recorded, and those that tell a grid."""
        return self.modules | {grid.module for grid in self.grids.values()}

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
            for source in self.sources:
                path, is_input = source.module, source.is_input
                if (path, is_input) in records:
                    continue
                record = ModuleRecord(path, is_input, path in self.copied)
                records[path, is_input] = record
                hooks.callback(_hook(find_module(model, path), record).remove)
            recording = Recording(model, records, self.sources, self.grids)
            for source, grid in self.grids.items():
                hook = partial(_note_sizes, recording, source, grid)
                handle = model.get_submodule(grid.module).register_forward_hook(hook)
                hooks.callback(handle.remove)
            yield recording

    def features(
        self, recording: Recording, role: str, as_recorded: bool = False
    ) -> dict[FeatureSource, Tensor]:
        """Give the features of a forward.

        Args:
            recording (Recording): What :meth:`record` gave.
            role (str): 'student' or 'teacher', for errors.
            as_recorded (bool): Leave tokens the sequences that they are. Defaults to False.

        Returns:
            dict[FeatureSource, Tensor]: Each feature by its name.

        Raises:
            RuntimeError, TypeError, IndexError: As :meth:`Recording.feature`; the text begins with the
            role.
        """
        give = recording.as_recorded if as_recorded else recording.feature
        try:
            return {source: give(source) for source in self.sources}
        except (RuntimeError, TypeError, IndexError) as error:
            raise type(error)(f'{role}: {error}') from error


def _runs_needed(run: int | None) -> int:
    """How often a module must run for a run of it to be there."""
    if run is None:
        return 1
    return run + 1 if run >= 0 else -run


def _note_sizes(
    recording: Recording,
    source: FeatureSource,
    grid: TokenGrid,
    module: nn.Module,
    args: tuple,
    output: Any,
) -> None:
    recording.sizes[source] = grid.sizes(output)


def _hook(module: nn.Module, record: ModuleRecord) -> Any:
    if record.is_input:
        # before the module runs: it may work in place
        return module.register_forward_pre_hook(
            lambda module, args: record.append(args[0] if args else None)
        )
    return module.register_forward_hook(lambda module, args, output: record.append(output))
