"""Trainings of a grid: methods, weights of their losses, options of configs and seeds."""

import argparse
import hashlib
import json
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
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
from .equal_time import equal_time_iterations, stretch_schedule
from .gpus import share_gpus, visible_gpus
from .grid import cell_label, grid_points, point_options
from .methods import LOSSES
from .one_training import Training, TrainingError, find_result
from .progress import make_progress
from .sharing_groups import Group, sharing_groups
from .sweep_results import (
    finished_in,
    label_of,
    number,
    read_csv,
    relative,
    write_csv,
)
from .trainings import Trainings

# What a distiller, or a pair, has beside the loss of all pairs where it is made for one method.
EXTRAS = ('student_connector', 'teacher_connector', 'distill_losses', 'loss_forward_mappings')
PAIR_EXTRAS = ('loss', 'student_connector', 'teacher_connector')


@dataclass(frozen=True)
class Sweep:
    """What is to be trained.

    Attributes:
        config: Config file.
        method: Key of ``LOSSES``; None for the config as it is.
        weights: The loss_weight of each training; none for the method 'student', and without method.
        seeds: Each weight is trained with each of them.
        metric: What counts of the last validation, as the log calls it.
        work_dir: Has a folder for each training.
        jobs: Trainings side by side.
        gpus: GPUs of each training; without any, processes.
        cfg_options: 'KEY=VALUE' entries that override those of the config.
        grid: Keys of the config to the texts of their values: all combinations are trained.
        name: What results call a config without method; its file's name if None.
        as_long_as: Label of a cell: the student alone is trained for as many processor seconds.
        table: A CSV that is kept beside that of the work dir; what it has is finished. None for none.
    """

    config: str
    method: str | None
    weights: Sequence[float]
    seeds: Sequence[int]
    metric: str
    work_dir: Path
    jobs: int = 1
    gpus: int = 1
    cfg_options: Sequence[str] = ()
    grid: Mapping[str, Sequence[str]] = field(default_factory=dict)
    name: str | None = None
    as_long_as: str | None = None
    table: Path | None = None

    @property
    def method_name(self) -> str:
        """What results call the method."""
        name = self.method or self.name or Path(self.config).stem
        return f'{name}-as-long-as-{self.as_long_as}' if self.as_long_as else name


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


def read_config(sweep: Sweep, options: Sequence[str]):
    """Read the config of a sweep with options.

    Args:
        sweep (Sweep): What is to be trained.
        options (Sequence[str]): See :func:`parse_options`.

    Returns:
        Config: The config.

    Raises:
        UsageError: If it cannot be read.
    """
    return load_config(sweep.config, parse_options(options) if options else None)


def check(cfg, sweep: Sweep, with_teacher: bool = True) -> None:
    """Refuse a config that the method cannot be put into.

    Args:
        cfg (Config): Of the sweep.
        sweep (Sweep): What is to be trained.
        with_teacher (bool): The teacher's weights must be there. Defaults to True.

    Raises:
        TrainingError: Says why.
    """
    if sweep.method not in ('student', None):
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
    if sweep.method != 'student':
        teacher = cfg.model.get('teacher_ckpt')
        is_file = teacher and teacher != 'pretrained' and '://' not in teacher
        if with_teacher and is_file and not Path(teacher).is_file():
            raise TrainingError(
                f'{sweep.config}: teacher_ckpt {teacher!r} is not a file (current folder: '
                f'{os.getcwd()}). Train the teacher first, or give its weights with --cfg-options '
                'model.teacher_ckpt=PATH'
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


def _note_missing_hook(cfg, sweep: Sweep) -> None:
    hooks = [type_name(hook['type']) for hook in cfg.get('custom_hooks') or []]
    if sweep.method not in ('student', None) and 'FeatureGeometryHook' not in hooks:
        print(
            'weight_sweep.py: note: the config has no FeatureGeometryHook in custom_hooks, so '
            'that plot_feature_geometry.py will have nothing to draw',
            file=sys.stderr,
        )


def _has(cfg, key: str) -> bool:
    """Tell whether a config has a key with dots."""
    value = cfg
    for part in key.split('.'):
        if isinstance(value, (list, tuple)):
            if not part.isdigit() or int(part) >= len(value):
                return False
            value = value[int(part)]
        elif isinstance(value, dict) or value is cfg:
            if part not in value:
                return False
            value = value[part]
        else:
            return False
    return True


def _check_key(cfg, key: str, config: str) -> None:
    """Refuse a key that the config has no place for: nothing would read it."""
    parent, _, last = key.rpartition('.')
    if not _has(cfg, parent or last):
        raise TrainingError(
            f'--grid {key}: {config} has no {parent or last}, so that nothing would read it. '
            'tools/dump_config.py prints what it has'
        )


def make_trainings(sweep: Sweep, with_teacher: bool = True) -> list[Training]:
    """Describe the trainings that are asked for.

    Args:
        sweep (Sweep): What is to be trained.
        with_teacher (bool): See :func:`check`. Defaults to True.

    Returns:
        list[Training]: One for each seed, weight and point of the grid.

    Raises:
        TrainingError: If the config does not fit the method, or two points of the grid are the same
            training.
        UsageError: If a config cannot be read.
    """
    base = read_config(sweep, sweep.cfg_options)
    for key in sweep.grid:
        _check_key(base, key, sweep.config)
    _note_missing_hook(base, sweep)
    # its loss may have arguments that the one of --method does not know
    has_loss = 'loss' in (base.model.get('distiller') or {})
    shared = list(sweep.cfg_options)
    if sweep.as_long_as:
        shared += stretch_schedule(base, _iterations_as_long(sweep))
    trainings, digests = [], {}
    for seed in sweep.seeds:
        same = {}
        for weight in sweep.weights or [None]:
            for point in grid_points(sweep.grid):
                options = list(shared)
                for key, value in point.items():
                    options += point_options(key, value, _has(base, key))
                options.append(f'randomness.seed={seed}')
                text = '' if weight is None else number(weight)
                if text:
                    loss = 'model.distiller.loss'
                    options += [f'{loss}._delete_=True'] if has_loss else []
                    options += [f'{loss}.type={LOSSES[sweep.method]}', f'{loss}.loss_weight={text}']
                cell = cell_label(sweep.method_name, text, point)
                training = _make_training(
                    sweep, options, cell, weight, seed, point, digests, with_teacher
                )
                settings = json.dumps(training.settings, sort_keys=True)
                if settings in same:
                    raise TrainingError(
                        f'{cell} and {same[settings]} are the same training: the grid changes '
                        f'nothing of it. Leave out of --grid what --method {sweep.method} does not use'
                    )
                same[settings] = cell
                trainings.append(training)
    return trainings


def _make_training(
    sweep: Sweep,
    options: list[str],
    cell: str,
    weight: float | None,
    seed: int,
    point: dict[str, str],
    digests: dict[str, str],
    with_teacher: bool,
) -> Training:
    cfg = read_config(sweep, options)
    check(cfg, sweep, with_teacher)
    alone = sweep.method == 'student' and is_distillation(cfg)
    teacher = None if sweep.method == 'student' else cfg.model.get('teacher_ckpt')
    if teacher and teacher not in digests and Path(teacher).is_file():
        digests[teacher] = hashlib.sha256(Path(teacher).read_bytes()).hexdigest()
    by_epoch = 'max_epochs' in cfg.train_cfg
    length = cfg.train_cfg.max_epochs if by_epoch else cfg.train_cfg.max_iters
    cfg = student_config(cfg) if alone else inline_models(cfg)
    cfg.pop('work_dir', None)
    make_paths_relative(cfg, [os.getcwd()])
    settings = flatten(cfg.to_dict())
    settings.update(gpus=sweep.gpus, teacher_sha256=digests.get(teacher))
    about = dict(
        method=sweep.method_name, weight=weight, seed=seed, config=relative(Path(sweep.config))
    )
    if point:
        about['grid'] = point
    if sweep.as_long_as:
        about['iters'] = length
    return Training(
        label=f'{cell}-seed{seed}',
        config=Path(sweep.config),
        folder=sweep.work_dir / f'{cell}-seed{seed}',
        length=length,
        by_epoch=by_epoch,
        metric=sweep.metric,
        settings=settings,
        options=options,
        about=about,
        flags=['--student-alone'] if alone else [],
        gpus=sweep.gpus,
    )


def _iterations_as_long(sweep: Sweep) -> int:
    """Give how long the student alone is to be trained; what was chosen once stays, for all seeds."""
    for file in sorted(sweep.work_dir.glob('*/training.json')):
        about = json.loads(file.read_text())['about']
        if about['method'] == sweep.method_name:
            return about['iters']
    rows = read_csv(sweep.work_dir / 'results.csv')
    if sweep.table:
        pair = sweep.work_dir.resolve().name
        rows += [row for row in read_csv(sweep.table) if row['pair'] == pair]
    cells = {'student': {}, sweep.as_long_as: {}}
    for row in rows:
        if row['method'] == sweep.method_name:
            return int(row['iters'])
        if label_of(row) in cells and row['processor_seconds'] and row['startup_seconds']:
            cells[label_of(row)][row['seed']] = row
    own, other = cells['student'], cells[sweep.as_long_as]
    seeds = own.keys() & other.keys()
    if not seeds:
        labels = sorted({label_of(row) for row in rows})
        raise TrainingError(
            f'--as-long-as {sweep.as_long_as}: there must be a finished training of it and one of '
            f'--method student with the same seed in {sweep.work_dir}, both run by this tool. There are '
            f'{labels}'
        )
    lengths = {int(own[seed]['iters']) for seed in seeds}
    if len(lengths) > 1 or lengths != {int(other[seed]['iters']) for seed in seeds}:
        raise TrainingError(
            f'--as-long-as {sweep.as_long_as}: it and the student alone must have the same number of '
            'iterations, which is the one of all seeds'
        )

    def used(rows: dict[str, dict]) -> float:
        return statistics.mean(float(rows[seed]['processor_seconds']) for seed in seeds) - start

    # both begin alike; only what follows grows with the iterations
    start = statistics.mean(float(own[seed]['startup_seconds']) for seed in seeds)
    if used(own) <= 0:
        raise TrainingError(
            f'--as-long-as {sweep.as_long_as}: the student alone took {used(own) + start:.1f} processor '
            f'seconds, of which {start:.1f} before the first iteration; it is too short to tell'
        )
    return equal_time_iterations(lengths.pop(), used(own), used(other))


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


def print_commands(sweeps: Sequence[Sweep]) -> None:
    """Print the commands of the trainings that are not finished.

    Args:
        sweeps (Sequence[Sweep]): What is to be trained.

    Raises:
        TrainingError: See :func:`make_trainings`, and if a folder holds another training.
        UsageError: If a config cannot be read.
    """
    for training in _in_order(sweeps, with_teacher=False):
        if find_result(training) is None:
            print(training.shell_command())


def _in_order(sweeps: Sequence[Sweep], with_teacher: bool = True) -> list[Training]:
    """Give all trainings, those of one seed together: what is finished early can be compared."""
    seeds = list(dict.fromkeys(seed for sweep in sweeps for seed in sweep.seeds))
    trainings = [t for sweep in sweeps for t in make_trainings(sweep, with_teacher)]
    trainings.sort(key=lambda training: seeds.index(training.about['seed']))
    folders = [training.folder for training in trainings]
    twice = sorted({folder.name for folder in folders if folders.count(folder) > 1})
    if twice:
        raise TrainingError(f'{twice} are asked for twice. Give the configs other names')
    return trainings


class _Pace:
    """Tells whether a training would end in time, from those that have ended."""

    def __init__(self, minutes: float | None, rows: list[dict]) -> None:
        self._end = None if minutes is None else time.monotonic() + 60 * minutes
        self._paces: dict[str, list[float]] = {}
        for row in rows:
            self.add(row['method'], float(row['seconds']), int(row['iters']))

    def add(self, method: str, seconds: float, iters: int) -> None:
        self._paces.setdefault(method, []).append(seconds / iters)

    def fits(self, group: Group) -> bool:
        if self._end is None:
            return True
        return time.monotonic() + sum(map(self._seconds, group.trainings)) < self._end

    def _seconds(self, training: Training) -> float:
        known = self._paces.get(training.about['method'])
        known = known or [pace for paces in self._paces.values() for pace in paces]
        # in epochs it cannot be told; then what counts is whether there is any time left
        length = 0 if training.by_epoch else training.length
        return max(known, default=0) * length


def run_sweeps(
    sweeps: Sequence[Sweep], minutes: float | None = None, share_teacher: bool = False
) -> int:
    """Train what is not finished, and print what becomes of it.

    Args:
        sweeps (Sequence[Sweep]): What is to be trained, with the same metric, work_dir, jobs, gpus and
            table.
        minutes (float, optional): No training begins that would end after so long, as far as the pace
            of finished ones tells. Defaults to None, no limit.
        share_teacher (bool): Trainings with the same teacher and batches share a process, in which the
            teacher runs once for all of them. Defaults to False.

    Returns:
        int: The exit code: 1 if a training has failed, else 0.

    Raises:
        TrainingError: See :func:`make_trainings`, and if there are too few GPUs, a folder holds
            another training or one lacks the metric.
        UsageError: If a config cannot be read.
    """
    first = sweeps[0]
    work_dir, pair = first.work_dir, first.work_dir.resolve().name
    trainings = _in_order(sweeps)
    devices = share_gpus(first.jobs, first.gpus, visible_gpus())
    work_dir.mkdir(parents=True, exist_ok=True)
    known = finished_in(read_csv(first.table) if first.table else [])
    todo = []
    for training in trainings:
        cell, seed = training.label.rsplit('-seed', 1)
        if (pair, cell, seed) not in known and find_result(training) is None:
            todo.append(training)
    groups = sharing_groups(todo) if share_teacher else [Group([t], '') for t in todo]
    path = write_csv(work_dir, first.metric, first.table)
    pace = _Pace(minutes, read_csv(path))
    print(
        f'{len(trainings) - len(todo)} of {len(trainings)} trainings are finished. The whole log of '
        f'a training is <folder>/train.log in {work_dir}',
        flush=True,
    )
    if share_teacher:
        print(*(group.text for group in groups), sep='\n', flush=True)
    failures = {}
    with make_progress() as progress:
        task = progress.add_task(
            'sweep', total=len(trainings), completed=len(trainings) - len(todo), note=''
        )
        with Trainings(progress, first.jobs, devices, keep_bars=False) as pool:
            running = {}
            while True:
                while len(running) < first.jobs and (new := next(filter(pace.fits, groups), None)):
                    groups.remove(new)
                    running[_submit(pool, new)] = new
                if not running:
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    group = running.pop(future)
                    for training, result in zip(group.trainings, _results(future, group)):
                        if isinstance(result, TrainingError):
                            failures[training.label] = result
                            progress.console.print(
                                f'{training.label}: failed', markup=False, soft_wrap=True
                            )
                        else:
                            pace.add(training.about['method'], result['seconds'], result['iters'])
                            write_csv(work_dir, first.metric, first.table)
                        note = f'{len(failures)} failed' if failures else ''
                        progress.update(task, advance=1, note=note)
    left = [training for group in groups for training in group.trainings]
    for error in failures.values():
        print(f'\nweight_sweep.py: {error}', file=sys.stderr)
    if failures:
        print(
            f'\nweight_sweep.py: {len(failures)} of {len(trainings)} trainings failed; the same '
            'command does them again, and nothing else',
            file=sys.stderr,
        )
    if left:
        print(
            f'{len(left)} of {len(trainings)} trainings would not have ended within {minutes:g} '
            'minutes; the same command goes on with them'
        )
    print(path)
    return 1 if failures else 0


def _submit(pool: Trainings, group: Group) -> Future:
    if len(group.trainings) == 1:
        return pool.submit(group.trainings[0])
    return pool.submit_group(group.trainings)


def _results(future: Future, group: Group) -> list[dict | TrainingError]:
    """Give what became of each training of a group."""
    try:
        result = future.result()
    except TrainingError as error:
        return [error] * len(group.trainings)
    if len(group.trainings) == 1:
        return [result]
    return [result[training.label] for training in group.trainings]
