"""Trainings whose processes a test can kill; they start at once, from a server that has imported all."""

import json
import multiprocessing
import os
import re
import resource
import runpy
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from tool_project import ROOT, TOOLS

_CONTEXT = multiprocessing.get_context('forkserver')


def prepare_server() -> None:
    """Start the server; the environment it has is that of the trainings."""
    os.environ.update(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')
    _CONTEXT.set_forkserver_preload(['rawkd_mm', 'mmseg.datasets', 'mmseg.engine'])


def _run(args: list, folder: str, log: str, environment: dict, limit: int, dies: bool) -> None:
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if dies else signal.SIG_IGN)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.chdir(folder)
    os.environ.update(environment)
    sys.path.insert(0, str(TOOLS))
    sys.argv = ['train.py', *args]
    runpy.run_path(str(TOOLS / 'train.py'), run_name='__main__')


class Training:
    """A run of tools/train.py in several processes, as torchrun starts them, without torchrun.

    A file of more than ``file_limit`` bytes cannot be written: what does not fit is not there, and
    the process gets an error, as with a full disk, or dies of it (``dies``).
    """

    def __init__(
        self, folder, config, work_dir, *args, processes=2, file_limit=0, dies=False
    ) -> None:
        self.work_dir = folder / work_dir
        self.log_file = folder / f'{work_dir}.log'
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        self.log_file.touch()
        self._log_start = self.log_file.stat().st_size
        launcher = 'pytorch' if processes > 1 else 'none'
        args = [config, '--work-dir', work_dir, '--launcher', launcher, *args]
        common = dict(WORLD_SIZE=str(processes), MASTER_ADDR='127.0.0.1', MASTER_PORT=_free_port())
        self.processes = []
        for rank in range(processes):
            environment = dict(common, RANK=str(rank), LOCAL_RANK=str(rank))
            process = _CONTEXT.Process(
                target=_run,
                args=(args, str(folder), str(self.log_file), environment, file_limit, dies),
            )
            process.start()
            self.processes.append(process)

    @property
    def log(self) -> str:
        """What this run, not an earlier one in the same folder, has printed."""
        with open(self.log_file, 'rb') as file:
            file.seek(self._log_start)
            return file.read().decode(errors='replace')

    def wait_for_iteration(self, number: int) -> None:
        """Wait until this run has logged an iteration, or a later one."""
        _wait_for_iteration(
            number, lambda: self.log, lambda: all(p.is_alive() for p in self.processes)
        )

    def wait(self, timeout: float = 120) -> list:
        """Wait until all processes have ended; gives their exit codes."""
        end = time.monotonic() + timeout
        for process in self.processes:
            process.join(max(0, end - time.monotonic()))
            if process.is_alive():
                for other in self.processes:
                    other.kill()
                raise AssertionError(f'still alive after {timeout} s:\n{self.log[-4000:]}')
        return [process.exitcode for process in self.processes]


def wait_for_iteration(number: int, log: Path, process: subprocess.Popen) -> None:
    """Wait until a process has logged an iteration, or a later one."""
    _wait_for_iteration(number, log.read_text, lambda: process.poll() is None)


def _wait_for_iteration(number, read, is_alive, timeout=120):
    end = time.monotonic() + timeout
    while not any(int(n) >= number for n in re.findall(r'Iter\(train\) \[ *(\d+)/', read())):
        assert is_alive(), f'ended before iteration {number}:\n{read()[-4000:]}'
        assert time.monotonic() < end, f'not at {number} after {timeout} s:\n{read()[-4000:]}'
        time.sleep(0.005)


def _free_port() -> str:
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        return str(server.getsockname()[1])


def losses(work_dir: Path) -> dict:
    """The total loss of each iteration, of all runs in a work dir; the last one counts."""
    found = {}
    for file in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for line in file.read_text().splitlines():
            entry = json.loads(line)
            if 'loss' in entry:
                found[entry['step']] = entry['loss']
    return found
