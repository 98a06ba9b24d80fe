"""A training on two nodes: tools/dist_train.sh on each of them, here both on this machine."""

import os
import socket
import subprocess
import time

import pytest
import torch
from tool_project import TOOLS

# Two nodes start at different times, on a machine that may be busy with other things.
TIMEOUT = 300


def free_port() -> int:
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        return server.getsockname()[1]


def start_node(project, rank, port, work_dir, *args):
    """Start a node's part of a training; its output goes into a file."""
    log = project.folder / f'{work_dir}-node{rank}.log'
    log.parent.mkdir(parents=True, exist_ok=True)
    env = {k: v for k, v in os.environ.items() if k not in ('LOCAL_RANK', 'RANK', 'WORLD_SIZE')}
    env |= dict(
        PYTHON=str(project.fast_python),
        CUDA_VISIBLE_DEVICES='',
        OMP_NUM_THREADS='1',
        NNODES='2',
        NODE_RANK=str(rank),
        MASTER_ADDR='127.0.0.1',
        PORT=str(port),
    )
    command = [TOOLS / 'dist_train.sh', 'two_nodes.py', '2', '--work-dir', work_dir, *args]
    with log.open('w') as file:
        return subprocess.Popen(
            [str(part) for part in command],
            cwd=project.folder,
            env=env,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ), log


def wait_for(nodes, fails=False) -> list[str]:
    """Wait until all nodes have ended as they should; gives what they printed."""
    end = time.monotonic() + TIMEOUT
    try:
        for process, log in nodes:
            code = process.wait(max(0, end - time.monotonic()))
            assert (code != 0) == fails, f'{log.name} ended with {code}:\n{log.read_text()[-6000:]}'
    except subprocess.TimeoutExpired:
        logs = '\n'.join(f'{log.name}:\n{log.read_text()[-3000:]}' for _, log in nodes)
        pytest.fail(f'still running after {TIMEOUT} s:\n{logs}')
    finally:
        for process, _ in nodes:
            if process.poll() is None:
                process.terminate()  # torchrun ends its processes
                process.wait()
    return [log.read_text() for _, log in nodes]


CONFIG = """
import sys

sys.path.insert(0, '{{ fileDirname }}')  # has the hook
_base_ = './distillation.py'
custom_imports = dict(imports=['rawkd_mm', 'keep_ranks'], allow_failed_imports=False)
custom_hooks = [dict(type='FeatureGeometryHook', interval=2), dict(type='KeepRanks')]
train_dataloader = dict(batch_size=2)
"""

# Keeps what each process saw, and what it has at the end.
HOOK = """
import os

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

NAMES = ('RANK', 'LOCAL_RANK', 'GROUP_RANK', 'WORLD_SIZE', 'LOCAL_WORLD_SIZE')


@HOOKS.register_module(force=True)
class KeepRanks(Hook):
    def before_train(self, runner):
        self.images = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.images.append([sample.img_path for sample in data_batch['data_samples']])

    def after_train(self, runner):
        kept = dict(
            environment={name: int(os.environ[name]) for name in NAMES},
            images=self.images,
            weights=runner.model.module.state_dict(),
        )
        torch.save(kept, f'{runner.work_dir}/rank{runner.rank}.pth')
"""


@pytest.fixture(scope='module')
def trained(project, one_process_log, once):
    """What the four processes kept, and what each node printed."""

    def train():
        (project.folder / 'two_nodes.py').write_text(CONFIG)
        (project.folder / 'keep_ranks.py').write_text(HOOK)
        port = free_port()
        return wait_for([start_node(project, rank, port, 'runs/two_nodes') for rank in (0, 1)])

    logs = once('two_nodes', train)
    folder = project.folder / 'runs/two_nodes'
    ranks = [torch.load(folder / f'rank{i}.pth', weights_only=False) for i in range(4)]
    return ranks, logs


def test_four_processes_on_two_nodes(trained):
    ranks, logs = trained
    environments = [rank['environment'] for rank in ranks]
    assert [env['RANK'] for env in environments] == [0, 1, 2, 3]
    assert [env['LOCAL_RANK'] for env in environments] == [0, 1, 0, 1]
    assert [env['GROUP_RANK'] for env in environments] == [0, 0, 1, 1]
    assert {(env['WORLD_SIZE'], env['LOCAL_WORLD_SIZE']) for env in environments} == {(4, 2)}
    assert 'the processes talk through gloo instead of nccl' in logs[0]


def test_all_have_the_same_weights(trained):
    (first, *others), _ = trained
    assert any(name.startswith('distiller.connectors.') for name in first['weights'])
    for other in others:
        assert other['weights'].keys() == first['weights'].keys()
        for name, weight in first['weights'].items():
            assert torch.equal(other['weights'][name], weight), name


def test_each_has_images_of_its_own(trained):
    """Together those of one epoch: 4 iterations with 8 of 32 images."""
    ranks, _ = trained
    seen = [image for rank in ranks for batch in rank['images'] for image in batch]
    assert len(seen) == len(set(seen)) == 32


def test_weights_equal_those_of_one_process(project, trained):
    """With the same total batch, of which each of the four processes had a quarter."""
    expected = project.weights('runs/one/iter_4.pth')
    found = project.weights('runs/two_nodes/iter_4.pth')
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-4, atol=1e-5, msg=name)
    losses = project.losses('runs/two_nodes')
    assert losses == pytest.approx(project.losses('runs/one'), rel=1e-5)


def test_a_node_without_the_checkpoint_ends_all(project, one_process_log, trained):
    """Each node has a work dir of its own, and only the first one what --resume looks for."""
    project.copy_of_interrupted('runs/one', 'runs/apart0')
    port = free_port()
    nodes = [start_node(project, rank, port, f'runs/apart{rank}', '--resume') for rank in (0, 1)]
    logs = wait_for(nodes, fails=True)
    assert 'The training resumes from the last checkpoint' in logs[0]
    assert 'Traceback' not in logs[0].partition('torch/distributed')[0]
    for log in logs:
        assert (
            'the processes do not begin with the same iteration: 2 in process 0, 2 in process 1, '
            '0 in process 2, 0 in process 3.'
        ) in log
        assert 'Put the work dir where all nodes see it' in log
    assert not (project.folder / 'runs/apart0/iter_4.pth').exists()
