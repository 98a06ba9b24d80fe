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
def two_processes(tmp_path_factory):
    """What two_processes.py found out in two gloo processes, one dict for each."""
    folder = tmp_path_factory.mktemp('two_processes')
    environment = {**os.environ, 'PYTHONPATH': f'{TESTS.parent}:{TESTS}', 'OMP_NUM_THREADS': '1'}
    command = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node=2']
    command += ['--master_addr=127.0.0.1', '--master_port=0', '--rdzv_backend=c10d']
    command += ['--rdzv_endpoint=127.0.0.1:0', str(TESTS / 'helpers.py'), str(folder)]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f'{done.stdout[-3000:]}\n{done.stderr[-6000:]}'
    return [torch.load(folder / f'rank{rank}.pth', weights_only=False) for rank in range(2)]
