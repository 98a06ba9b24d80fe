"""Trainings side by side, each in processes of its own: started, watched, resumed, collected.

What demo.py and the weight sweep have in common. It knows tools/train.py and what it leaves in a
folder, and imports nothing heavy.
"""

import contextlib
import fcntl
import json
import os
import queue
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
# Values of the last validation that say nothing about the model.
NOT_METRICS = ('step', 'time', 'data_time')
# Of FeatureGeometryHook's values: geometry/<pair>/<value>
GEOMETRY = 'geometry/'


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
    def description(self) -> dict:
        return dict(about=self.about, settings=self.settings)

    @property
    def log(self) -> Path:
        return self.folder / 'train.log'

    def command(self) -> list[str]:
        """Give what trains it, from the last checkpoint on if there is one."""
        start = [sys.executable, TOOLS / 'train.py', self.config]
        if self.gpus > 1:
            start = [TOOLS / 'dist_train.sh', self.config, self.gpus]
        command = [*start, '--work-dir', self.folder, '--resume', 'auto', *self.flags]
        if self.options:
            command += ['--cfg-options', *self.options]
        return [str(part) for part in command]

    def shell_command(self) -> str:
        """Give the command as it is typed."""
        prefix = f'PYTHON={shlex.quote(sys.executable)} ' if self.gpus > 1 else ''
        return prefix + shlex.join(self.command())


def read_scalars(folder: Path) -> Iterator[dict]:
    """Yield what the trainings of a folder logged, in the order of time."""
    for path in sorted(folder.glob('*/vis_data/scalars.json')):
        for line in path.read_text().splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:  # being written right now
                continue


def curve(folder: Path, key: str) -> dict:
    """Give {step: value} of a logged value, or of the ones that end in '/...'.

    Of what a resumed training did twice the last counts.
    """
    return {
        entry['step']: entry[name]
        for entry in read_scalars(folder)
        for name in entry
        if name == key or (key.startswith('/') and name.endswith(key))
    }


def read_geometry(folder: Path) -> dict[str, dict[str, dict[int, float]]]:
    """Give {pair of features: {value: {step: number}}} of a training.

    Of what a resumed training did twice the last counts.
    """
    result = defaultdict(lambda: defaultdict(dict))
    for entry in read_scalars(folder):
        for key, number in entry.items():
            if key.startswith(GEOMETRY):
                pair, _, value = key.removeprefix(GEOMETRY).rpartition('/')
                result[pair][value][entry['step']] = number
    return {pair: dict(values) for pair, values in result.items()}


def find_result(training: Training) -> dict | None:
    """Give the result of a training that is finished.

    Returns:
        dict | None: about, settings, metrics (of the last validation), iters, seconds, resumed and
        checkpoint; None if the training is still to be done, or to be gone on with.

    Raises:
        TrainingError: If the folder holds a training with other settings.
    """
    if training.result_file.is_file():
        result = json.loads(training.result_file.read_text())
        _check_settings(training, result['settings'])
        return result
    if training.description_file.is_file() and (training.folder / 'last_checkpoint').is_file():
        _check_settings(training, json.loads(training.description_file.read_text())['settings'])
    return _collect(training)


def read_about(work_dir: Path) -> Iterator[tuple[Path, dict]]:
    """Yield folder and ``about`` of the trainings of a work dir, also of those that still run."""
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


def _collect(training: Training, seconds: float | None = None, resumed: bool = False):
    """Write the result of a training whose last validation is in its logs; else give None."""
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


def iterations(training: Training) -> int | None:
    """Give the number of iterations of a training; in epochs, once the log tells."""
    if not training.by_epoch:
        return training.length
    per_epoch = iterations_per_epoch(training.folder)
    return per_epoch and training.length * per_epoch


def iterations_per_epoch(folder: Path) -> int | None:
    """Give the number of iterations in an epoch of a training, once its log tells."""
    for path in sorted(folder.glob('*/*.log')):
        match = re.search(r'Epoch\(train\)\s+\[\s*\d+\]\[\s*\d+/(\d+)\]', path.read_text())
        if match:
            return int(match[1])
    return None


def logged_seconds(folder: Path) -> float:
    """Give how long the trainings of a folder took, by their logs."""
    seconds = 0.0
    for path in folder.glob('*/vis_data/scalars.json'):
        start = time.mktime(time.strptime(path.parts[-3], '%Y%m%d_%H%M%S'))
        seconds += max(0.0, path.stat().st_mtime - start)
    return seconds


def write_text(path: Path, text: str) -> None:
    """Write a file that is there as a whole or not at all, whatever happens meanwhile."""
    temporary = path.with_name(f'.{path.name}.{os.getpid()}-{threading.get_ident()}')
    temporary.write_text(text)
    os.replace(temporary, path)


@contextlib.contextmanager
def locked(path: Path, wait: bool) -> Iterator[int]:
    """Hold a lock file, which the system releases with the last process that has it open.

    Raises:
        BlockingIOError: If another process holds it and ``wait`` is False.
    """
    with path.open('a') as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield file.fileno()


def make_progress():
    """Give the rich.progress.Progress that Trainings wants."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn('{task.description:>22}'),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn('{task.fields[note]}'),
    )


class Trainings:
    """Runs trainings, ``jobs`` at a time; to be used in a with statement.

    Leaving it by an exception, Ctrl-C, SIGTERM or SIGHUP ends the trainings that run; they go on from
    their last checkpoint the next time.

    Args:
        progress (rich.progress.Progress): See :func:`make_progress`; shows a bar for each training.
        jobs (int): Trainings side by side.
        devices (Sequence[Sequence[str]]): For each of the jobs the GPUs that it may use, as in
            CUDA_VISIBLE_DEVICES; empty for whatever there is.
        keep_bars (bool): Keep the bar of what is finished. Defaults to True.
    """

    def __init__(
        self, progress, jobs: int, devices: Sequence[Sequence[str]] = (), keep_bars: bool = True
    ) -> None:
        self._progress = progress
        self._keep_bars = keep_bars
        self._pool = ThreadPoolExecutor(jobs)
        self._threads = max(1, (os.cpu_count() or 1) // jobs)
        self._stop = threading.Event()
        self._futures = []
        self._devices = queue.SimpleQueue()
        for i in range(jobs):
            self._devices.put(devices[i] if devices else None)

    def __enter__(self):
        self._handlers = {
            number: signal.signal(number, signal.default_int_handler)
            for number in (signal.SIGTERM, signal.SIGHUP)
            if signal.getsignal(number) == signal.SIG_DFL  # nohup ignores SIGHUP, and so do we
        }
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is not None:
            self._stop.set()
            for future in self._futures:
                future.cancel()
        self._pool.shutdown()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def submit(self, training: Training) -> Future:
        """Train as soon as a place is free, unless it is done; gives the future result."""
        future = self._pool.submit(self._run, training)
        self._futures.append(future)
        return future

    def _run(self, training: Training) -> dict:
        if self._stop.is_set():
            raise TrainingError(f'{training.label} was not started')
        task = self._progress.add_task(training.label, total=iterations(training), note='')

        def value(result: dict) -> str:
            return f'{training.metric} {result["metrics"][training.metric]:.2f}'

        try:
            result = find_result(training)
            note = ' (done before)'
            if result is None:
                training.folder.mkdir(parents=True, exist_ok=True)
                try:
                    with locked(training.folder / '.lock', wait=False) as lock:
                        result = self._train(training, task, lock)
                except BlockingIOError:
                    raise TrainingError(
                        f'{training.folder} is being trained by another process (it holds the '
                        'file .lock there). Wait for it, or end it.'
                    ) from None
                note = f' after {result["seconds"]:.0f} s'
                if not self._progress.console.is_terminal or not self._keep_bars:
                    self._progress.console.print(
                        f'{training.label}: {value(result)}{note}', markup=False, soft_wrap=True
                    )
            total = result['iters']
            self._progress.update(task, total=total, completed=total, note=value(result) + note)
            return result
        finally:
            if not self._keep_bars:
                self._progress.remove_task(task)

    def _train(self, training: Training, task: int, lock: int) -> dict:
        write_text(training.description_file, json.dumps(training.description, indent=2))
        _forget_unvalidated(training)
        before = logged_seconds(training.folder)
        resumed = (training.folder / 'last_checkpoint').is_file()
        environment = {'OMP_NUM_THREADS': str(self._threads), **os.environ}
        environment['PYTHON'] = sys.executable  # for dist_train.sh
        devices = self._devices.get()
        if devices:
            environment['CUDA_VISIBLE_DEVICES'] = ','.join(devices)
        start = time.time()
        try:
            with training.log.open('a') as file:
                # in a session of its own, so that a Ctrl-C reaches it through us alone, and all of
                # its processes together; the lock lives as long as any of them
                process = subprocess.Popen(
                    training.command(),
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,
                    pass_fds=[lock],
                )
                try:
                    while process.poll() is None and not self._stop.wait(1):
                        self._show(training, task)
                finally:
                    if process.poll() is None:
                        _end(process)
        finally:
            self._devices.put(devices)
        if process.returncode:
            tail = '\n'.join(training.log.read_text(errors='replace').splitlines()[-15:])
            raise TrainingError(
                f'the training {training.label} failed; the end of {training.log}:\n{tail}'
            )
        # with start-up and validation; of sessions that were interrupted what they logged
        result = _collect(training, time.time() - start + before, resumed)
        if result is None:
            raise TrainingError(_what_is_missing(training))
        return result

    def _show(self, training: Training, task: int) -> None:
        """Bring a progress bar up to what the training has logged."""
        last, note, metric = None, '', ''
        for entry in read_scalars(training.folder):
            if 'loss' in entry:
                last, note = entry['step'], f'loss {entry["loss"]:.3f}'
            if training.metric in entry:
                metric = f', {training.metric} {entry[training.metric]:.2f}'
        if last is not None:
            total = iterations(training)
            self._progress.update(task, total=total, completed=last, note=note + metric)


def _forget_unvalidated(training: Training) -> None:
    """Let a training repeat the stretch before its last checkpoint, if it ended before validating it.

    MMEngine would find nothing left to train, and would not validate either.
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


def _end(process: subprocess.Popen) -> None:
    """End a process and those that it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
            return


def _what_is_missing(training: Training) -> str:
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
