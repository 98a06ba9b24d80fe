"""Trainings that are killed, told to stop, and left without room on the disk."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tool_project import TOOLS
from training_processes import Training, losses, wait_for_iteration

pytestmark = pytest.mark.faults

# Everything at once that draws random numbers or keeps a state: dropout, BN, augmentation in
# worker processes, momentum, two schedules, EMA and a connector.
STUDENT = """
_base_ = './student.py'
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(backbone=dict(norm_eval=False), decode_head=dict(dropout_ratio=0.3))
"""
FAULTS = """
_base_ = './distillation.py'
model = dict(architecture=dict(cfg_path='{{ fileDirname }}/faults_student.py'))
train_dataloader = dict(
    batch_size=2, num_workers=2, persistent_workers=True,
    dataset=dict(pipeline=[
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations'),
        dict(type='RandomResize', scale=(32, 32), ratio_range=(1.0, 2.0), keep_ratio=True),
        dict(type='RandomCrop', crop_size=(32, 32)),
        dict(type='RandomFlip', prob=0.5),
        dict(type='PhotoMetricDistortion'),
        dict(type='PackSegInputs')]))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=6),
    dict(type='PolyLR', power=0.9, eta_min=0, begin=6, end=20, by_epoch=False)]
train_cfg = dict(max_iters=20, val_interval=6)
default_hooks = dict(checkpoint=dict(interval=3, max_keep_ckpts=2))
custom_hooks = [
    dict(type='FeatureGeometryHook', interval=2),
    dict(type='EMAHook', momentum=0.1)]
randomness = dict(seed=None)
"""
LAST = 'iter_20.pth'


@pytest.fixture(scope='session')
def faults(once, project, teacher_log):
    """The project, with the configs of these tests."""

    def write():
        (project.folder / 'faults_student.py').write_text(STUDENT)
        (project.folder / 'faults.py').write_text(FAULTS)

    once('faults', write)
    return project


def train(project, work_dir, *args, **kwargs):
    return Training(project, 'faults.py', work_dir, *args, **kwargs)


@pytest.fixture(scope='module')
def uninterrupted(once, faults):
    def run():
        training = train(faults, 'runs/uninterrupted', '--cfg-options', 'randomness.seed=5')
        assert training.wait() == [0, 0], training.log
        return training.work_dir / LAST

    return load(once('uninterrupted', run))


def load(path):
    return torch.load(path, weights_only=False)


def whole_state(checkpoint):
    """All of a checkpoint but the time, the config and the folder that it was written with."""
    kept = {k: v for k, v in checkpoint.items() if k not in ('meta', 'message_hub')}
    kept['meta'] = {k: checkpoint['meta'][k] for k in ('epoch', 'iter', 'seed', 'batches')}
    return kept


def assert_same(a, b, path=''):
    """The very same values, at any depth."""
    assert type(a) is type(b), path
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert list(a) == list(b), path
        for key in a:
            assert_same(a[key], b[key], f'{path}/{key}')
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b)):
            assert_same(x, y, f'{path}/{i}')
    else:
        assert a == b, path


def assert_as_if_never_interrupted(work_dir, uninterrupted):
    assert_same(whole_state(load(work_dir / LAST)), whole_state(uninterrupted))
    expected = losses(work_dir.parent / 'uninterrupted')
    assert len(expected) == 20
    assert losses(work_dir) == expected


def kill(training, ranks):
    for rank in ranks:
        training.processes[rank].kill()
    codes = training.wait()
    assert all(codes[rank] == -signal.SIGKILL for rank in ranks)
    # those that were not killed do not wait for the dead
    assert 0 not in codes


def first_or_resumed(faults, work_dir, **kwargs):
    """A run with a seed; but once there is a checkpoint, that has to tell the seed."""
    begun = (faults.folder / work_dir / 'last_checkpoint').is_file()
    args = [] if begun else ['--cfg-options', 'randomness.seed=5']
    return train(faults, work_dir, '--resume', *args, **kwargs)


@pytest.mark.parametrize('seed', [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 3))])
def test_killed_at_random_iterations(faults, uninterrupted, seed):
    chance = random.Random(seed)
    name, resumed = f'runs/killed{seed}', 0
    kill_points = sorted(chance.sample(range(1, 15), 5))
    for iteration in kill_points:
        training = first_or_resumed(faults, name)
        training.wait_for_iteration(iteration)
        time.sleep(chance.uniform(0, 0.1))
        kill(training, chance.choice([[0], [1], [0, 1]]))
        resumed += 'The training resumes from' in training.log
    training = first_or_resumed(faults, name)
    assert training.wait() == [0, 0], training.log
    assert resumed >= 3
    assert_as_if_never_interrupted(faults.folder / name, uninterrupted)


def test_killed_while_writing(faults, uninterrupted):
    """A checkpoint that is not whole is never the last one, even if it is the first."""
    size = (faults.folder / 'runs/uninterrupted' / LAST).stat().st_size
    work_dir = faults.folder / 'runs/torn'
    training = first_or_resumed(faults, 'runs/torn', file_limit=size // 2, dies=True)
    codes = training.wait()
    assert codes[0] == -signal.SIGXFSZ and codes[1] != 0
    assert (work_dir / '.iter_3.pth.part').stat().st_size == size // 2
    assert not list(work_dir.glob('*.pth')) and not (work_dir / 'last_checkpoint').exists()

    training = first_or_resumed(faults, 'runs/torn')
    assert training.wait() == [0, 0], training.log
    assert 'Nothing to resume' in training.log
    assert sorted(path.name for path in work_dir.glob('*.p*') if path.is_file()) == [
        'faults.py', 'iter_18.pth', LAST
    ]  # fmt: skip
    assert_as_if_never_interrupted(work_dir, uninterrupted)


def copy(faults, uninterrupted_dir, name):
    """A work dir with only the checkpoints of another one."""
    work_dir = faults.folder / 'runs' / name
    work_dir.mkdir()
    for file in ('iter_18.pth', LAST):
        shutil.copy(uninterrupted_dir / file, work_dir)
    (work_dir / 'last_checkpoint').write_text(str(work_dir / LAST))
    return work_dir


def test_full_disk(faults, uninterrupted):
    work_dir = copy(faults, faults.folder / 'runs/uninterrupted', 'full')
    (work_dir / LAST).unlink()
    (work_dir / 'last_checkpoint').write_text(str(work_dir / 'iter_18.pth'))
    before = (work_dir / 'iter_18.pth').read_bytes()
    training = train(faults, 'runs/full', '--resume', file_limit=len(before) // 2)
    codes = training.wait()
    assert codes[0] == 1 and codes[1] != 0
    message = (
        r"SavingError: .* a checkpoint could not be saved in '.*/runs/full': File too large, \d+ MiB "
        r'free. The last checkpoint is unchanged: .*/iter_18.pth. Free some space, then run the same '
        r'command with --resume.'
    )
    assert re.search(message, training.log), training.log[-3000:]
    assert (work_dir / 'iter_18.pth').read_bytes() == before
    assert (work_dir / 'last_checkpoint').read_text() == str(work_dir / 'iter_18.pth')
    assert [path.name for path in work_dir.glob('*.pth*')] == ['iter_18.pth']
    assert not list(work_dir.glob('.*'))


def test_last_checkpoint_cut_off(faults, uninterrupted):
    """By some other tool; resumed in MMEngine's own way, without --resume."""
    work_dir = copy(faults, faults.folder / 'runs/uninterrupted', 'cut_off')
    os.truncate(work_dir / LAST, 10_000)
    training = train(faults, 'runs/cut_off', '--cfg-options', 'resume=True')
    assert training.wait() == [0, 0], training.log
    assert (
        f"Not resumed from '{work_dir / LAST}': it was cut off or is no checkpoint" in training.log
    )
    assert 'resumed epoch: 0, iter: 18' in training.log
    assert_same(whole_state(load(work_dir / LAST)), whole_state(uninterrupted))


def test_sigterm_to_one_process(faults, uninterrupted):
    work_dir = faults.folder / 'runs/terminated'
    training = first_or_resumed(faults, 'runs/terminated')
    training.wait_for_iteration(4)
    training.processes[1].terminate()
    assert training.wait() == [143, 143], training.log
    (message,) = re.findall('Stopped by SIGTERM after iteration (.*)', training.log)
    iteration = int(message.split(',')[0])
    assert 4 <= iteration <= 7 and message.endswith('Go on with --resume.')
    names = {path.name for path in work_dir.glob('*.pth')}
    assert names == {'iter_3.pth', 'iter_6.pth' if iteration == 6 else 'interrupted.pth'} or (
        iteration == 7 and names == {'iter_3.pth', 'iter_6.pth', 'interrupted.pth'}
    )
    training = first_or_resumed(faults, 'runs/terminated')
    assert training.wait() == [0, 0], training.log
    assert f'resumed epoch: 0, iter: {iteration}' in training.log
    assert {path.name for path in work_dir.glob('*.pth')} == {'iter_18.pth', LAST}
    assert_as_if_never_interrupted(work_dir, uninterrupted)


def start_torchrun(faults, log, *args):
    with open(log, 'wb') as file:
        return subprocess.Popen(
            [TOOLS / 'dist_train.sh', 'faults.py', '2', '--work-dir', 'runs/torchrun', *args],
            cwd=faults.folder, stdout=file, stderr=subprocess.STDOUT,
            env={**os.environ, 'PYTHON': sys.executable, 'OMP_NUM_THREADS': '1'},
        )  # fmt: skip


def test_torchrun(faults, uninterrupted):
    """Told to stop as Slurm tells it; then one of its processes dies, and it ends the other."""
    work_dir, log = faults.folder / 'runs/torchrun', faults.folder / 'torchrun.log'
    torchrun = start_torchrun(faults, log, '--cfg-options', 'randomness.seed=5')
    wait_for_iteration(3, log, torchrun)
    torchrun.terminate()  # it tells its processes, and their data workers
    assert torchrun.wait(60) == 1
    (iteration,) = re.findall('Stopped by SIGTERM after iteration (.*),', log.read_text())
    assert 'DataLoader worker' not in log.read_text()
    saved = (work_dir / 'last_checkpoint').read_text()
    assert load(saved)['meta']['iter'] == int(iteration)

    torchrun = start_torchrun(faults, log, '--resume')
    wait_for_iteration(int(iteration) + 2, log, torchrun)
    children = Path(f'/proc/{torchrun.pid}/task/{torchrun.pid}/children').read_text().split()
    (rank1,) = (c for c in children if b'\0RANK=1\0' in Path(f'/proc/{c}/environ').read_bytes())
    os.kill(int(rank1), signal.SIGKILL)
    assert torchrun.wait(60) == 1
    assert f'resumed epoch: 0, iter: {iteration}' in log.read_text()
    assert re.search(rf'Signal 9 \(SIGKILL\) received by PID {rank1}', log.read_text())
    assert not any(Path(f'/proc/{child}').exists() for child in children)

    training = first_or_resumed(faults, 'runs/torchrun')
    assert training.wait() == [0, 0], training.log
    assert_as_if_never_interrupted(work_dir, uninterrupted)
