"""Trainings side by side, each in processes of its own: started, watched, resumed, collected."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from filelock import FileLock, Timeout

from .one_training import (
    Training,
    TrainingError,
    add_session,
    collect,
    find_result,
    forget_unvalidated,
    iterations,
    what_is_missing,
)
from .text_files import write_text
from .training_logs import logged_seconds, read_scalars


class Trainings:
    """Runs trainings, ``jobs`` at a time; to be used in a with statement.

    Leaving it by an exception, Ctrl-C, SIGTERM or SIGHUP ends the trainings that run; they go on from
    their last checkpoint the next time.

    Args:
        progress (rich.progress.Progress): Of ``make_progress``; shows a bar for each training.
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

    def submit_group(self, trainings: Sequence[Training]) -> Future:
        """Train several in one process that share a teacher, as soon as a place is free.

        Args:
            trainings (Sequence[Training]): None of them is done.

        Returns:
            Future: A dict of the result of each, or its ``TrainingError``, by its label.
        """
        future = self._pool.submit(self._run_group, trainings)
        self._futures.append(future)
        return future

    def _run_group(self, trainings: Sequence[Training]) -> dict[str, dict | TrainingError]:
        if self._stop.is_set():
            raise TrainingError(f'{", ".join(t.label for t in trainings)} were not started')
        with contextlib.ExitStack() as stack:
            tasks = {}
            for training in trainings:
                task = self._progress.add_task(training.label, total=iterations(training), note='')
                tasks[training.label] = task
                if not self._keep_bars:
                    stack.callback(self._progress.remove_task, task)
            descriptors = [stack.enter_context(_locked(training)) for training in trainings]
            return self._train_group(trainings, tasks, descriptors)

    def _train_group(
        self, trainings: Sequence[Training], tasks: dict[str, int], locks: list[int]
    ) -> dict[str, dict | TrainingError]:
        first, *others = trainings
        resumed = {t.label: self._prepare(t) for t in trainings}
        before = {t.label: logged_seconds(t.folder) for t in trainings}
        # beside the log of the process itself: the trainings write their own train.log
        file = first.folder / 'together.json'
        write_text(file, json.dumps([t.arguments() for t in others], indent=2))
        log = first.folder / 'together.log'

        def show() -> None:
            for training in trainings:
                self._show(training, tasks[training.label])

        start = time.time()
        # what each took of the processor cannot be told apart
        code, _ = self._start(
            [*first.command(), '--together', str(file)], log, locks, show, 10 * len(trainings)
        )
        part = (time.time() - start) / len(trainings)
        results = {}
        for training in trainings:
            label = training.label
            result = collect(training, part + before[label], resumed[label])
            if result is None:
                own = training.log if training.log.is_file() else log
                reason = f'failed; the end of {own}:\n{_tail(own)}\nand of {log}:\n{_tail(log)}'
                missing = what_is_missing(training)
                result = TrainingError(f'the training {label} {reason}' if code else missing)
            results[label] = result
        return results

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
                with _locked(training) as lock:
                    result = self._train(training, task, lock)
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
        resumed = self._prepare(training)
        before = logged_seconds(training.folder)
        start = time.time()
        code, used = self._start(
            training.command(), training.log, [lock], lambda: self._show(training, task)
        )
        add_session(training, used)
        if code:
            raise TrainingError(
                f'the training {training.label} failed; the end of {training.log}:\n'
                f'{_tail(training.log)}'
            )
        # with start-up and validation; of sessions that were interrupted what they logged
        result = collect(training, time.time() - start + before, resumed)
        if result is None:
            raise TrainingError(what_is_missing(training))
        return result

    def _prepare(self, training: Training) -> bool:
        """Write down what is trained in a folder; tells whether it goes on from a checkpoint."""
        write_text(training.description_file, json.dumps(training.description, indent=2))
        forget_unvalidated(training)
        return (training.folder / 'last_checkpoint').is_file()

    def _start(
        self,
        command: list[str],
        log: Path,
        locks: list[int],
        show: Callable[[], None],
        patience: float = 10,
    ) -> tuple[int, float]:
        """Run a command until it ends or is to be ended; gives its exit code and processor seconds."""
        environment = {'OMP_NUM_THREADS': str(self._threads), **os.environ}
        environment['PYTHON'] = sys.executable  # for dist_train.sh
        devices = self._devices.get()
        if devices:
            environment['CUDA_VISIBLE_DEVICES'] = ','.join(devices)
        try:
            with log.open('a') as file:
                # in a session of its own, so that a Ctrl-C reaches it through us alone, and all of
                # its processes together; if we are killed, the locks stay as long as any of them
                process = subprocess.Popen(
                    command,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,
                    pass_fds=locks,
                )
                used = None
                try:
                    while (used := _poll(process)) is None and not self._stop.wait(1):
                        show()
                finally:
                    used = _end(process, patience) if used is None else used
        finally:
            self._devices.put(devices)
        return process.returncode, used

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


@contextlib.contextmanager
def _locked(training: Training) -> Iterator[int]:
    """Keep other processes from training in a folder; gives the file that holds the lock."""
    descriptors = []
    training.folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(training.folder / '.lock', timeout=0, on_acquired=descriptors.append)
    try:
        lock.acquire()
    except Timeout:
        raise TrainingError(
            f'{training.folder} is being trained by another process (it holds the file .lock '
            'there). Wait for it, or end it.'
        ) from None
    try:
        yield descriptors[0]
    finally:
        lock.release()


def _tail(log: Path) -> str:
    return '\n'.join(log.read_text(errors='replace').splitlines()[-15:])


def _poll(process: subprocess.Popen, options: int = os.WNOHANG) -> float | None:
    """Give the processor seconds of a process that has ended, and of those that it waited for.

    Popen's own poll() asks for its exit code alone, and the system tells of a process only once.
    """
    number, status, usage = os.wait4(process.pid, options)
    if number == 0:
        return None
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime


def _end(process: subprocess.Popen, patience: float) -> float:
    """End a process and those that it has started, in some seconds; gives its processor seconds."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    end = time.monotonic() + patience
    while time.monotonic() < end:
        used = _poll(process)
        if used is not None:
            return used
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return _poll(process, options=0)
