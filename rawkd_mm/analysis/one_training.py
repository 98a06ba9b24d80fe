"""One training by tools/train.py: its command, its settings and its result."""

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .shipped import shipped_folder
from .text_files import write_text
from .training_logs import (
    GEOMETRY,
    NOT_METRICS,
    iterations_per_epoch,
    logged_seconds,
    read_scalars,
    startup_seconds,
)


class TrainingError(Exception):
    """A training cannot be done or has failed; the message says why."""


@dataclass(frozen=True)
class Training:
    """One run of tools/train.py in a folder of its own.

    Attributes:
        label: What the progress bar calls it.
        config: Config file.
        folder: Work dir.
        length: Iterations, or epochs with ``by_epoch``.
        metric: The value of the last validation that counts.
        settings: What two trainings must have in common to be the same, as JSON: a folder that
            holds one with others is refused.
        options: ``key=value`` entries for --cfg-options.
        about: What else is written into training.json and result.json.
        flags: Further arguments of train.py.
        by_epoch: Whether the config counts in epochs.
        gpus: Processes; with more than one they are started by dist_train.sh.
    """

    label: str
    config: Path
    folder: Path
    length: int
    metric: str
    settings: dict
    options: Sequence[str] = ()
    about: dict = field(default_factory=dict)
    flags: Sequence[str] = ()
    by_epoch: bool = False
    gpus: int = 1

    @property
    def result_file(self) -> Path:
        return self.folder / 'result.json'

    @property
    def description_file(self) -> Path:
        return self.folder / 'training.json'

    @property
    def sessions_file(self) -> Path:
        return self.folder / 'processor_seconds.json'

    @property
    def description(self) -> dict:
        return dict(about=self.about, settings=self.settings)

    @property
    def log(self) -> Path:
        return self.folder / 'train.log'

    def command(self) -> list[str]:
        """Give what trains it, from the last checkpoint on if there is one."""
        tools = shipped_folder('tools')
        config, *arguments = self.arguments()
        start = [sys.executable, tools / 'train.py', config]
        if self.gpus > 1:
            start = [tools / 'dist_train.sh', config, self.gpus]
        return [str(part) for part in [*start, *arguments]]

    def arguments(self) -> list[str]:
        """Give the arguments of tools/train.py."""
        arguments = [self.config, '--work-dir', self.folder, '--resume', 'auto', *self.flags]
        if self.options:
            arguments += ['--cfg-options', *self.options]
        return [str(part) for part in arguments]

    def shell_command(self) -> str:
        """Give the command as it is typed."""
        prefix = f'PYTHON={shlex.quote(sys.executable)} ' if self.gpus > 1 else ''
        return prefix + shlex.join(self.command())


def find_result(training: Training) -> dict | None:
    """Give the result of a training that is finished.

    Args:
        training (Training): Its folder need not exist.

    Returns:
        dict | None: about, settings, metrics (of the last validation), iters, seconds,
        processor_seconds and startup_seconds (see :func:`processor_seconds`), resumed and checkpoint;
        None if the training is still to be done, or to be gone on with.

    Raises:
        TrainingError: If the folder holds a training with other settings.
    """
    if training.result_file.is_file():
        result = json.loads(training.result_file.read_text())
        _check_settings(training, result['settings'])
        return result
    if training.description_file.is_file() and (training.folder / 'last_checkpoint').is_file():
        _check_settings(training, json.loads(training.description_file.read_text())['settings'])
    return collect(training)


def read_about(work_dir: Path) -> Iterator[tuple[Path, dict]]:
    """Yield folder and ``about`` of the trainings of a work dir, also of those that still run.

    Args:
        work_dir (Path): Of a sweep.

    Yields:
        tuple[Path, dict]: The folder of a training, and :attr:`Training.about`.
    """
    for folder in sorted(path for path in work_dir.iterdir() if path.is_dir()):
        for name in ('result.json', 'training.json'):
            if (folder / name).is_file():
                yield folder, json.loads((folder / name).read_text())['about']
                break


def _check_settings(training: Training, stored: dict) -> None:
    keys = sorted(stored.keys() | training.settings.keys())
    changed = [key for key in keys if stored.get(key) != training.settings.get(key)]
    if changed:
        lines = [
            f'  {key}: {stored.get(key)!r} there, {training.settings.get(key)!r} asked for'
            for key in changed[:8]
        ]
        if len(changed) > 8:
            lines.append(f'  and {len(changed) - 8} more')
        raise TrainingError(
            f'{training.folder} holds a training with other settings:\n'
            + '\n'.join(lines)
            + '\nChoose another --work-dir or delete the folder.'
        )


def collect(training: Training, seconds: float | None = None, resumed: bool = False) -> dict | None:
    """Write the result of a training whose last validation is in its logs.

    Args:
        training (Training): What was trained.
        seconds (float | None): How long it took. Defaults to None, what the logs tell.
        resumed (bool): Whether it went on from a checkpoint. Defaults to False.

    Returns:
        dict | None: The result, see :func:`find_result`; None without a last validation.
    """
    metrics = _last_validation(training)
    if metrics is None:
        return None
    pointer = training.folder / 'last_checkpoint'
    checkpoint = Path(pointer.read_text().strip()).name if pointer.is_file() else None
    result = dict(
        **training.description,
        metrics=metrics,
        iters=iterations(training),
        seconds=logged_seconds(training.folder) if seconds is None else seconds,
        processor_seconds=processor_seconds(training),
        startup_seconds=startup_seconds(training.folder),
        resumed=resumed,
        checkpoint=checkpoint and str(training.folder / checkpoint),
    )
    write_text(training.result_file, json.dumps(result, indent=2))
    return result


def _last_validation(training: Training) -> dict | None:
    """Give the metrics of the validation at the end of a training, if there was one."""
    found = None
    for entry in read_scalars(training.folder):
        if training.metric in entry and entry['step'] == training.length:
            found = entry
    if found is not None:
        found = {name: value for name, value in found.items() if name not in NOT_METRICS}
    return found


def add_session(training: Training, used: float) -> None:
    """Note what a session of a training took of the processor.

    Args:
        training (Training): Its folder is there.
        used (float): Seconds, user and system, of all of its processes.
    """
    file = training.sessions_file
    sessions = json.loads(file.read_text()) if file.is_file() else []
    write_text(file, json.dumps([*sessions, used]))


def processor_seconds(training: Training) -> float | None:
    """Give what a training took of the processor, over all of its sessions.

    Args:
        training (Training): Was run by ``Trainings``.

    Returns:
        float | None: Seconds; None if a session was not noted: it was started by hand, or the sweep
        itself was killed meanwhile.
    """
    file = training.sessions_file
    noted = json.loads(file.read_text()) if file.is_file() else []
    begun = len(list(training.folder.glob('*/vis_data/scalars.json')))
    return sum(noted) if noted and len(noted) >= begun else None


def iterations(training: Training) -> int | None:
    """Give the number of iterations of a training.

    Args:
        training (Training): Of iterations or epochs.

    Returns:
        int | None: The number; None if it counts in epochs and no log tells how long one is.
    """
    if not training.by_epoch:
        return training.length
    per_epoch = iterations_per_epoch(training.folder)
    return per_epoch and training.length * per_epoch


def forget_unvalidated(training: Training) -> None:
    """Let a training repeat the stretch before its last checkpoint, if it ended before validating it.

    MMEngine would find nothing left to train, and would not validate either.

    Args:
        training (Training): Its pointer to the last checkpoint may change.
    """
    pointer = training.folder / 'last_checkpoint'
    unit = 'epoch' if training.by_epoch else 'iter'
    last = f'{unit}_{training.length}.pth'
    if not pointer.is_file() or Path(pointer.read_text().strip()).name != last:
        return
    earlier = [path for path in training.folder.glob(f'{unit}_*.pth') if path.name != last]
    if earlier:
        write_text(pointer, str(max(earlier, key=lambda path: int(path.stem.split('_')[1]))))
    else:
        pointer.unlink()


def what_is_missing(training: Training) -> str:
    """Say what a training lacks that has ended without a result.

    Args:
        training (Training): Its folder has logs.

    Returns:
        str: The message of an error.
    """
    logged = {
        name
        for entry in read_scalars(training.folder)
        if 'loss' not in entry
        for name in entry
        if not name.startswith(GEOMETRY) and name not in NOT_METRICS
    }
    return (
        f'{training.folder}: the training ended without a validation that logged '
        f'{training.metric!r}; its validations logged {sorted(logged)}. Ask for one of these'
        ', or see to it that the config validates at the end and logs to a LocalVisBackend.'
    )
