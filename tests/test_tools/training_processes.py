"""Trainings whose processes a test can kill."""

import contextlib
import json
import os
import re
import socket
import subprocess
import time
from pathlib import Path

import fork_server
from forked_python import ForkedProcess
from tool_project import TOOLS

LIMITED = Path(__file__).with_name('limited_files.py')


class Training:
    """A run of tools/train.py in several processes, as torchrun starts them, without torchrun.

    The processes have everything imported already: see fork_server.py. A file of more than
    ``file_limit`` bytes cannot be written: what does not fit is not there, and the process gets an
    error, as with a full disk, or dies of it (``dies``).
    """

    def __init__(
        self, project, config, work_dir, *args, processes=2, file_limit=0, dies=False
    ) -> None:
        folder = project.folder
        self.work_dir = folder / work_dir
        self.log_file = folder / f'{work_dir}.log'
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        self.log_file.touch()
        self._log_start = self.log_file.stat().st_size
        launcher = 'pytorch' if processes > 1 else 'none'
        limit = [LIMITED, file_limit, 'dies' if dies else 'fails'] if file_limit else []
        command = [*limit, TOOLS / 'train.py', config, '--work-dir', work_dir]
        command = [str(part) for part in (*command, '--launcher', launcher, *args)]
        common = dict(WORLD_SIZE=str(processes), MASTER_ADDR='127.0.0.1', MASTER_PORT=_free_port())
        common.update(OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')
        address = fork_server.address_of(project.fast_python)
        with self.log_file.open('ab') as log, open(os.devnull) as nothing:
            files = [file.fileno() for file in (nothing, log, log)]
            self.processes = [
                ForkedProcess(
                    address,
                    command,
                    str(folder),
                    {**os.environ, **common, 'RANK': str(rank), 'LOCAL_RANK': str(rank)},
                    files,
                )
                for rank in range(processes)
            ]

    @property
    def log(self) -> str:
        """What this run, not an earlier one in the same folder, has printed."""
        with open(self.log_file, 'rb') as file:
            file.seek(self._log_start)
            return file.read().decode(errors='replace')

    def wait_for_iteration(self, number: int) -> None:
        """Wait until this run has logged an iteration, or a later one."""
        _wait_for_iteration(
            number, lambda: self.log, lambda: all(p.poll() is None for p in self.processes)
        )

    def wait(self, timeout: float = 120) -> list:
        """Wait until all processes have ended; gives their exit codes."""
        end = time.monotonic() + timeout
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0, end - time.monotonic()))
        if any(process.poll() is None for process in self.processes):
            for process in self.processes:
                process.kill()
            raise AssertionError(f'still alive after {timeout} s:\n{self.log[-4000:]}')
        return [process.returncode for process in self.processes]


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
