"""Everything that knows MMRazor's recorders, deliveries and mappings.

A config may have them beside pairs of features, or instead of pairs. MMRazor keeps what they record in
buffers of their own; the rest of this package passes features as values. It is one file on purpose: no
other one has to know MMRazor's interfaces.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from mmrazor.models import ConfigurableDistiller as _ConfigurableDistiller
from mmrazor.models.task_modules.recorder import ModuleOutputsRecorder, ParameterRecorder
from mmrazor.models.task_modules.recorder.base_recorder import BaseRecorder
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ..registry import MODELS, register_task_util
from .recorder import FeatureCapture, ModuleRecord, Recording, find_module

__all__ = [
    'ComparingDistiller',
    'ConfigurableDistiller',
    'FeatureRecorder',
    'PairsRecorder',
    'RazorSide',
    'for_module',
]

# The recorder of the pairs among MMRazor's.
_PAIRS = 'pairs of features'


def for_module(module: nn.Module, value: Any) -> Any:
    """Give a tensor, or what holds tensors, in the layout that a loss or connector accepts.

    Heads of transformers and models that run channels last give maps that are not contiguous. Most
    losses and connectors call ``view``, which fails on them.

    Args:
        module (nn.Module): The loss or connector. One whose attribute ``any_layout`` is True, as that
            of our own, gets the value as it is: they read channels last where it lies, which costs
            less than a copy of both maps.
        value (Any): A tensor, or whatever holds tensors.

    Returns:
        Any: The same, its tensors contiguous; not copied where they were.
    """
    if getattr(module, 'any_layout', False):
        return value
    return tree_map_only(Tensor, Tensor.contiguous, value)


@MODELS.register_module(name='ConfigurableDistiller', force=True)
class ConfigurableDistiller(_ConfigurableDistiller):
    """MMRazor's ``ConfigurableDistiller``, in its place: losses and connectors get contiguous maps.

    Everything else is MMRazor's: see there for the arguments.
    """

    def get_record(
        self,
        recorder: str,
        from_student: bool,
        record_idx: int = 0,
        data_idx: int | None = None,
        connector: str | None = None,
        connector_idx: int | None = None,
    ) -> Any:
        """Give what a recorder holds, behind its connector if there is one.

        Args:
            recorder (str): Name of the recorder.
            from_student (bool): Whether it is one of the student's.
            record_idx (int): Which of its records, if its source runs several times.
            data_idx (int, optional): Index into the record if that is a tuple or list.
            connector (str, optional): Name of the connector.
            connector_idx (int, optional): Index into what the connector gives.

        Returns:
            Any: The record; a tensor as a rule.
        """
        record = super().get_record(recorder, from_student, record_idx, data_idx)
        if connector:
            module = self.connectors[connector]
            record = module(for_module(module, record))
        return record if connector_idx is None else record[connector_idx]

    def compute_distill_losses(self) -> dict[str, Tensor]:
        """Compute the losses of ``loss_forward_mappings`` from what the recorders hold.

        Returns:
            dict[str, Tensor]: The losses by name.
        """
        losses = {}
        for name, mappings in self.loss_forward_mappings.items():
            loss = self.distill_losses[name]
            losses[name] = loss(
                **{key: for_module(loss, self.get_record(**m)) for key, m in mappings.items()}
            )
        return losses


@register_task_util
class FeatureRecorder(ModuleOutputsRecorder):
    """MMRazor's ``ModuleOutputsRecorder`` for one feature of one forward.

    It raises where MMRazor's recorder goes on or fails without an explanation: the module does not
    exist, did not run, ran more than once, or its output was overwritten in place after it was
    recorded (``out += identity`` behind a ResNet block's last norm, say). In a recorder config its type
    is ``'Feature'``.

    Args:
        source (str): Path of the module in ``model.named_modules()``.
        is_input (bool): Record the module's first positional argument instead of its output.
            Defaults to False.
    """

    def __init__(self, source: str, is_input: bool = False) -> None:
        super().__init__(source)
        self.is_input = is_input
        self._record = ModuleRecord(source, is_input)
        self._model: nn.Module | None = None
        self._hooked: nn.Module | None = None

    @property
    def data_buffer(self) -> list:
        """What was recorded, an entry for each call of the module."""
        return self._record.outputs

    def prepare_from_model(self, model: nn.Module | None = None) -> None:
        """Hook the module.

        Raises:
            ValueError: If the model has no such module; names the closest that it has.
        """
        find_module(model, self.source)
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
        """Record the output."""
        if self.recording:
            self._record.append(outputs)

    def reset_data_buffer(self) -> None:
        """Forget what was recorded."""
        self._record.clear()

    def convert(self, function: Callable[[Any], Any]) -> None:
        """Replace what was recorded, unless it was overwritten: :meth:`get_record_data` says so.

        Args:
            function (Callable): Takes and gives a recorded output.
        """
        if not self._record.is_overwritten:
            self._record.outputs[:] = [function(output) for output in self._record.outputs]
            self._record.accept_overwriting()

    def get_record_data(self, record_idx: int = 0, data_idx: int | None = None) -> Tensor:
        """Give what the module produced in the last forward.

        Args:
            record_idx (int): Must be 0, there is one record.
            data_idx (int, optional): Index into the output if that is a tuple or list.

        Returns:
            Tensor: The feature.

        Raises:
            RuntimeError: If the module ran not at all, more than once, or its output was
                overwritten since.
            TypeError: If an index is missing, or given for an output that has none.
            IndexError: If an index is out of range.
        """
        feature = self._record.feature
        if record_idx != 0 and len(self.data_buffer) == 1:
            raise IndexError(
                f'{self.source!r} has one record, record_idx must be 0, got {record_idx}'
            )
        return feature(self._model, () if data_idx is None else (data_idx,))


class PairsRecorder(BaseRecorder):
    """Records a model's features of pairs for an algorithm of MMRazor's.

    Such an algorithm enters the recorders of its distiller around each forward and asks for losses
    without arguments.

    Args:
        role (str): 'student' or 'teacher', for errors.
        capture (FeatureCapture): The features. Defaults to none.

    Attributes:
        model (nn.Module | None): The model that is recorded.
    """

    def __init__(self, role: str, capture: FeatureCapture | None = None) -> None:
        super().__init__('pairs')
        self.capture = capture or FeatureCapture()
        self.model: nn.Module | None = None
        self._role = role
        self._context: Any = None
        self._recording: Recording | None = None

    def prepare_from_model(self, model: nn.Module | None = None) -> None:
        """Remember the model whose features are recorded."""
        self.model = model

    def __enter__(self) -> None:
        super().__enter__()
        self._context = self.capture.record(self.model)
        self._recording = self._context.__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._context.__exit__(*error)
        self._context = None

    def reset_data_buffer(self) -> None:
        """Forget the features."""
        super().reset_data_buffer()
        self._recording = None

    @property
    def features(self) -> dict:
        """The features of the last forward; see :meth:`FeatureCapture.features`."""
        return self.capture.features(self._recording, self._role)


class ComparingDistiller(ConfigurableDistiller):
    """A distiller that compares features, for our algorithm and for those of MMRazor.

    A subclass has ``prepare(student, teacher)``, which gives how to record the features of either
    model, and ``compare(student, teacher)``, which gives losses. Our algorithm calls the two. MMRazor's
    algorithms call the methods below: they hand over each model by itself, enter the recorders of the
    distiller around each forward, and ask for losses without arguments.

    Attributes:
        last_comparison (Comparison | None): What the last iteration compared, without gradient.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.last_comparison: Any = None

    def hook_recorders(self, student: nn.Module, teacher: nn.Module) -> None:
        """Let MMRazor's recorders hook the two models."""
        self.student_recorders.initialize(student)
        self.teacher_recorders.initialize(teacher)

    def mapped_losses(self) -> dict[str, Tensor]:
        """Compute the losses of ``loss_forward_mappings`` from what MMRazor's recorders hold."""
        return ConfigurableDistiller.compute_distill_losses(self)

    def prepare_from_student(self, model: nn.Module) -> None:
        """Remember the student until the teacher is known."""
        self.student_recorders.recorders[_PAIRS] = recorder = PairsRecorder('student')
        recorder.initialize(model)

    def prepare_from_teacher(self, model: nn.Module) -> None:
        """Run both models once and build what depends on the shapes of their features."""
        student = self.student_recorders.recorders.pop(_PAIRS).model
        runs = self.prepare(student, model)
        managers = self.student_recorders, self.teacher_recorders
        roles = ('student', 'teacher')
        for role, manager, run, hooked in zip(roles, managers, runs, (student, model)):
            manager.recorders[_PAIRS] = PairsRecorder(role, run.capture)
            manager.recorders[_PAIRS].initialize(hooked)

    def compute_distill_losses(self) -> dict[str, Tensor]:
        """Compare the features that were recorded.

        Returns:
            dict[str, Tensor]: The losses by name.

        Raises:
            RuntimeError: If a feature was not produced in the last forward, or more than once, or
                overwritten; or as ``compare``.
        """
        self.last_comparison = None
        recorders = [m.recorders[_PAIRS] for m in (self.student_recorders, self.teacher_recorders)]
        comparison = self.compare(*(recorder.features for recorder in recorders))
        self.last_comparison = comparison.detach()
        return comparison.losses


class RazorSide:
    """What MMRazor's recorders and deliveries do with one of the two models of a distillation.

    Args:
        distiller (ConfigurableDistiller): MMRazor's or one that derives from it.
        role (str): 'student' or 'teacher'.
    """

    def __init__(self, distiller: _ConfigurableDistiller, role: str) -> None:
        self._distiller = distiller
        self._role = role

    @property
    def _manager(self) -> Any:
        is_student = self._role == 'student'
        return (
            self._distiller.student_recorders if is_student else self._distiller.teacher_recorders
        )

    @property
    def recorders(self) -> list[BaseRecorder]:
        """The recorders of the model, but for those of its parameters."""
        recorders = self._manager.recorders.values()
        return [r for r in recorders if not isinstance(r, ParameterRecorder)]

    @property
    def modules(self) -> set[str]:
        """Paths of the modules that are recorded."""
        return {r.source for r in self.recorders if isinstance(r, ModuleOutputsRecorder)}

    @property
    def parameters(self) -> set[str]:
        """Names of the parameters that are recorded."""
        recorders = self._manager.recorders.values()
        return {r.source for r in recorders if isinstance(r, ParameterRecorder)}

    @property
    def needs_whole_forward(self) -> bool:
        """Whether something else than modules is recorded or delivered: its end is not known."""
        return bool(self._distiller.deliveries.deliveries) or not all(
            isinstance(r, ModuleOutputsRecorder) for r in self.recorders
        )

    @property
    def is_complete(self) -> bool:
        """Whether every recorder has as many records as the mappings of the losses ask for."""
        return all(
            len(recorder.data_buffer) >= self._records_needed(name)
            for name, recorder in self._manager.recorders.items()
        )

    def _records_needed(self, name: str) -> int:
        """The number of records that a mapping needs: more than one if it names a later one."""
        indices = [
            record.get('record_idx', 0)
            for mapping in self._distiller.loss_forward_mappings.values()
            for record in mapping.values()
            if record.get('from_student', True) == (self._role == 'student')
            and record.get('recorder') == name
        ]
        return 1 + max(indices, default=0)

    @contextmanager
    def record(self, model: nn.Module, is_borrowed: bool = False) -> Iterator[None]:
        """Record, and let deliveries take from the teacher and give to the student.

        Args:
            model (nn.Module): The model that runs in the context.
            is_borrowed (bool): Whether the model belongs to another algorithm, of which this one is a
                copy. The recorders of a copy hook the shared model for the context alone: else each
                copy would leave hooks behind, and these would keep the copy alive.
        """
        self._distiller.set_deliveries_override(self._role == 'student')
        with _hooks_removed(model) if is_borrowed else nullcontext():
            if is_borrowed:
                self._manager.initialize(model)
            with self._manager, self._distiller.deliveries:
                yield

    def convert(self, function: Callable[[Tensor], Tensor]) -> None:
        """Replace each recorded tensor by what a function makes of it."""

        def convert(record: Any) -> Any:
            return tree_map_only(Tensor, function, record)

        for recorder in self.recorders:
            if isinstance(recorder, FeatureRecorder):
                recorder.convert(convert)
            else:
                recorder.data_buffer[:] = [convert(record) for record in recorder.data_buffer]

    def clear(self) -> None:
        """Forget what was recorded."""
        for recorder in self._manager.recorders.values():
            recorder.reset_data_buffer()


@contextmanager
def _hooks_removed(model: nn.Module) -> Iterator[None]:
    """Remove the forward hooks that modules get within the context."""
    tables = [t for m in model.modules() for t in (m._forward_hooks, m._forward_pre_hooks)]
    before = [set(table) for table in tables]
    try:
        yield
    finally:
        for table, keys in zip(tables, before):
            for key in set(table) - keys:
                del table[key]
