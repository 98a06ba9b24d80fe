"""Trainings that share a process and a teacher are bit by bit what they are alone."""

import io
import json
import random
import re
import shutil

import numpy as np
import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.registry import DefaultScope
from tool_project import TOOLS
from training_processes import Training

from rawkd_mm.loops.together import ProcessState

TRAIN = TOOLS / 'train.py'
LOSS = 'model.distiller.loss.type'
# The students drop units, so that they draw random numbers in each iteration.
DROPOUT = """
_base_ = './student.py'
model = dict(decode_head=dict(dropout_ratio=0.5))
"""
SMALL = """
_base_ = './dropout.py'
model = dict(backbone=dict(base_channels=2), decode_head=dict(in_channels=16))
"""
STUDENT = 'model.architecture.cfg_path'
COMMON = [f'{STUDENT}=dropout.py', 'train_cfg.val_interval=2']
PAIR = 'model.distiller.pairs.0'
METRICS = ('aAcc', 'mIoU', 'mAcc')
LAYER = 'backbone.layer3'
TRAININGS = {
    'lad3': [f'{LOSS}=LADLoss', 'model.distiller.loss.loss_weight=3.0'],
    'lad1': [f'{LOSS}=LADLoss', 'model.distiller.loss.loss_weight=1.0'],
    'cad': [f'{LOSS}=CADLoss', 'optim_wrapper.optimizer.lr=1e-3', 'train_cfg.max_iters=3'],
    # another feature, whose connector has weights; and another student
    'layer': [f'{LOSS}=CADLoss', f'{PAIR}.student={LAYER}', f'{PAIR}.teacher={LAYER}'],
    'small': [f'{STUDENT}=small.py'],
}


def arguments(folder, name, *more):
    options = [*COMMON, *TRAININGS[name], *more]
    return [
        'distillation.py',
        '--work-dir',
        f'{folder}/{name}',
        '--resume',
        '--cfg-options',
        *options,
    ]


def alone(project, folder, name, *more):
    return project.run(TRAIN, *arguments(folder, name, *more))


def together_file(project, folder, names, *more):
    file = project.folder / folder / 'together.json'
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps([arguments(folder, name, *more) for name in names]))
    return file


def together(project, folder, names, *more, fails=False):
    first, *others = names
    file = together_file(project, folder, others, *more)
    return project.run(TRAIN, '--together', file, *arguments(folder, first, *more), fails=fails)


def last_checkpoint(project, work_dir):
    folder = project.folder / work_dir
    name = (folder / 'last_checkpoint').read_text().rpartition('/')[2]
    return torch.load(folder / name, map_location='cpu', weights_only=False)


def differences(one, other, path=''):
    """Paths at which two nested values differ, bit by bit."""
    if isinstance(one, dict) and isinstance(other, dict):
        if list(one) != list(other):
            return [f'{path}: {list(one)} and {list(other)}']
        return [d for key in one for d in differences(one[key], other[key], f'{path}.{key}')]
    if isinstance(one, (list, tuple)) and len(one) == len(other):
        pairs = enumerate(zip(one, other))
        return [d for i, (a, b) in pairs for d in differences(a, b, f'{path}.{i}')]
    if isinstance(one, torch.Tensor):
        return [] if one.dtype == other.dtype and torch.equal(one, other) else [path]
    return [] if one == other else [f'{path}: {one} and {other}']


def logged(project, work_dir):
    """All entries of the logs, a later session last, without times."""
    files = sorted((project.folder / work_dir).glob('*/vis_data/scalars.json'))
    entries = {}
    for entry in (json.loads(line) for file in files for line in file.read_text().splitlines()):
        kept = {k: v for k, v in entry.items() if k not in ('time', 'data_time', 'memory')}
        entries.setdefault(kept['step'], {}).update(kept)
    return entries


def assert_same(project, one, other, with_metrics=True):
    a, b = (last_checkpoint(project, work_dir) for work_dir in (one, other))
    kept = ('state_dict', 'optimizer', 'param_schedulers')
    assert not differences({k: a[k] for k in kept}, {k: b[k] for k in kept})
    assert a['meta']['iter'] == b['meta']['iter'] and a['meta']['batches'] == b['meta']['batches']
    a, b = (logged(project, work_dir) for work_dir in (one, other))
    if not with_metrics:
        a, b = (
            {n: {k: v for k, v in e.items() if k not in METRICS} for n, e in x.items()}
            for x in (a, b)
        )
    assert a == b


@pytest.fixture(scope='module')
def separate(project, teacher_log):
    (project.folder / 'dropout.py').write_text(DROPOUT)
    (project.folder / 'small.py').write_text(SMALL)
    for name in TRAININGS:
        alone(project, 'apart', name)


@pytest.fixture(scope='module')
def shared(project, separate):
    return together(project, 'shared', TRAININGS)


@pytest.mark.parametrize('name', TRAININGS)
def test_each_student_is_what_it_is_alone(project, shared, name):
    assert_same(project, f'apart/{name}', f'shared/{name}')
    log = (project.folder / f'shared/{name}/train.log').read_text()
    assert 'The teacher runs once for all trainings of this process.' in log


def test_the_students_differ_and_the_teacher_runs_once(project, shared):
    found = re.search(r'The teacher ran (\d+) times for (\d+) batches', shared)
    assert found.groups() == ('4', '19')
    assert 'and kept the features of at most 1 at a time.' in shared
    losses = [logged(project, f'shared/{name}')[1]['loss'] for name in TRAININGS]
    assert len(set(losses)) == len(losses)


def test_one_that_is_not_as_far_catches_up(project, separate):
    folder = project.folder / 'resumed'
    shutil.copytree(project.folder / 'apart/lad3', folder / 'lad3')
    (folder / 'lad3/iter_4.pth').unlink()
    (folder / 'lad3/last_checkpoint').write_text(str(folder / 'lad3/iter_2.pth'))
    # alone: iterations 1 and 2; together: 3 and 4
    out = together(project, 'resumed', ['lad3', 'lad1'])
    assert 'The teacher ran 4 times for 6 batches' in out
    for name in ('lad3', 'lad1'):
        assert_same(project, f'apart/{name}', f'resumed/{name}')


def test_one_that_has_ended_leaves_the_others_alone(project, separate):
    shutil.copytree(project.folder / 'apart/cad', project.folder / 'ended/cad')
    out = together(project, 'ended', ['cad', 'lad1'])
    assert 'The teacher ran 4 times for 4 batches' in out
    assert_same(project, 'apart/lad1', 'ended/lad1')


def test_sigterm_stops_all_and_the_same_command_goes_on(project, separate):
    names = ['lad3', 'lad1', 'layer']
    first, *others = names
    file = together_file(project, 'stopped', others)
    config, _, work_dir, *rest = arguments('stopped', first)
    slow = Training(project, config, work_dir, '--together', file, *rest, processes=1)
    while not list((project.folder / 'stopped/layer').glob('*/vis_data/scalars.json')):
        assert slow.processes[0].poll() is None, slow.log
    slow.processes[0].terminate()
    assert slow.wait() in ([143], [0]), slow.log
    together(project, 'stopped', names)
    for name in names:
        # one that was stopped after the second iteration has not been validated there
        assert_same(project, f'apart/{name}', f'stopped/{name}', with_metrics=False)


def test_a_failing_student_leaves_the_others_alone(project, separate):
    broken = project.folder / 'failed/cad'
    broken.mkdir(parents=True)
    (broken / 'last_checkpoint').write_text('iter_2.pth')
    (broken / 'iter_2.pth').write_text('no checkpoint')
    out = together(project, 'failed', ['lad3', 'cad', 'lad1'], fails=True)
    assert '1 of 3 trainings failed:' in out and 'failed/cad' in out
    assert 'Traceback' in (broken / 'train.log').read_text()
    for name in ('lad3', 'lad1'):
        assert_same(project, f'apart/{name}', f'failed/{name}')


def test_two_processes(project, separate):
    names, half = ['lad3', 'layer'], 'train_dataloader.batch_size=4'
    for name in names:
        config, _, work_dir, *rest = arguments('apart_two', name, half)
        assert Training(project, config, work_dir, *rest).wait() == [0, 0]
    file = together_file(project, 'shared_two', names[1:], half)
    config, _, work_dir, *rest = arguments('shared_two', names[0], half)
    run = Training(project, config, work_dir, '--together', file, *rest)
    assert run.wait() == [0, 0] and 'The teacher ran 4 times for 8 batches' in run.log
    for name in names:
        assert_same(project, f'apart_two/{name}', f'shared_two/{name}')


def test_each_training_has_its_own_state_of_the_process():
    states, seen = [ProcessState(io.StringIO()) for _ in range(2)], {}
    outer = torch.get_rng_state(), MessageHub.get_current_instance()
    for turn in range(2):
        for number, state in enumerate(states):
            with state.in_place():
                numbers = [torch.rand(()), np.random.rand(), random.random()]
                seen.setdefault(number, []).extend(numbers)
                if turn == 0:
                    MessageHub.get_instance(f'training{number}').update_info('iter', number)
                    DefaultScope.get_instance(f'training{number}', scope_name=f'scope{number}')
    assert seen[0] == seen[1] and len(set(map(float, seen[0]))) == 6
    assert torch.equal(torch.get_rng_state(), outer[0])
    assert MessageHub.get_current_instance() is outer[1]
    for number, state in enumerate(states):
        with state.in_place():
            assert MessageHub.get_current_instance().get_info('iter') == number
            assert DefaultScope.get_current_instance().scope_name == f'scope{number}'
