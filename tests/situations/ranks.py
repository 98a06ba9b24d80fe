"""Trains in two gloo processes with the hooks of tools/train.py; test_non_finite_ranks.py runs it.

The second process alone is broken, in one way after the other; each finds out what it is told.
"""

import os
import sys
from pathlib import Path

import torch
from helpers import CLASSES, feature_distiller, pair, pspnet
from mmengine.config import Config
from mmengine.hooks import Hook

from rawkd_mm.hooks import NonFiniteLossError, register_training_hooks
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


def without_sync(config):
    if isinstance(config, dict):
        return type(config)((k, without_sync(v)) for k, v in config.items())
    if isinstance(config, (list, tuple)):
        return type(config)(without_sync(v) for v in config)
    return 'BN' if config == 'SyncBN' else config


def train(folder, what, custom_hooks=()):
    """The message that the training ends with, and the order of the hooks."""
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
        train_cfg=dict(by_epoch=False, max_iters=3),
        train_dataloader=dict(
            batch_size=2,
            num_workers=0,
            sampler=dict(type='InfiniteSampler', shuffle=False),
            dataset=dict(type='RandomScenes'),
        ),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
        default_hooks=dict(checkpoint=None),
        custom_hooks=list(custom_hooks),
        default_scope='mmseg',
        experiment_name=f'ranks_{what}_{len(custom_hooks)}',
        randomness=dict(seed=0),
        log_level='WARNING',
    )
    runner = build_runner(Config(config))
    register_training_hooks(runner)
    runner.register_hook(Break(what))
    try:
        runner.train()
    except NonFiniteLossError as error:
        message = str(error)
    else:
        message = 'trained'
    torch.distributed.barrier()
    return message


def main(folder):
    late = dict(type='NonFiniteLossHook', priority='LOW')
    found = {what: train(folder, what) for what in ('nothing', 'student', 'teacher', 'loss')}
    found['teacher, hook of the config'] = train(
        folder, 'teacher', [dict(type='NonFiniteLossHook', patience=3)]
    )
    found['teacher, late'] = train(folder, 'teacher', [late])
    torch.save(found, Path(folder) / f'rank{RANK}.pth')
    leave_processes()


if __name__ == '__main__':
    main(sys.argv[1])
