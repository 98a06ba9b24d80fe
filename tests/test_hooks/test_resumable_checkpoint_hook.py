"""The hook in trainings of a few numbers; tests/test_tools/test_faults.py kills real ones."""

import multiprocessing
import os
import random
import resource
import signal
import time

import numpy as np
import pytest
import torch
from helpers import _counter
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import dataloader

from rawkd_mm.hooks.resumable_checkpoint_hook import SavingError
from rawkd_mm.training.resume import seed_iteration


@DATASETS.register_module()
class RandomNumbers(torch.utils.data.Dataset):
    """Item i is i and a random number of each kind; knows which were loaded in this process."""

    metainfo = dict()

    def __init__(self, length=10):
        self.length = length
        self.loaded = []

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        self.loaded.append(index)
        return dict(inputs=torch.tensor([index, np.random.rand(), random.random(), torch.rand(())]))

    def get_data_info(self, index):
        """What mmdet's AspectRatioBatchSampler asks for."""
        return dict(width=10 if index % 3 else 20, height=15)


class Model(BaseModel):
    """Remembers its batches, and is as random as they are."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.seen = []

    def forward(self, inputs, mode):
        inputs = torch.stack(inputs)
        if mode == 'predict':
            return [dict()] * len(inputs)
        self.seen.append(inputs.tolist())
        noise = torch.rand(4) + np.random.rand() + random.random()
        return dict(loss=(self.weight * noise * nn.functional.dropout(inputs, 0.5)).sum())


@METRICS.register_module()
class Better(BaseMetric):
    """Better with every validation, and draws random numbers, which must not matter."""

    value = 0

    def process(self, data_batch, data_samples):
        self.results += [np.random.rand() + random.random()] * len(data_samples)

    def compute_metrics(self, results):
        self.value += 1
        return dict(acc=self.value)


class Call(Hook):
    """Calls a function after a training iteration, of which the first is 1, or in validation."""

    def __init__(self, when, function):
        self.when = when
        self.function = function

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.when:
            self.function()

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if self.when == 'val':
            self.function()


class Killed(Exception):
    """In place of the death of the process."""


def die():
    raise Killed


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(autouse=True)
def _handler():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(autouse=True)
def _loaders(monkeypatch):
    """Ends the workers: those of a runner that is garbage have lost their queues and take 5 s each."""
    started = []

    class Iterator(dataloader._MultiProcessingDataLoaderIter):
        def __init__(self, loader):
            super().__init__(loader)
            started.append(self)

    monkeypatch.setattr(dataloader, '_MultiProcessingDataLoaderIter', Iterator)
    yield
    for iterator in started:
        iterator._shutdown_workers()


def make_runner(
    work_dir, *hooks, epochs=0, sampler=None, batch=3, checkpoint=None, loader=None,
    accumulate=1, val=0, seed=3, **kwargs,
):  # fmt: skip
    """A training of 9 iterations, or of epochs of 4, that is saved every 2."""
    dataset = dict(type='RandomNumbers')
    sampler = sampler or ('DefaultSampler' if epochs else 'InfiniteSampler')
    if val:
        kwargs.update(
            val_dataloader=dict(
                batch_size=5, dataset=dataset, sampler=dict(type='DefaultSampler', shuffle=False)
            ),
            val_evaluator=dict(type='Better'),
            val_cfg=dict(),
        )
    length = dict(by_epoch=True, max_epochs=epochs) if epochs else dict(max_iters=9)
    return Runner(
        model=Model(),
        work_dir=str(work_dir),
        train_cfg=dict(dict(by_epoch=False, val_interval=val or 1000), **length),
        train_dataloader=dict(
            batch_size=batch, sampler=dict(type=sampler), dataset=dataset, **(loader or {})
        ),
        optim_wrapper=dict(optimizer=dict(type='Adam', lr=0.1), accumulative_counts=accumulate),
        param_scheduler=dict(type='PolyLR', by_epoch=False, end=12),
        default_hooks=dict(
            checkpoint=dict(
                dict(type='ResumableCheckpointHook', by_epoch=False, interval=2),
                **(checkpoint or {}),
            )
        ),
        custom_hooks=list(hooks),
        experiment_name=f'resumable{next(_counter)}',
        randomness=dict(seed=seed),
        log_level='WARNING',
        **kwargs,
    )


def train(*args, **kwargs):
    runner = make_runner(*args, **kwargs)
    runner.train()
    return runner


def last(work_dir):
    return os.path.basename((work_dir / 'last_checkpoint').read_text())


def log_of(work_dir):
    return ''.join(path.read_text() for path in sorted(work_dir.glob('*/*.log')))


def assert_resumed(work_dir, killed_after, *hooks, **kwargs):
    """Kill a training, resume it, and compare it with an uninterrupted one."""
    whole = train(work_dir / 'whole', *hooks, **kwargs)
    with pytest.raises(Killed):
        train(work_dir / 'killed', *hooks, Call(killed_after, die), **kwargs)
    # without the seed: the checkpoint has it
    resumed = train(work_dir / 'killed', *hooks, resume=True, **dict(kwargs, seed=None))
    begin = (killed_after - 1) // 2 * 2  # what dies in an iteration does not save it
    assert resumed.model.seen == whole.model.seen[begin:]
    assert torch.equal(resumed.model.weight, whole.model.weight)
    assert (resumed.iter, resumed.epoch) == (whole.iter, whole.epoch)
    for name in ('optimizer', 'param_schedulers'):
        a, b = (
            torch.load(work_dir / run / f'iter_{whole.iter}.pth', weights_only=False)[name]
            for run in ('whole', 'killed')
        )
        assert str(a) == str(b)
    return whole, resumed


def test_random_numbers_of_an_iteration():
    """Those of the documented seeds: results of earlier versions repeat, and so do other devices'."""
    words = np.random.SeedSequence((1, 3, 7)).generate_state(8)
    seed_iteration(3, 7)
    found = torch.rand(4), np.random.rand(4).tolist(), random.random()
    torch.manual_seed(int(words[4]) + (int(words[5]) << 32))
    np.random.seed(words)
    random.seed(words[:4].tobytes())
    assert torch.equal(found[0], torch.rand(4))
    assert found[1:] == (np.random.rand(4).tolist(), random.random())


WORKERS = dict(num_workers=2, persistent_workers=True)


@pytest.mark.parametrize(
    ('sampler', 'loader'),
    [('InfiniteSampler', {}), ('InfiniteSampler', WORKERS), ('DefaultSampler', {})],
)
def test_iterations(tmp_path, sampler, loader):
    """With DefaultSampler, iteration 9 is in the third pass of 4 batches."""
    whole, resumed = assert_resumed(tmp_path, 7, sampler=sampler, loader=loader, val=3)
    if not loader:
        assert len(resumed.train_dataloader.dataset.loaded) == sum(map(len, resumed.model.seen))
    indices = [int(item[0]) for batch in whole.model.seen for item in batch]
    assert sorted(indices[:10]) == list(range(10)) and sorted(indices[10:20]) == list(range(10))
    assert indices[:10] != indices[10:20]
    numbers = [number for batch in whole.model.seen for item in batch for number in item[1:]]
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize('killed_after', [3, 5, 11])
@pytest.mark.parametrize('loader', [{}, WORKERS])
def test_middle_of_an_epoch(tmp_path, killed_after, loader):
    batches = []

    class Watch(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            batches.append(batch_idx)

    whole, _ = assert_resumed(tmp_path, killed_after, Watch(), epochs=3, loader=loader, val=1)
    assert (whole.iter, whole.epoch) == (12, 3)
    expected = [*range(4)] * 3
    assert batches == expected + expected[:killed_after] + expected[(killed_after - 1) // 2 * 2 :]


def test_checkpoints_of_epochs(tmp_path):
    kwargs = dict(epochs=3, val=1, checkpoint=dict(by_epoch=True, interval=1))
    whole = train(tmp_path / 'whole', **kwargs)
    with pytest.raises(Killed):
        train(tmp_path / 'killed', Call(7, die), **kwargs)
    resumed = train(tmp_path / 'killed', resume=True, **kwargs)
    assert resumed.model.seen == whole.model.seen[4:]
    assert torch.equal(resumed.model.weight, whole.model.weight)


def test_aspect_ratio_batches(tmp_path, mmdet):
    loader = dict(batch_sampler=dict(type='mmdet.AspectRatioBatchSampler'), num_workers=2)
    whole, _ = assert_resumed(tmp_path, 7, epochs=3, loader=loader)
    first = [int(item[0]) % 3 == 0 for item in whole.model.seen[0]]
    assert len(set(first)) == 1


def test_checkpoints_of_mmengine(tmp_path):
    """Their order of the data goes on as well, as far as their seed tells it."""
    whole = train(tmp_path / 'whole', epochs=3)
    with pytest.raises(Killed):
        train(tmp_path / 'a', Call(7, die), epochs=3, checkpoint=dict(type='CheckpointHook'))
    resumed = train(tmp_path / 'a', epochs=3, resume=True, seed=None)
    assert resumed.iter == 12
    order = [[item[0] for item in batch] for batch in whole.model.seen]
    assert [[item[0] for item in batch] for batch in resumed.model.seen] == order[6:]


def test_seeds_differ(tmp_path):
    a, b = (train(tmp_path / str(seed), seed=seed, sampler='InfiniteSampler') for seed in (1, 2))
    assert a.model.seen != b.model.seen and not torch.equal(a.model.weight, b.model.weight)


def test_another_batch_size(tmp_path):
    with pytest.raises(Killed):
        train(tmp_path, Call(7, die), epochs=3)
    resumed = train(tmp_path, epochs=3, batch=1, resume=True)
    assert (
        'resumed otherwise than it was begun, so that its data come in another order: batch_size '
        'was 3, is 1, per_epoch was 4, is 10.'
    ) in log_of(tmp_path)
    # from the middle of the second epoch
    assert len(resumed.model.seen) == 5 + 10 and resumed.epoch == 3


def test_data_that_cannot_be_numbered(tmp_path):
    loader = torch.utils.data.DataLoader(RandomNumbers(), 3, collate_fn=lambda items: items[0])
    runner = make_runner(tmp_path)
    runner._train_dataloader = loader
    runner.model.forward = lambda inputs, mode: dict(loss=runner.model.weight.sum())
    runner.train()
    assert 'train_dataloader is no config with a sampler' in log_of(tmp_path)
    assert torch.load(tmp_path / 'iter_8.pth', weights_only=False)['meta']['iter'] == 8


@pytest.mark.parametrize('workers', [0, 2])
def test_sigterm(tmp_path, workers):
    whole = train(tmp_path / 'whole', loader=dict(num_workers=workers))
    with pytest.raises(SystemExit) as stop:
        train(tmp_path / 'a', Call(5, terminate), loader=dict(num_workers=workers))
    assert stop.value.code == 143
    assert last(tmp_path / 'a') == 'interrupted.pth'
    assert torch.load(tmp_path / 'a/interrupted.pth', weights_only=False)['meta']['iter'] == 5
    resumed = train(tmp_path / 'a', resume=True, loader=dict(num_workers=workers))
    assert resumed.model.seen == whole.model.seen[5:]
    assert torch.equal(resumed.model.weight, whole.model.weight)
    assert not (tmp_path / 'a/interrupted.pth').exists()


def test_sigterm_when_a_checkpoint_was_just_saved(tmp_path):
    with pytest.raises(SystemExit):
        train(tmp_path, Call(6, terminate))
    assert last(tmp_path) == 'iter_6.pth'
    assert not (tmp_path / 'interrupted.pth').exists()


def test_sigterm_in_the_middle_of_an_epoch(tmp_path):
    whole = train(tmp_path / 'whole', epochs=3, checkpoint=dict(by_epoch=True, interval=1))
    for iteration in (3, 8):
        with pytest.raises(SystemExit):
            train(
                tmp_path / 'a', Call(iteration, terminate), epochs=3, resume=True,
                checkpoint=dict(by_epoch=True, interval=1),
            )  # fmt: skip
        # the 8th is the last of its epoch, which is not yet over
        assert last(tmp_path / 'a') == 'interrupted.pth'
    resumed = train(tmp_path / 'a', epochs=3, resume=True, checkpoint=dict(by_epoch=True))
    assert (resumed.iter, resumed.epoch) == (12, 3)
    assert resumed.model.seen == whole.model.seen[8:]
    assert torch.equal(resumed.model.weight, whole.model.weight)


def test_sigterm_in_validation(tmp_path):
    whole = train(tmp_path / 'whole', val=3)
    with pytest.raises(SystemExit):
        train(tmp_path / 'a', Call('val', terminate), val=3)
    # the checkpoint of iteration 2 is older than the validation
    assert torch.load(tmp_path / 'a/interrupted.pth', weights_only=False)['meta']['iter'] == 3
    resumed = train(tmp_path / 'a', resume=True, val=3)
    assert resumed.model.seen == whole.model.seen[3:]
    assert torch.equal(resumed.model.weight, whole.model.weight)


def test_sigterm_in_the_last_iteration_lets_it_finish(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    runner = train(tmp_path, Call(9, terminate), val=9)
    assert runner.iter == 9
    assert last(tmp_path) == 'iter_9.pth'
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize('epochs', [0, 3])
def test_killed_in_the_last_validation(tmp_path, epochs):
    """Nothing is left to train, but to validate."""
    kwargs = dict(epochs=epochs, val=9)  # every 9 iterations or epochs, and at the end
    if epochs:
        kwargs['checkpoint'] = dict(by_epoch=True, interval=1)
    validated = []

    class Watch(Hook):
        def after_val_epoch(self, runner, metrics=None):
            validated.append((runner.iter, metrics))

    with pytest.raises(Killed):
        train(tmp_path, Call('val', die), **kwargs)
    resumed = train(tmp_path, Watch(), resume=True, **kwargs)
    assert resumed.model.seen == []
    assert validated == [(12 if epochs else 9, dict(acc=1))]


def test_sigterm_waits_for_accumulated_gradients(tmp_path):
    checkpoint = dict(interval=4)
    whole = train(tmp_path / 'whole', accumulate=3, checkpoint=checkpoint)
    with pytest.raises(SystemExit):
        train(tmp_path / 'a', Call(4, terminate), accumulate=3, checkpoint=checkpoint)
    assert torch.load(tmp_path / 'a/interrupted.pth', weights_only=False)['meta']['iter'] == 6
    assert 'saved every 4 iterations and gradients accumulated over 3' in log_of(tmp_path / 'a')
    resumed = train(tmp_path / 'a', resume=True, accumulate=3)
    assert torch.equal(resumed.model.weight, whole.model.weight)


def test_sigterm_ends_child_processes(tmp_path):
    """Such as those of a pool, which inherit the handler."""
    codes = []

    def start_and_end_a_child():
        child = multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,))
        child.start()
        time.sleep(0.2)
        child.terminate()
        child.join(30)
        codes.append(child.exitcode)

    train(tmp_path, Call(3, start_and_end_a_child))
    assert codes == [-signal.SIGTERM]


def test_validation_alone(tmp_path):
    assert make_runner(tmp_path, val=3).val() == dict(acc=1)
    assert not list(tmp_path.glob('*.pth'))


def limit_files():
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))


@pytest.fixture
def _no_limit():
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures('_no_limit')
@pytest.mark.parametrize('best', [None, 'acc'])
def test_old_checkpoints_are_kept_until_there_is_a_new_one(tmp_path, best):
    checkpoint = dict(max_keep_ckpts=1, save_best=best, interval=3, rule='greater')
    runner = make_runner(tmp_path, Call(6, limit_files), val=3, checkpoint=checkpoint)
    runner.visualizer.add_scalars = lambda *args, **kwargs: None  # needs its files
    with pytest.raises(SavingError, match='File too large.*unchanged: .*iter_3.pth. Free some'):
        runner.train()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    names = {'iter_3.pth', *(['best_acc_iter_3.pth'] if best else [])}
    assert {path.name for path in tmp_path.glob('*.pth')} == names
    assert last(tmp_path) == 'iter_3.pth'
    train(tmp_path, resume=True, val=3, checkpoint=checkpoint)
    names = {'iter_9.pth', *(['best_acc_iter_9.pth'] if best else [])}
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == names | {
        'last_checkpoint', *(path.name for path in tmp_path.glob('*.py'))
    }  # fmt: skip


def test_other_backends_stay(tmp_path):
    backend_args = dict(backend='local')
    runner = train(tmp_path, checkpoint=dict(backend_args=backend_args))
    (hook,) = (hook for hook in runner.hooks if type(hook).__name__ == 'ResumableCheckpointHook')
    assert type(hook.file_backend).__name__ == 'LocalBackend'
    assert last(tmp_path) == 'iter_9.pth'
