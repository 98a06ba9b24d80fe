"""Trainings with several weights of a loss and several seeds, and what they reach."""

import argparse
import hashlib
import os
import sys
from collections.abc import Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import DictAction

from ..registry import type_name
from ..training import (
    inline_models,
    is_distillation,
    load_config,
    make_paths_relative,
    student_config,
)
from .gpus import share_gpus, visible_gpus
from .methods import LOSSES
from .one_training import Training, TrainingError, find_result
from .progress import make_progress
from .sweep_results import number, relative, write_csv
from .trainings import Trainings

# What a distiller, or a pair, has beside the loss of all pairs where it is made for one method.
EXTRAS = ('student_connector', 'teacher_connector', 'distill_losses', 'loss_forward_mappings')
PAIR_EXTRAS = ('loss', 'student_connector', 'teacher_connector')


@dataclass(frozen=True)
class Sweep:
    """What is to be trained.

    Attributes:
        config: Config file.
        method: Key of ``LOSSES``.
        weights: The loss_weight of each training; none for the method 'student'.
        seeds: Each weight is trained with each of them.
        metric: What counts of the last validation, as the log calls it.
        work_dir: Has a folder for each training.
        jobs: Trainings side by side.
        gpus: GPUs of each training; without any, processes.
        cfg_options: 'KEY=VALUE' entries that override those of the config.
    """

    config: str
    method: str
    weights: Sequence[float]
    seeds: Sequence[int]
    metric: str
    work_dir: Path
    jobs: int = 1
    gpus: int = 1
    cfg_options: Sequence[str] = ()


def parse_options(options: Sequence[str]) -> dict:
    """Read KEY=VALUE texts as tools/train.py will.

    Args:
        options (Sequence[str]): Such as 'train_cfg.max_iters=100'.

    Returns:
        dict: Keys with dots, and values.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    return parser.parse_args(['--cfg-options', *options]).cfg_options


def check(cfg, sweep: Sweep, with_teacher: bool = True) -> None:
    """Refuse a config that the method cannot be put into.

    Args:
        cfg (Config): Of the sweep.
        sweep (Sweep): What is to be trained.
        with_teacher (bool): The teacher's weights must be there. Defaults to True.

    Raises:
        TrainingError: Says why.
    """
    if sweep.method != 'student':
        distiller = cfg.get('model', {}).get('distiller') or {}
        if type_name(distiller.get('type')) != 'FeatureDistiller' or not distiller.get('pairs'):
            raise TrainingError(
                f'{sweep.config} has no FeatureDistiller with pairs, into which --method '
                f'{sweep.method} could put its loss. For a student alone there is --method student'
            )
        # what belongs to another method, and would still be there
        extra = [key for key in EXTRAS if distiller.get(key)]
        for i, pair in enumerate(distiller.pairs):
            extra += [f'pairs[{i}].{key}' for key in PAIR_EXTRAS if key in pair]
        if extra:
            raise TrainingError(
                f'{sweep.config}: --method replaces model.distiller.loss, but its distiller has '
                f'{extra} too, which belong to another method. Take a config without these'
            )
        teacher = cfg.model.get('teacher_ckpt')
        is_file = teacher and teacher != 'pretrained' and '://' not in teacher
        if with_teacher and is_file and not Path(teacher).is_file():
            raise TrainingError(
                f'{sweep.config}: teacher_ckpt {teacher!r} is not a file (current folder: '
                f'{os.getcwd()}). Train the teacher first, or give its weights with --cfg-options '
                'model.teacher_ckpt=PATH'
            )
        hooks = [type_name(hook['type']) for hook in cfg.get('custom_hooks') or []]
        if 'FeatureGeometryHook' not in hooks:
            print(
                'weight_sweep.py: note: the config has no FeatureGeometryHook in custom_hooks, so '
                'that plot_feature_geometry.py will have nothing to draw',
                file=sys.stderr,
            )
    if not cfg.get('val_evaluator'):
        raise TrainingError(
            f'{sweep.config} has no val_evaluator, so that nothing can be collected'
        )
    logger = (cfg.get('default_hooks') or {}).get('logger') or {}
    by_epoch = 'max_epochs' in cfg.train_cfg
    if logger.get('log_metric_by_epoch', True) != by_epoch:
        raise TrainingError(
            f'{sweep.config} counts in {"epochs" if by_epoch else "iterations"}, so that '
            f'default_hooks.logger.log_metric_by_epoch must be {by_epoch}: otherwise the logs do '
            'not tell which validation was the last'
        )


def make_trainings(sweep: Sweep, with_teacher: bool = True) -> list[Training]:
    """Describe the trainings that are asked for.

    Args:
        sweep (Sweep): What is to be trained.
        with_teacher (bool): See :func:`check`. Defaults to True.

    Returns:
        list[Training]: One for each weight and seed.

    Raises:
        TrainingError: If the config does not fit the method.
        UsageError: If a config cannot be read.
    """
    config = load_config(
        sweep.config, parse_options(sweep.cfg_options) if sweep.cfg_options else None
    )
    check(config, sweep, with_teacher)
    # its loss may have arguments that the one of --method does not know
    has_loss = 'loss' in (config.model.get('distiller') or {})
    alone = sweep.method == 'student' and is_distillation(config)
    teacher = None if sweep.method == 'student' else config.model.get('teacher_ckpt')
    digest = None
    if teacher and Path(teacher).is_file():
        digest = hashlib.sha256(Path(teacher).read_bytes()).hexdigest()
    trainings = []
    for seed in sweep.seeds:
        for weight in sweep.weights or [None]:
            options = [*sweep.cfg_options, f'randomness.seed={seed}']
            name = f'{sweep.method}-seed{seed}'
            if weight is not None:
                loss = 'model.distiller.loss'
                options += [f'{loss}._delete_=True'] if has_loss else []
                text = number(weight)
                options += [f'{loss}.type={LOSSES[sweep.method]}', f'{loss}.loss_weight={text}']
                name = f'{sweep.method}-w{text}-seed{seed}'
            cfg = load_config(sweep.config, parse_options(options))
            by_epoch = 'max_epochs' in cfg.train_cfg
            cfg = student_config(cfg) if alone else inline_models(cfg)
            cfg.pop('work_dir', None)
            make_paths_relative(cfg, [os.getcwd()])
            settings = flatten(cfg.to_dict())
            settings.update(gpus=sweep.gpus, teacher_sha256=digest)
            trainings.append(
                Training(
                    label=name,
                    config=Path(sweep.config),
                    folder=sweep.work_dir / name,
                    length=cfg.train_cfg.max_epochs if by_epoch else cfg.train_cfg.max_iters,
                    by_epoch=by_epoch,
                    metric=sweep.metric,
                    settings=settings,
                    options=options,
                    about=dict(
                        method=sweep.method,
                        weight=weight,
                        seed=seed,
                        config=relative(Path(sweep.config)),
                    ),
                    flags=['--student-alone'] if alone else [],
                    gpus=sweep.gpus,
                )
            )
    return trainings


def flatten(value, key: str = '') -> dict:
    """Flatten nested dicts and lists.

    Args:
        value: Any value.
        key (str): Its own name. Defaults to ''.

    Returns:
        dict: {'a.b.0': value}, with what JSON has no name for as text.
    """
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    else:
        return {key: value if isinstance(value, (str, bool, int)) else repr(value)}
    result = {} if value else {key: repr(value)}
    for name, item in items:
        result.update(flatten(item, f'{key}.{name}' if key else str(name)))
    return result


def print_commands(sweep: Sweep) -> None:
    """Print the commands of the trainings that are not finished.

    Args:
        sweep (Sweep): What is to be trained.

    Raises:
        TrainingError: See :func:`make_trainings`, and if a folder holds another training.
        UsageError: If a config cannot be read.
    """
    for training in make_trainings(sweep, with_teacher=False):
        if find_result(training) is None:
            print(training.shell_command())


def run_sweep(sweep: Sweep) -> int:
    """Train what is not finished, and print what becomes of it.

    Args:
        sweep (Sweep): What is to be trained.

    Returns:
        int: The exit code: 1 if a training has failed, else 0.

    Raises:
        TrainingError: See :func:`make_trainings`, and if there are too few GPUs, a folder holds
            another training or one lacks the metric.
        UsageError: If a config cannot be read.
    """
    trainings = make_trainings(sweep)
    devices = share_gpus(sweep.jobs, sweep.gpus, visible_gpus())
    sweep.work_dir.mkdir(parents=True, exist_ok=True)
    todo = [training for training in trainings if find_result(training) is None]
    failures = {}
    path = write_csv(sweep.work_dir, sweep.metric)
    print(
        f'{len(trainings) - len(todo)} of {len(trainings)} trainings are finished. The whole log of '
        f'a training is <folder>/train.log in {sweep.work_dir}',
        flush=True,
    )
    with make_progress() as progress:
        task = progress.add_task(
            'sweep', total=len(trainings), completed=len(trainings) - len(todo), note=''
        )
        with Trainings(progress, sweep.jobs, devices, keep_bars=False) as pool:
            futures = {pool.submit(training): training for training in todo}
            for future in as_completed(futures):
                error = future.exception()
                if isinstance(error, TrainingError):
                    label = futures[future].label
                    failures[label] = error
                    progress.console.print(f'{label}: failed', markup=False, soft_wrap=True)
                elif error is not None:
                    raise error
                else:
                    write_csv(sweep.work_dir, sweep.metric)
                note = f'{len(failures)} failed' if failures else ''
                progress.update(task, advance=1, note=note)
    for error in failures.values():
        print(f'\nweight_sweep.py: {error}', file=sys.stderr)
    if failures:
        print(
            f'\nweight_sweep.py: {len(failures)} of {len(trainings)} trainings failed; the same '
            'command does them again, and nothing else',
            file=sys.stderr,
        )
    print(path)
    return 1 if failures else 0
