"""Fixtures that several test files share; small models are built in helpers.py.

What takes seconds is imported where it is used: pytest-xdist's own process needs none of it.
"""

import fcntl
import os
import pickle
import subprocess
from pathlib import Path

import fork_server
import pytest

TESTS = Path(__file__).parent


@pytest.fixture(scope='session')
def once(tmp_path_factory):
    """What several of pytest-xdist's processes need is made by the first of them that asks.

    ``once(name, make)`` gives what ``make()`` has given, in whichever process.
    """
    folder = tmp_path_factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ:
        folder = folder.parent

    def once(name, make):
        result = folder / f'{name}.pickle'
        with (folder / f'{name}.lock').open('w') as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                if not result.exists():
                    made = pickle.dumps(make())
                    result.write_bytes(made)
            finally:
                fcntl.flock(lock, fcntl.LOCK_UN)
        return pickle.loads(result.read_bytes())

    return once


@pytest.fixture(scope='session')
def fast_python(once):
    """A Python that has imported everything already: see fork_server.py."""
    owner = os.getppid() if 'PYTEST_XDIST_WORKER' in os.environ else os.getpid()
    return once('fork_server', lambda: fork_server.start(owner))


@pytest.fixture(scope='session')
def mmdet():
    """MMDetection, for which the compiled operators of MMCV are needed."""
    from rawkd_mm.compat import has_mmcv_ops, installed_versions

    if installed_versions()['mmdet'] is None or not has_mmcv_ops():
        pytest.skip('MMDetection or the compiled operators of MMCV are not installed')
    import mmdet.models

    return mmdet


@pytest.fixture(scope='session')
def run_processes(tmp_path_factory, fast_python, once):
    """Runs a script in gloo processes; gives what each saved as rank<i>.pth in the folder it got."""
    import torch

    def start(script, count, timeout):
        folder = tmp_path_factory.mktemp(script.stem)
        paths = os.pathsep.join(map(str, (TESTS.parent, TESTS, script.parent)))
        environment = {**os.environ, 'PYTHONPATH': paths, 'OMP_NUM_THREADS': '1'}
        command = [fast_python, '-m', 'torch.distributed.run', f'--nproc_per_node={count}']
        command += ['--master_addr=127.0.0.1', '--master_port=0', '--rdzv_backend=c10d']
        command += ['--rdzv_endpoint=127.0.0.1:0', str(script), str(folder)]
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout
        )
        assert done.returncode == 0, f'{done.stdout[-3000:]}\n{done.stderr[-6000:]}'
        return folder

    def run(script, count, timeout=300):
        folder = once(f'{script.stem}-{count}', lambda: start(script, count, timeout))
        return [torch.load(folder / f'rank{i}.pth', weights_only=False) for i in range(count)]

    return run


@pytest.fixture(scope='session')
def two_processes(run_processes):
    """What helpers.py found out in two processes, one dict for each."""
    return run_processes(TESTS / 'helpers.py', 2)
