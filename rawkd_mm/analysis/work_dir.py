"""What a training left in its work dir: config, checkpoint, curves, environment, command, time."""

import re
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path

from .training_logs import (
    GEOMETRY,
    NOT_METRICS,
    iterations_per_epoch,
    read_geometry,
    read_scalars,
)

_COMMAND = re.compile(r' - INFO - Command: (.+)')
_TIME = re.compile(r'^(\d{4}/\d\d/\d\d \d\d:\d\d:\d\d) - ', re.MULTILINE)
_ENVIRONMENT = re.compile(r'\n-{60}\n(System environment:.+?)\n-{60}\n', re.DOTALL)


class WorkDirError(Exception):
    """A folder is no work dir, or lacks what is asked for; the message says what."""


@dataclass(frozen=True)
class WorkDir:
    """A training, in one or, where it was resumed, several sessions.

    Attributes:
        folder: The work dir.
        config_file: The config that was dumped, of the last session.
        sessions: Folders of the sessions that trained, in the order of time.
    """

    folder: Path
    config_file: Path
    sessions: list[Path]

    @classmethod
    def find(cls, folder: Path) -> 'WorkDir':
        """Look into a folder.

        Raises:
            WorkDirError: If it does not exist, or no training has logged anything in it.
        """
        if not folder.is_dir():
            raise WorkDirError(f'{str(folder)!r} is not a folder; give the work dir of a training')
        # a test in the same folder logs no loss
        sessions = [path.parents[1] for path in sorted(folder.glob('*/vis_data/scalars.json'))]
        sessions = [s for s in sessions if '"loss"' in (s / 'vis_data/scalars.json').read_text()]
        if not sessions:
            raise WorkDirError(
                f'{str(folder)!r} is not the work dir of a training: no '
                '<time>/vis_data/scalars.json in it has a loss. Give the folder that tools/train.py '
                'was given as --work-dir (a config logs there with a LocalVisBackend), after it has '
                'logged its first losses.'
            )
        configs = [sessions[-1] / 'vis_data/config.py', *sorted(folder.glob('*.py'))]
        configs = [path for path in configs if path.is_file()]
        if not configs:
            raise WorkDirError(
                f'{str(folder)!r} has no config (*.py), which a training dumps there'
            )
        return cls(folder, configs[0], sessions)

    def find_checkpoint(self) -> Path:
        """Give the last checkpoint: the one that last_checkpoint names, or the newest whole one.

        Raises:
            WorkDirError: If there is none.
        """
        from ..training.checkpoint_files import POINTER, why_not_whole

        files = sorted(self.folder.glob('*.pth'), key=lambda path: path.stat().st_mtime)[::-1]
        if (self.folder / POINTER).is_file():
            name = Path((self.folder / POINTER).read_text().strip()).name
            files.sort(key=lambda path: path.name != name)
        reasons = []
        for path in files:
            reason = why_not_whole(path)
            if reason is None:
                return path
            reasons.append(f'; {path.name}: {reason}')
        raise WorkDirError(
            f'{str(self.folder)!r} has no whole checkpoint (*.pth){"".join(reasons)}. Let the '
            'training save one, or leave out what needs it with --logs-only.'
        )

    @cached_property
    def per_epoch(self) -> int | None:
        """Iterations in an epoch; None if the training does not count in epochs."""
        return iterations_per_epoch(self.folder)

    def curve(self, name: str) -> dict[int, float]:
        """Give {iteration: value} of a value that was logged, in the order of the iterations."""
        return dict(sorted(self._curves.get(name, {}).items()))

    @cached_property
    def _curves(self) -> dict[str, dict[int, float]]:
        result, last = {}, 0
        for entry in read_scalars(self.folder):
            step = entry.get('step')
            is_validation = 'loss' not in entry and not any(k.startswith(GEOMETRY) for k in entry)
            if not is_validation:
                last = step
            elif self.per_epoch:
                step *= self.per_epoch  # MMEngine logs the epoch
            else:
                step = step or last  # the epoch, too, unless log_metric_by_epoch=False: always 0
            for name, value in entry.items():
                if isinstance(value, (int, float)):
                    result.setdefault(name, {})[step] = value
        return result

    @cached_property
    def losses(self) -> list[str]:
        """Names of the losses that were summed to the total, as MMEngine chooses them."""
        return [
            name
            for name in self._curves
            if 'loss' in name and name != 'loss' and not name.startswith(GEOMETRY)
        ]

    @cached_property
    def metrics(self) -> list[str]:
        """Names of what validations logged."""
        names = {}
        for entry in read_scalars(self.folder):
            if 'loss' not in entry:
                names.update((n, None) for n in entry if not n.startswith(GEOMETRY))
        return [name for name in names if name not in NOT_METRICS]

    def last_metrics(self) -> dict[str, float]:
        """Give the values of the last validation."""
        curves = {name: self.curve(name) for name in self.metrics}
        return {name: values[max(values)] for name, values in curves.items()}

    @cached_property
    def geometry(self) -> dict[str, dict[str, dict[int, float]]]:
        """{pair of features: {value: {iteration: number}}} of the FeatureGeometryHook."""
        return read_geometry(self.folder)

    def progress(self, cfg) -> tuple[int, int | None, str]:
        """Tell how far the training is: done, of how many, and what is counted."""
        train_cfg = cfg.get('train_cfg') or {}
        by_epoch = train_cfg.get('max_iters') is None
        length = train_cfg.get('max_epochs' if by_epoch else 'max_iters')
        logged = max(step for points in self._curves.values() for step in points)
        if by_epoch:
            logged = logged // self.per_epoch if self.per_epoch else 0
        unit = 'epoch' if by_epoch else 'iter'
        names = [re.fullmatch(rf'{unit}_(\d+)\.pth', path.name) for path in self.folder.iterdir()]
        done = max([logged, *(int(match[1]) for match in names if match)])
        return done, length, 'epoch' if by_epoch else 'iteration'

    @cached_property
    def _logs(self) -> list[str]:
        """The text of each session's log, '' where there is none."""
        paths = [sorted(session.glob('*.log')) for session in self.sessions]
        return [found[0].read_text(errors='replace') if found else '' for found in paths]

    @property
    def commands(self) -> list[str]:
        """What the sessions were started with, where their logs tell."""
        return [match[1] for log in self._logs for match in _COMMAND.finditer(log)]

    @property
    def environment(self) -> str | None:
        """What the last session logged about machine and packages."""
        found = [match[1] for log in self._logs for match in _ENVIRONMENT.finditer(log)]
        return found[-1] if found else None

    @property
    def times(self) -> list[tuple[datetime, float]]:
        """When each session began (its machine's local time), and how many seconds it logged."""
        result = []
        for log in self._logs:
            found = [datetime.strptime(x, '%Y/%m/%d %H:%M:%S') for x in _TIME.findall(log)]
            if found:
                result.append((found[0], (found[-1] - found[0]).total_seconds()))
        return result
