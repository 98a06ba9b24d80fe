"""One teacher for several students of a process that see the same batches."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..compat import autocast_dtype, is_autocast_enabled
from ..features import FeatureCapture, FeatureSource

if TYPE_CHECKING:
    from .frozen_teacher import FrozenTeacher

__all__ = ['SharedTeacher']


class _Batch(NamedTuple):
    """What the teacher gave for a batch, and what it depends on."""

    inputs: Tensor
    state: tuple
    features: dict[FeatureSource, Tensor]
    versions: tuple[int, ...]

    @property
    def is_unchanged(self) -> bool:
        return self.versions == tuple(f._version for f in self.features.values())


class SharedTeacher:
    """Runs one teacher once for each batch, for all students that join.

    It records the features of all of them, and keeps them with the images of the student. Another
    student gets them if its images are equal, and if the random numbers and the type of autocast are
    those of the run. Else the teacher runs again: what is shared never changes a result.

    Attributes:
        runs (int): How often the teacher has run.
        uses (int): How often features were asked for.
        most_kept (int): Of how many batches it had the features at one time, at most.
    """

    def __init__(self) -> None:
        self._teachers: list[FrozenTeacher] = []
        self._batches: list[_Batch] = []
        self._capture = FeatureCapture()
        self.runs = 0
        self.uses = 0
        self.most_kept = 0

    def join(self, teacher: 'FrozenTeacher') -> str | None:
        """Let a student's teacher be the one of those that joined before.

        Args:
            teacher (FrozenTeacher): Of one student, on its device. Its model is freed.

        Returns:
            str | None: Why it stays a teacher of its own; None if it has joined.
        """
        reason = self._obstacle(teacher)
        if reason is not None:
            return reason
        if self._teachers:
            first = self._teachers[0]
            teacher.model, teacher.compute = first.model, first.compute
            teacher.is_borrowed = True
        self._teachers.append(teacher)
        teacher.shared = self
        self._capture = _union([t.capture for t in self._teachers])
        return None

    def leave(self, teacher: 'FrozenTeacher') -> None:
        """Record no more what a student needed that has ended.

        Args:
            teacher (FrozenTeacher): Of one that may have joined.
        """
        self._teachers = [other for other in self._teachers if other is not teacher]
        self._capture = _union([other.capture for other in self._teachers])

    def _obstacle(self, teacher: 'FrozenTeacher') -> str | None:
        """Say why a teacher cannot be the one of the others."""
        if teacher.has_recorders:
            return "MMRazor's recorders or deliveries watch the teacher"
        if teacher.compute.is_open:
            return (
                'teacher_speed looks for settings on its own. Give teacher_precision, '
                'teacher_channels_last and teacher_compile instead'
            )
        if not self._teachers:
            return None
        first = self._teachers[0]
        if type(teacher.model) is not type(first.model):
            return f'the teacher is a {type(teacher.model).__name__}'
        for name, own, other in (
            ('speed settings', teacher.compute.settings, first.compute.settings),
            ('teacher_input', teacher.input_size, first.input_size),
        ):
            if own != other:
                return f"the teacher's {name} are {own}, not {other}"
        has_graphs = first.compute.settings.graphs is not False
        if has_graphs and teacher.capture.hooked != first.capture.hooked:
            return 'the teacher is compiled, and its graphs are cut at other features'
        # a random teacher follows from what was built before it
        own, other = teacher.model.state_dict(), first.model.state_dict()
        differing = [k for k in own.keys() | other.keys() if not _equal(own.get(k), other.get(k))]
        if differing:
            return f'the weights of the teacher differ ({min(differing)})'
        return None

    def forget(self) -> None:
        """Free the features of all batches: all students have used them."""
        self._batches = []

    @torch.no_grad()
    def extract_features(
        self, teacher: 'FrozenTeacher', inputs: Tensor, data_samples: list | None
    ) -> dict[FeatureSource, Tensor]:
        """Give a student the features that it needs of a batch.

        Args:
            teacher (FrozenTeacher): The student's; has joined.
            inputs (Tensor): The student's images, shape (B, C, H, W).
            data_samples (list, optional): What belongs to them.

        Returns:
            dict[FeatureSource, Tensor]: As of ``FrozenTeacher.extract_features``.
        """
        self.uses += 1
        device_type = inputs.device.type
        # the seed that the distillation gave this run of the teacher
        low = autocast_dtype(device_type) if is_autocast_enabled(device_type) else None
        state = (torch.initial_seed(), low, inputs.dtype)
        found = None
        for batch in self._batches:
            is_same = batch.state == state and batch.is_unchanged
            if is_same and torch.equal(batch.inputs, inputs):
                found = batch.features
        if found is None:
            self.runs += 1
            found = teacher.run(inputs, data_samples, self._capture)
            versions = tuple(feature._version for feature in found.values())
            self._batches.append(_Batch(inputs, state, found, versions))
            self.most_kept = max(self.most_kept, len(self._batches))
        return {source: found[source] for source in teacher.capture.sources}


def _equal(own: Any, other: Any) -> bool:
    if isinstance(own, Tensor) and isinstance(other, Tensor):
        return own.dtype == other.dtype and own.device == other.device and torch.equal(own, other)
    return own is None and other is None


def _union(captures: Sequence[FeatureCapture]) -> FeatureCapture:
    """Record what any of them does."""
    sources = dict.fromkeys(source for capture in captures for source in capture.sources)
    grids = {source: grid for capture in captures for source, grid in capture.grids.items()}
    copied = frozenset().union(*(capture.copied for capture in captures))
    return FeatureCapture(tuple(sources), copied, grids)
