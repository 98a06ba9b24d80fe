"""Fixtures that several test files share; small models are built in helpers.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rawkd_mm.compat import has_mmcv_ops, installed_versions

TESTS = Path(__file__).parent


@pytest.fixture(scope='session')
def mmdet():
    """MMDetection, for which the compiled operators of MMCV are needed."""
    if installed_versions()['mmdet'] is None or not has_mmcv_ops():
        pytest.skip('MMDetection or the compiled operators of MMCV are not installed')
    import mmdet.models

    return mmdet


@pytest.fixture(scope='session')
def run_processes(tmp_path_factory):
    """Runs a script in gloo processes; gives what each saved as rank<i>.pth in the folder it got."""

    def run(script, count, timeout=300):
        folder = tmp_path_factory.mktemp(script.stem)
        paths = os.pathsep.join(map(str, (TESTS.parent, TESTS, script.parent)))
        environment = {**os.environ, 'PYTHONPATH': paths, 'OMP_NUM_THREADS': '1'}
        command = [sys.executable, '-m', 'torch.distributed.run', f'--nproc_per_node={count}']
        command += ['--master_addr=127.0.0.1', '--master_port=0', '--rdzv_backend=c10d']
        command += ['--rdzv_endpoint=127.0.0.1:0', str(script), str(folder)]
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout
        )
        assert done.returncode == 0, f'{done.stdout[-3000:]}\n{done.stderr[-6000:]}'
        return [torch.load(folder / f'rank{i}.pth', weights_only=False) for i in range(count)]

    return run


@pytest.fixture(scope='session')
def two_processes(run_processes):
    """What helpers.py found out in two processes, one dict for each."""
    return run_processes(TESTS / 'helpers.py', 2)
