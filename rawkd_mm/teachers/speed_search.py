"""Finds the fastest settings in which a teacher still gives the same gradient, by measuring them."""

import gc
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..compat import is_autocast_enabled
from ..training.device_name import device_name
from .frozen_teacher import FrozenTeacher
from .speed import PRECISIONS, SpeedSettings

__all__ = ['SpeedOptions', 'SpeedResult', 'SpeedRow', 'list_candidates', 'search_speed']

# By how much the gradient may change between two computations in float32: in another order, or in TF32,
# which has as many digits as float16.
_ROUNDING = 5e-3
# What is not faster by as much as this is noise.
_GAIN = 0.02
# What graphs save of the teacher's time, and the seconds that a module with weights takes to compile:
# expected before it is measured.
_GRAPHS_SAVE, _COMPILE_SECONDS = 0.15, 0.3
# A precision is left out without a run of the teacher if one operation takes this many times as long as
# in float32: an emulated one may take minutes.
_HOPELESS = 4.0
# The share of the schedule that may be spent.
_SHARE = 0.005


class SpeedOptions(NamedTuple):
    """How the fastest settings of a teacher are looked for.

    Attributes:
        tolerance (float): By how much the gradient of the loss may change in low precision, relative
            to that with a teacher in float32; 0 for float32 only.
        seconds (float): How long the search may take.
        iterations (int | None): How many iterations the training has; None for what MMEngine's Runner
            says. Without a Runner it is not known then, and no graphs are tried.
    """

    tolerance: float = 0.02
    seconds: float = 60.0
    iterations: int | None = None

    @classmethod
    def parse(cls, config: str | dict | None) -> 'SpeedOptions | None':
        """Read and check ``teacher_speed`` of a config.

        Args:
            config (str | dict, optional): 'auto', or ``dict(type='auto')`` with some of the
                attributes above.

        Returns:
            SpeedOptions | None: The options; None for None.

        Raises:
            TypeError: If it is none of these, or the dict has another key.
            ValueError: If a value is out of range.
        """
        if config is None:
            return None
        options = dict(config) if isinstance(config, dict) else dict(type=config)
        unknown = set(options) - {'type', *cls._fields}
        if options.pop('type', 'auto') != 'auto' or unknown:
            raise TypeError(
                "teacher_speed must be 'auto', a dict such as dict(type='auto', tolerance=0.02) with "
                f'some of {", ".join(cls._fields)}, or None, got {config!r}'
            )
        result = cls(**options)
        if not 0 <= result.tolerance < math.inf:
            raise ValueError(
                f'teacher_speed: tolerance must be at least 0, got {result.tolerance!r}'
            )
        if not 0 < result.seconds < math.inf:
            raise ValueError(f'teacher_speed: seconds must be above 0, got {result.seconds!r}')
        if result.iterations is not None and not (
            isinstance(result.iterations, int) and result.iterations > 0
        ):
            raise ValueError(
                f'teacher_speed: iterations must be an integer above 0, or None for what the Runner '
                f'says, got {result.iterations!r}'
            )
        return result


class SpeedRow(NamedTuple):
    """What was found out about some settings.

    Attributes:
        settings (SpeedSettings): The settings.
        seconds (float | None): The shortest run of the teacher; None if none was timed.
        change (float | None): By how much the gradient changes, relative to a teacher in float32; None
            of float32 itself, and if it was not computed.
        note (str): Why the settings are not taken, if there is a reason beside the time.
    """

    settings: SpeedSettings
    seconds: float | None = None
    change: float | None = None
    note: str = ''


class SpeedResult(NamedTuple):
    """What a search has found.

    Attributes:
        chosen (SpeedSettings): The fastest settings that passed the check.
        rows (tuple[SpeedRow, ...]): All that was tried; the first is the teacher as it comes.
        device (str): Where.
        images (tuple[int, ...]): Shape of the batch.
        options (SpeedOptions): How it was looked for.
        took (float): Seconds of the search.
    """

    chosen: SpeedSettings
    rows: tuple[SpeedRow, ...]
    device: str
    images: tuple[int, ...]
    options: SpeedOptions
    took: float

    @property
    def table(self) -> str:
        """The result in a few lines, for logs."""
        lines = [
            f'teacher_speed: the teacher on images of {"x".join(map(str, self.images))}, on '
            f'{self.device}; taken: {self.chosen.text}'
        ]
        for row in self.rows:
            cells = [
                f'  {row.settings.text:<30}',
                '' if row.seconds is None else f'{row.seconds * 1000:.1f} ms',
                '' if row.change is None else f'gradient changed by {row.change:.3%}',
                row.note,
            ]
            lines.append('  '.join(cell for cell in cells if cell).rstrip())
        return '\n'.join([*lines, f'  measured in {self.took:.1f} s'])

    @property
    def as_dict(self) -> dict[str, Any]:
        """The result as plain values, for a JSON file."""
        rows = [dict(row.settings._asdict(), **row._asdict()) for row in self.rows]
        for row in rows:
            del row['settings']
        return dict(
            chosen=self.chosen._asdict(),
            device=self.device,
            images=list(self.images),
            options=self.options._asdict(),
            seconds=self.took,
            settings=rows,
        )


def list_candidates(
    precision: str | None, channels_last: bool | None, tolerance: float
) -> list[SpeedSettings]:
    """Give the settings to compare, without graphs; first the teacher as it comes.

    Args:
        precision (str | None): What is given and not looked for.
        channels_last (bool | None): Likewise.
        tolerance (float): Of :class:`SpeedOptions`.

    Returns:
        list[SpeedSettings]: At least one.
    """
    precisions = [precision]
    if precision is None and tolerance > 0:
        precisions += ['bf16', 'fp16']
    layouts = [False, True] if channels_last is None else [channels_last]
    return [SpeedSettings(p, layout) for p in precisions for layout in layouts]


def search_speed(
    teacher: FrozenTeacher,
    batch: tuple[Tensor, list | None],
    candidates: Sequence[SpeedSettings],
    gradient: Callable[[dict], list[Tensor]],
    options: SpeedOptions,
    graphs: Sequence[SpeedSettings] = (),
    forget: Callable[[], None] = lambda: None,
) -> SpeedResult:
    """Run a teacher in several settings and leave it in the fastest that passes the check.

    Each runs once for its features and the gradient, then two to five times for the time. Settings fail
    the check if a feature or the gradient is not finite, or if the gradient changes by more than the
    tolerance. Under a student in mixed precision the teacher as it comes may change it by more, and then
    so may the others.

    Args:
        teacher (FrozenTeacher): As it was loaded.
        batch (tuple): The student's images, shape (B, C, H, W), and what belongs to them.
        candidates (Sequence[SpeedSettings]): What to compare, without graphs; the teacher as it comes is
            the first.
        gradient (Callable): Takes the teacher's features and gives the gradients of the loss, always of
            the same student, with the same random numbers.
        options (SpeedOptions): Tolerance, time, and the length of the training.
        graphs (Sequence[SpeedSettings]): With graphs: of these, the one with the precision of the
            fastest candidate is tried, if the training is long enough to pay for it. Defaults to none.
        forget (Callable): Empties what records beside the features. Called before each run of the
            teacher, and at the end. Defaults to nothing.

    Returns:
        SpeedResult: What was found.
    """
    return _Search(teacher, batch, gradient, options, forget).run(candidates, graphs)


class _Search:
    def __init__(
        self,
        teacher: FrozenTeacher,
        batch: tuple,
        gradient: Callable,
        options: SpeedOptions,
        forget: Callable,
    ) -> None:
        self.teacher, self.batch, self.gradient, self.options = teacher, batch, gradient, options
        self.forget = forget
        self.device = batch[0].device
        self.is_student_low = is_autocast_enabled(self.device.type)
        self.begin = time.perf_counter()
        self.limit = options.seconds
        self.expected: list[Tensor] | None = None
        self.restore = teacher.compute.remember()

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.begin

    def run(
        self, candidates: Sequence[SpeedSettings], graphs: Sequence[SpeedSettings]
    ) -> SpeedResult:
        start = self._start(candidates[0])
        rows, hopeless = [start], {}
        schedule = (self.options.iterations or 0) * (start.seconds or 0)
        if schedule:
            self.limit = min(self.limit, _SHARE * schedule)
        for settings in candidates[1:]:
            precision = settings.precision
            if precision not in hopeless:
                hopeless[precision] = self._why_hopeless(precision, start)
                if hopeless[precision]:
                    rows.append(SpeedRow(settings, note=hopeless[precision]))
            if not hopeless[precision]:
                rows.append(self._try(settings, start, self._fastest(rows, start)))
        fastest = self._fastest(rows, start)
        if fastest is not start and self.elapsed + 6 * start.seconds < self.limit:
            # not because the machine was busy when it was measured
            self._enter(start.settings)
            again = self._time(math.inf)
            rows[0] = start = start._replace(seconds=min(start.seconds, again))
            fastest = self._fastest(rows, start)
        for settings in graphs:
            if settings.precision == fastest.settings.precision:
                reason = self._why_no_graphs(fastest, schedule)
                if reason:
                    rows.append(SpeedRow(settings, note=reason))
                else:
                    self.limit = math.inf  # begun, it is measured to its end
                    rows.append(self._try(settings, start, fastest))
        chosen = self._fastest(rows, start).settings
        if self.teacher.compute.settings != chosen:
            self._enter(chosen)
        result = SpeedResult(
            chosen,
            tuple(rows),
            device_name(self.device),
            tuple(self.batch[0].shape),
            self.options,
            self.elapsed,
        )
        self.restore = self.expected = None
        self.forget()
        gc.collect()
        if self.device.type == 'cuda':
            torch.cuda.empty_cache()
        return result

    def _enter(self, settings: SpeedSettings) -> None:
        self.restore()
        self.teacher.compute.apply(settings)

    def _is_float32(self, settings: SpeedSettings) -> bool:
        return settings.precision == 'fp32' or (
            settings.precision is None and not self.is_student_low
        )

    def _start(self, settings: SpeedSettings) -> SpeedRow:
        """Measure the teacher as it comes, and keep the gradient with one in float32."""
        if not self._is_float32(settings):
            self._enter(settings._replace(precision='fp32'))
            self.expected = self.gradient(self._features())
        self._enter(settings)
        features = self._features()
        is_finite, gradient = _are_finite(features.values()), self.gradient(features)
        del features
        change = None
        if self.expected is None:
            self.expected = gradient
        else:
            change = _relative_change(gradient, self.expected)
        note = '' if is_finite and _are_finite(gradient) else 'not finite'
        return SpeedRow(settings, self._time(math.inf), change, note)

    def _try(self, settings: SpeedSettings, start: SpeedRow, fastest: SpeedRow) -> SpeedRow:
        if self.elapsed + 3 * start.seconds > self.limit:
            return SpeedRow(settings, note='not measured: no time left')
        try:
            self._enter(settings)
            begin = self.elapsed
            features = self._features()
            first = self.elapsed - begin
            # Graphs are made in the first run, and cuDNN tries its algorithms.
            if (
                settings.graphs is False
                and self.device.type == 'cpu'
                and first > max(5.0, 20 * start.seconds)
            ):
                return SpeedRow(settings, first, note='refused: far too slow')
            if not _are_finite(features.values()):
                return SpeedRow(settings, note='refused: a feature is not finite')
            change = _relative_change(self.gradient(features), self.expected)
            del features
            # NaN must not pass
            allowed = self._allowed(settings, start)
            if not change <= allowed:
                return SpeedRow(settings, None, change, f'refused: above {allowed:.3%}')
            return SpeedRow(settings, self._time(1.5 * fastest.seconds), change)
        except Exception as error:  # no compiler, not enough memory, no such operation
            reason = (str(error).strip() or '?').splitlines()[0][:150]
            return SpeedRow(settings, note=f'failed: {type(error).__name__}: {reason}')

    def _allowed(self, settings: SpeedSettings, start: SpeedRow) -> float:
        if self._is_float32(settings):
            return _ROUNDING
        # another order of the same low precision changes about as much
        return max(self.options.tolerance, 1.25 * (start.change or 0.0))

    @staticmethod
    def _fastest(rows: Sequence[SpeedRow], start: SpeedRow) -> SpeedRow:
        timed = [row for row in rows if row.seconds is not None and not row.note]
        fastest = min(timed, key=lambda row: row.seconds, default=start)
        return fastest if fastest.seconds < (1 - _GAIN) * start.seconds else start

    def _features(self) -> dict:
        self.forget()
        return self.teacher.extract_features(*self.batch)

    def _time(self, hopeless: float) -> float:
        """Give the shortest of two to five runs; of one if it takes more than ``hopeless`` seconds."""
        best, runs, begin = math.inf, 0, self.elapsed
        while runs < 2 or (runs < 5 and self.elapsed - begin < self.limit / 20):
            best, runs = min(best, _seconds(self._features, self.device)), runs + 1
            if best > hopeless:
                break
        return best

    def _why_hopeless(self, precision: str | None, start: SpeedRow) -> str:
        """Tell why a precision need not be tried; '' if it is worth it."""
        if precision in (start.settings.precision, None, 'fp32'):
            return ''
        try:
            ratio = _slowness(PRECISIONS[precision], self.device)
        except Exception as error:
            reason = (str(error).strip() or '?').splitlines()[0][:150]
            return f'left out: {reason}'
        if ratio <= _HOPELESS:
            return ''
        return f'left out: an operation takes {ratio:.0f} times as long as in float32'

    def _why_no_graphs(self, fastest: SpeedRow, schedule: float) -> str:
        """Tell why graphs need not be tried; '' if they pay."""
        if not schedule:
            return 'not tried: it is not known how long the training is (iterations)'
        modules = self.teacher.model.modules()
        weighty = sum(next(m.parameters(recurse=False), None) is not None for m in modules)
        takes = _COMPILE_SECONDS * weighty
        saved = _GRAPHS_SAVE * fastest.seconds * self.options.iterations
        limit = max(self.options.seconds, _SHARE * schedule)
        if saved < 2 * takes or self.elapsed + takes > limit:
            return (
                f'not tried: it may take {takes:.0f} s and save {saved:.0f} s of the training; at most '
                f'{limit:.0f} s are to be spent'
            )
        return ''


def _are_finite(values: Sequence[Tensor]) -> bool:
    return all(bool(value.isfinite().all()) for value in values)


def _relative_change(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Give the length of the difference, relative to that of the second."""
    difference, length = (
        math.sqrt(sum(float(x.double().square().sum()) for x in vectors))
        for vectors in ([a.double() - b.double() for a, b in zip(found, expected)], expected)
    )
    if length == 0:
        return 0.0 if difference == 0 else math.inf
    return difference / length


def _seconds(function: Callable, device: torch.device) -> float:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    function()
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


@torch.no_grad()
def _slowness(dtype: torch.dtype, device: torch.device) -> float:
    """Measure how many times as long as in float32 an operation takes; the worse of two."""
    operations = [
        (F.conv2d, (1, 128, 32, 32), (128, 128, 3, 3)),
        (F.linear, (1024, 512), (512, 512)),
    ]
    ratios = []
    for operation, *shapes in operations:
        seconds = []
        for kind in (torch.float32, dtype):
            arguments = [torch.ones(shape, device=device, dtype=kind) for shape in shapes]

            def run(operation=operation, arguments=arguments) -> None:
                with torch.autocast(device.type, enabled=False):
                    operation(*arguments)

            first = _seconds(run, device)
            if seconds and first > 50 * seconds[0]:
                seconds.append(first)
            else:
                seconds.append(min(_seconds(run, device) for _ in range(3)))
        ratios.append(seconds[1] / seconds[0])
    return max(ratios)
