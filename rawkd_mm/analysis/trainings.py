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
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

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
                    result = self._train_locked(training, task)
                except Timeout:
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

    def _train_locked(self, training: Training, task: int) -> dict:
        descriptors = []
        path = training.folder / '.lock'
        with FileLock(path, timeout=0, on_acquired=descriptors.append):
            return self._train(training, task, descriptors[0])

    def _train(self, training: Training, task: int, lock: int) -> dict:
        write_text(training.description_file, json.dumps(training.description, indent=2))
        forget_unvalidated(training)
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
                # its processes together; if we are killed, the lock stays as long as any of them
                process = subprocess.Popen(
                    training.command(),
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,
                    pass_fds=[lock],
                )
                used = None
                try:
                    while (used := _poll(process)) is None and not self._stop.wait(1):
                        self._show(training, task)
                finally:
                    add_session(training, _end(process) if used is None else used)
        finally:
            self._devices.put(devices)
        if process.returncode:
            tail = '\n'.join(training.log.read_text(errors='replace').splitlines()[-15:])
            raise TrainingError(
                f'the training {training.label} failed; the end of {training.log}:\n{tail}'
            )
        # with start-up and validation; of sessions that were interrupted what they logged
        result = collect(training, time.time() - start + before, resumed)
        if result is None:
            raise TrainingError(what_is_missing(training))
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


def _poll(process: subprocess.Popen, options: int = os.WNOHANG) -> float | None:
    """Give the processor seconds of a process that has ended, and of those that it waited for.

    Popen's own poll() asks for its exit code alone, and the system tells of a process only once.
    """
    number, status, usage = os.wait4(process.pid, options)
    if number == 0:
        return None
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime


def _end(process: subprocess.Popen) -> float:
    """End a process and those that it has started; gives its processor seconds."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    end = time.monotonic() + 10
    while time.monotonic() < end:
        used = _poll(process)
        if used is not None:
            return used
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return _poll(process, options=0)
