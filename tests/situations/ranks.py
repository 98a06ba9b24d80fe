"""Trains in two gloo processes with the hooks of tools/train.py.

test_non_finite_ranks.py and test_process_exchange.py run it. The second process alone is broken or told
to stop, in one way after the other; each finds out what it is told, and how often it exchanges.
"""

import os
import signal
import sys
from pathlib import Path

import torch
from helpers import CLASSES, feature_distiller, pair, pspnet
from mmengine.config import Config
from mmengine.hooks import Hook

from rawkd_mm.hooks import NonFiniteLossError, TrainingInterrupted, register_training_hooks
from rawkd_mm.training import build_runner, leave_processes

RANK = int(os.environ.get('RANK', 0))  # pytest imports this file, too


class Break(Hook):
    """Breaks something of the second process before the second iteration."""

    priority = 'VERY_HIGH'

    def __init__(self, what):
        self.what = what

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        algorithm = runner.model.module
        if RANK == 1 and runner.iter == 1:
            if self.what == 'student':
                algorithm.student.backbone.layer4[1].conv2.weight.data.fill_(float('nan'))
            elif self.what == 'teacher':
                algorithm.teacher.backbone.layer4[1].conv2.weight.fill_(float('inf'))
            elif self.what == 'loss':
                algorithm.distiller.distill_losses[
                    'loss_cad_decode_head_bottleneck'
                ].loss_weight = float('inf')


class Watch(Hook):
    """Notes the losses before and after they are averaged, and the collectives of each iteration."""

    def __init__(self):
        self.calls = []
        self.own, self.averaged, self.counts = [], [], []
        self._names = [
            name
            for name in vars(torch.distributed)
            if name.startswith(('all_', 'broadcast', 'barrier', 'reduce', 'gather', 'scatter'))
            and callable(getattr(torch.distributed, name))
        ]

    def before_train(self, runner):
        """Count from now on; the reductions of gradients are made in C++ and do not count."""
        for name in self._names:
            setattr(torch.distributed, name, self._counting(getattr(torch.distributed, name)))

    def _counting(self, function):
        def call(*args, **kwargs):
            self.calls.append(function.__name__)
            return function(*args, **kwargs)

        call.original = function
        return call

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self._before = len(self.calls)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.counts.append(self.calls[self._before :])
        self.averaged.append({name: value.item() for name, value in outputs.items()})

    def note_own(self, runner, batch_idx, data_batch=None, outputs=None):
        self.own.append({name: value.item() for name, value in outputs.items()})

    def stop(self):
        for name in self._names:
            setattr(torch.distributed, name, getattr(torch.distributed, name).original)


class Terminate(Hook):
    """Sends SIGTERM to the second process in the second iteration: before it, or at its end."""

    priority = 'LOW'

    def __init__(self, when):
        self.when = when

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self._send(runner, 'before')

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self._send(runner, 'end')

    def _send(self, runner, when):
        if RANK == 1 and runner.iter == 1 and when == self.when:
            os.kill(os.getpid(), signal.SIGTERM)


def without_sync(config):
    if isinstance(config, dict):
        return type(config)((k, without_sync(v)) for k, v in config.items())
    if isinstance(config, (list, tuple)):
        return type(config)(without_sync(v) for v in config)
    return 'BN' if config == 'SyncBN' else config


def build(folder, what, custom_hooks=(), iterations=3, checkpoint=None):
    """A Runner, with the hooks of tools/train.py."""
    pairs = [pair(), pair('backbone[2]')]
    config = dict(
        model=dict(
            type='FrozenTeacherDistill',
            architecture=without_sync(pspnet(classes=CLASSES)),
            teacher=pspnet(8, 16),
            distiller=feature_distiller(*pairs),
            allow_random_teacher=True,
        ),
        work_dir=str(Path(folder) / what),
        launcher='pytorch',
        train_cfg=dict(by_epoch=False, max_iters=iterations),
        train_dataloader=dict(
            batch_size=2,
            num_workers=0,
            sampler=dict(type='InfiniteSampler', shuffle=False),
            dataset=dict(type='RandomScenes'),
        ),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
        default_hooks=dict(checkpoint=checkpoint),
        custom_hooks=list(custom_hooks),
        default_scope='mmseg',
        experiment_name=f'ranks_{what}_{len(custom_hooks)}',
        randomness=dict(seed=0),
        log_level='WARNING',
    )
    runner = build_runner(Config(config))
    register_training_hooks(runner)
    return runner


def train(folder, what, custom_hooks=()):
    """The message that the training ends with."""
    runner = build(folder, what, custom_hooks)
    runner.register_hook(Break(what))
    try:
        runner.train()
    except NonFiniteLossError as error:
        message = str(error)
    else:
        message = 'trained'
    torch.distributed.barrier()
    return message


def exchange(folder, what):
    """What a training of 4 iterations exchanges, that is told to stop in one way or not at all."""
    checkpoint = dict(type='ResumableCheckpointHook', by_epoch=False, interval=100)
    runner = build(folder, f'exchange_{what}', iterations=4, checkpoint=checkpoint)
    watch, first = Watch(), Hook()
    first.after_train_iter = watch.note_own
    runner._hooks.insert(0, first)
    runner.register_hook(watch, priority='LOWEST')
    runner.register_hook(Terminate(what))
    stopped = None
    try:
        runner.train()
    except TrainingInterrupted:
        file = Path(folder, f'exchange_{what}', 'interrupted.pth')
        stopped = torch.load(file, weights_only=False)['meta']['iter']
    watch.stop()
    torch.distributed.barrier()
    return dict(own=watch.own, averaged=watch.averaged, counts=watch.counts, stopped=stopped)


def main(folder):
    late = dict(type='NonFiniteLossHook', priority='LOW')
    found = {what: train(folder, what) for what in ('nothing', 'student', 'teacher', 'loss')}
    found['teacher, hook of the config'] = train(
        folder, 'teacher', [dict(type='NonFiniteLossHook', patience=3)]
    )
    found['teacher, late'] = train(folder, 'teacher', [late])
    found['exchange'] = {what: exchange(folder, what) for what in ('never', 'before', 'end')}
    torch.save(found, Path(folder) / f'rank{RANK}.pth')
    leave_processes()


if __name__ == '__main__':
    main(sys.argv[1])
