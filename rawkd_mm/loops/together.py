"""Trainings in one process that take turns after each iteration, and share their teacher."""

import os
import random
import signal
import sys
import threading
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from mmengine.dist import is_distributed
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmengine.utils import ManagerMixin

from ..hooks import TrainingInterrupted
from ..teachers import SharedTeacher

__all__ = ['ProcessState', 'TogetherError', 'train_together']


# The exit code after SIGTERM, as of one training.
_INTERRUPTED = 128 + signal.SIGTERM


class TogetherError(RuntimeError):
    """Some of the trainings have failed; the message says which. The others have ended well."""


class ProcessState:
    """What a process has once, and each training on its turn for itself.

    That is: all of MMEngine's global instances (``MessageHub``, ``MMLogger``, ``Visualizer``,
    ``DefaultScope`` and whatever else derives from ``ManagerMixin``), the random numbers, and where
    prints go. A training begins with those of the process.
    """

    def __init__(self, output: Any) -> None:
        self._output = output
        self._instances = {
            kind: OrderedDict(kind._instance_dict) for kind in _subclasses(ManagerMixin)
        }
        self._numbers = _random_state()

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put it into the place of the process's own within the context."""
        outer = {kind: kind._instance_dict for kind in _subclasses(ManagerMixin)}
        numbers, streams = _random_state(), (sys.stdout, sys.stderr)
        for kind in outer:
            kind._instance_dict = self._instances.get(kind, OrderedDict())
        _set_random_state(self._numbers)
        sys.stdout = sys.stderr = self._output
        try:
            yield
        finally:
            sys.stdout, sys.stderr = streams
            self._numbers = _random_state()
            _set_random_state(numbers)
            for kind in _subclasses(ManagerMixin):
                self._instances[kind] = kind._instance_dict
                kind._instance_dict = outer.get(kind, OrderedDict())


def _subclasses(kind: type) -> set[type]:
    below = (_subclasses(subclass) for subclass in kind.__subclasses__())
    return {kind}.union(*below)


def _random_state() -> tuple:
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), gpus


def _set_random_state(state: tuple) -> None:
    python, numpy, cpu, gpus = state
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(cpu)
    if gpus is not None:
        torch.cuda.set_rng_state_all(gpus)


class _TurnHook(Hook):
    """Lets the others have their turns before an iteration begins. To be the first of all hooks."""

    priority = 'HIGHEST'

    def __init__(self, turn: '_Turn') -> None:
        self._turn = turn

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        """Wait for the next turn.

        Args:
            runner (Runner): The runner.
            batch_idx (int): Not used.
            data_batch (dict, optional): Not used.
        """
        distiller = getattr(_algorithm(runner), 'distiller', None)
        if getattr(distiller, 'last_comparison', None) is not None:
            distiller.last_comparison = None  # the others need the memory of the features
        self._turn.wait_at(runner.iter)


class _Turn:
    """One training, in a thread that runs only while it has its turn.

    Attributes:
        position (int): The iteration that it waits for; -1 before the first turn.
        is_alive (bool): Whether it has further turns.
        error (BaseException | None): What has ended it, unless it has ended by itself.
        hooks (list): Of its runner, to tell it to stop.
    """

    def __init__(
        self, name: str, build: Callable[[], Runner], teacher: SharedTeacher, output: Any
    ) -> None:
        self.name = name
        self.position = -1
        self.is_alive = True
        self.error: BaseException | None = None
        self.hooks: list[Hook] = []
        self._build = build
        self._teacher = teacher
        self._state = ProcessState(output)
        self._mine, self._others = threading.Semaphore(0), threading.Semaphore(0)
        # a daemon: if the process is to end, it must not wait for a turn that never comes
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def take(self) -> None:
        """Go on to the next iteration or the end."""
        with self._state.in_place():
            self._mine.release()
            self._others.acquire()
            if not self.is_alive:
                self._thread.join()

    def wait_at(self, position: int) -> None:
        """Give the turn back, and wait for the next one."""
        self.position = position
        self._others.release()
        self._mine.acquire()

    def _run(self) -> None:
        self._mine.acquire()
        try:
            self._train()
        except BaseException as error:
            if not isinstance(error, TrainingInterrupted):
                traceback.print_exc()
            # the traceback would keep the model
            self.error = error.with_traceback(None)
        finally:
            self.is_alive = False
            self.hooks, self._build = [], None
            self._others.release()

    def _train(self) -> None:
        _choose_device()
        runner = self._build()
        for hook in runner.hooks:
            if hasattr(hook, 'stop_soon'):
                hook.listens = False
        self.hooks = runner.hooks
        runner._hooks.insert(0, _TurnHook(self))  # before those of the highest priority
        teacher = getattr(_algorithm(runner), 'frozen_teacher', None)
        reason = 'the model has none' if teacher is None else self._teacher.join(teacher)
        runner.logger.info(
            'The teacher runs once for all trainings of this process.'
            if reason is None
            else f'The teacher runs for this training alone: {reason}.'
        )
        try:
            runner.train()
        finally:
            self._teacher.leave(teacher)


def _algorithm(runner: Runner) -> Any:
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def _choose_device() -> None:
    """Take the GPU of this process: which one is current each thread has for itself."""
    if 'LOCAL_RANK' in os.environ and torch.cuda.is_available() and torch.cuda.device_count() > 1:
        torch.cuda.set_device(int(os.environ['LOCAL_RANK']))


def train_together(builds: Mapping[str, Callable[[], Runner]]) -> int:
    """Train several models in turns of an iteration; what they share of a teacher runs once.

    Each has its own Runner, with its hooks, optimizer, schedule, logs and checkpoints, and is bit by bit
    what it would be alone, on a device that repeats its results. The next turn is always that of the
    training that is least far. So one that goes on from an earlier checkpoint catches up first. Forward,
    backward and step of a student lie in one turn: only weights and optimizer states add up.

    What a training prints goes to ``train.log`` in its work dir. SIGTERM stops all of them, saved. One
    that fails leaves the others alone; with several processes, which wait for each other, it ends all.

    Args:
        builds (Mapping): Work dir to what builds the Runner of that training.

    Returns:
        int: The exit code: 0, or that of an interruption, which all have saved.

    Raises:
        TogetherError: At the end, if one has failed.
    """
    teacher, turns = SharedTeacher(), []
    stopping, process = threading.Event(), os.getpid()

    def on_signal(number: int, frame: FrameType | None) -> None:
        if os.getpid() == process:
            stopping.set()
        else:  # a worker of a data loader
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    previous = signal.signal(signal.SIGTERM, on_signal)
    try:
        for folder, build in builds.items():
            Path(folder).mkdir(parents=True, exist_ok=True)
            output = open(Path(folder, 'train.log'), 'a', buffering=1)  # noqa: SIM115
            turns.append(_Turn(folder, build, teacher, output))
        _take_turns(turns, teacher, stopping)
    finally:
        signal.signal(signal.SIGTERM, previous)
    print(
        f'The teacher ran {teacher.runs} times for {teacher.uses} batches of students, and kept the '
        f'features of at most {teacher.most_kept} at a time.'
    )
    failed = [turn.name for turn in turns if _has_failed(turn)]
    if failed:
        raise TogetherError(
            f'{len(failed)} of {len(turns)} trainings failed: {", ".join(failed)}. The end of their '
            'train.log says why'
        )
    return _INTERRUPTED if any(turn.error is not None for turn in turns) else 0


def _has_failed(turn: _Turn) -> bool:
    """Whether a training has ended by anything but an interruption that it has saved."""
    return turn.error is not None and not isinstance(turn.error, TrainingInterrupted)


def _take_turns(turns: list[_Turn], teacher: SharedTeacher, stopping: threading.Event) -> None:
    position = -1
    while alive := [turn for turn in turns if turn.is_alive]:
        turn = min(alive, key=lambda turn: turn.position)
        if turn.position != position:
            position = turn.position
            teacher.forget()
        if stopping.is_set():
            if turn.position < 0 and not is_distributed():
                # it has not begun: nothing is to be saved
                turn.is_alive, turn.error = False, TrainingInterrupted(_INTERRUPTED)
                continue
            for hook in turn.hooks:
                if hasattr(hook, 'stop_soon'):
                    hook.stop_soon()
        turn.take()
        if _has_failed(turn) and is_distributed():
            raise TogetherError(
                f'{turn.name} failed, and with it all, as the processes wait for each other. The end '
                f'of its train.log says why'
            ) from turn.error
