#!/usr/bin/env python
"""Train a distillation with several weights of its loss and several seeds, and collect the metric.

Trains CONFIG once for each weight and seed, in WORK_DIR/<method>-w<weight>-seed<seed>, with --method
as the loss of all pairs of features instead of CONFIG's own. `--method student` trains the student
alone, once for each seed, in WORK_DIR/student-seed<seed>. Call it once for each method: all that is
finished in WORK_DIR stands in WORK_DIR/results.csv, from which plot_weight_sweep.py draws.

What is finished is not done again. Ctrl-C ends the trainings that run; the same command goes on from
their last checkpoints. A training that fails is reported at the end, and the others go on.
"""

import contextlib
import csv
import hashlib
import io
import json
import math
import os
import sys
from concurrent.futures import as_completed
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _common import add_cfg_options, make_parser, parse_args
from _trainings import (
    Training,
    TrainingError,
    Trainings,
    find_result,
    locked,
    make_progress,
    write_text,
)

# --method -> the loss; the student alone has none.
LOSSES = {
    'student': None,
    'naive': 'NaiveFeatureLoss',
    'md': 'MagnitudeLoss',
    'lad': 'LADLoss',
    'cad': 'CADLoss',
    'pad': 'PADLoss',
    'nfd': 'NFDLoss',
}
COLUMNS = (
    'pair', 'method', 'weight', 'seed', 'metric', 'value', 'iters', 'seconds', 'config', 'work_dir',
)  # fmt: skip
# What a distiller, or a pair, has beside the loss of all pairs where it is made for one method.
EXTRAS = ('student_connector', 'teacher_connector', 'distill_losses', 'loss_forward_mappings')
PAIR_EXTRAS = ('loss', 'student_connector', 'teacher_connector')
# What the sweep itself sets, and the argument that says so.
OWN_KEYS = {
    'randomness.seed': '--seeds',
    'model.distiller.loss': '--method and --weights',
    'work_dir': '--work-dir',
}


def make_arguments():
    parser = make_parser(__doc__)
    parser.add_argument(
        '--method',
        required=True,
        choices=LOSSES,
        help='the loss of all pairs, or the student alone: ' + ', '.join(LOSSES),
    )
    parser.add_argument(
        '--weights',
        type=float,
        nargs='+',
        default=[],
        metavar='W',
        help='the loss_weight of each training; for every method but student',
    )
    parser.add_argument('--seeds', type=int, nargs='+', default=[0], metavar='N', help='default: 0')
    parser.add_argument(
        '--metric',
        default='mIoU',
        metavar='NAME',
        help='what counts of the last validation, as the log calls it, such as mIoU or '
        'coco/bbox_mAP (default: mIoU)',
    )
    parser.add_argument(
        '--work-dir',
        type=Path,
        metavar='DIR',
        help='one for each pair of teacher and student: its name is the pair in the CSV (default: '
        'work_dirs/weight_sweep/<name of CONFIG>)',
    )
    parser.add_argument(
        '--jobs', type=int, default=1, metavar='N', help='trainings side by side (default: 1)'
    )
    parser.add_argument(
        '--gpus',
        type=int,
        default=1,
        metavar='N',
        help='GPUs (without any: processes) of each training, by tools/dist_train.sh (default: 1)',
    )
    parser.add_argument(
        '--print',
        action='store_true',
        help='only print the commands of the trainings that are not finished; once they have run, '
        'the same call without --print collects their results',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        default=[],
        metavar='KEY=VALUE',
        help='override entries of the config in every training, as tools/train.py does; a finished '
        'training without them is refused',
    )
    args = parse_args(parser)
    weighted = args.method != 'student'
    if weighted != bool(args.weights):
        what = 'needs --weights' if weighted else 'has no --weights'
        parser.error(f'--method {args.method} {what}, got {args.weights}')
    for weight in args.weights:
        if not (math.isfinite(weight) and weight > 0):
            parser.error(f'--weights must be positive numbers, got {weight}')
    for name in ('weights', 'seeds'):
        values = getattr(args, name)
        if len(set(values)) != len(values):
            parser.error(f'--{name} must differ, got {values}')
    for name in ('jobs', 'gpus'):
        if getattr(args, name) < 1:
            parser.error(f'--{name} must be at least 1, got {getattr(args, name)}')
    for option in args.cfg_options:
        key, separator, _ = option.partition('=')
        if not separator:
            parser.error(f'--cfg-options: {option!r} is not KEY=VALUE')
        for own, argument in OWN_KEYS.items():
            if f'{key}.'.startswith(f'{own}.') or f'{own}.'.startswith(f'{key}.'):
                parser.error(f'--cfg-options {option}: the sweep sets {own}; use {argument}')
    if args.work_dir is None:
        args.work_dir = Path('work_dirs/weight_sweep', Path(args.config).stem)
    return args


def parse_options(options: list) -> dict:
    """Read KEY=VALUE texts as tools/train.py will."""
    parser = make_parser('')
    add_cfg_options(parser)
    return parser.parse_args(['CONFIG', '--cfg-options', *options]).cfg_options


def check(cfg, args) -> None:
    """Refuse a config that the method cannot be put into.

    Raises:
        TrainingError: Says why.
    """
    from rawkd_mm.registry import type_name

    if args.method != 'student':
        distiller = cfg.get('model', {}).get('distiller') or {}
        if type_name(distiller.get('type')) != 'FeatureDistiller' or not distiller.get('pairs'):
            raise TrainingError(
                f'{args.config} has no FeatureDistiller with pairs, into which --method '
                f'{args.method} could put its loss. For a student alone there is --method student'
            )
        # what belongs to another method, and would still be there
        extra = [key for key in EXTRAS if distiller.get(key)]
        for i, pair in enumerate(distiller.pairs):
            extra += [f'pairs[{i}].{key}' for key in PAIR_EXTRAS if key in pair]
        if extra:
            raise TrainingError(
                f'{args.config}: --method replaces model.distiller.loss, but its distiller has '
                f'{extra} too, which belong to another method. Take a config without these'
            )
        teacher = cfg.model.get('teacher_ckpt')
        if not args.print and teacher and '://' not in teacher and not Path(teacher).is_file():
            raise TrainingError(
                f'{args.config}: teacher_ckpt {teacher!r} is not a file (current folder: '
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
        raise TrainingError(f'{args.config} has no val_evaluator, so that nothing can be collected')
    logger = (cfg.get('default_hooks') or {}).get('logger') or {}
    by_epoch = 'max_epochs' in cfg.train_cfg
    if logger.get('log_metric_by_epoch', True) != by_epoch:
        raise TrainingError(
            f'{args.config} counts in {"epochs" if by_epoch else "iterations"}, so that '
            f'default_hooks.logger.log_metric_by_epoch must be {by_epoch}: otherwise the logs do '
            'not tell which validation was the last'
        )


def make_trainings(args) -> list:
    """Describe the trainings that are asked for."""
    from rawkd_mm.training import (
        inline_models,
        is_distillation,
        load_config,
        make_paths_relative,
        student_config,
    )

    config = load_config(args.config, parse_options(args.cfg_options) if args.cfg_options else None)
    check(config, args)
    # its loss may have arguments that the one of --method does not know
    has_loss = 'loss' in (config.model.get('distiller') or {})
    alone = args.method == 'student' and is_distillation(config)
    teacher = None if args.method == 'student' else config.model.get('teacher_ckpt')
    digest = None
    if teacher and Path(teacher).is_file():
        digest = hashlib.sha256(Path(teacher).read_bytes()).hexdigest()
    trainings = []
    for seed in args.seeds:
        for weight in args.weights or [None]:
            options = [*args.cfg_options, f'randomness.seed={seed}']
            name = f'{args.method}-seed{seed}'
            if weight is not None:
                loss = 'model.distiller.loss'
                options += [f'{loss}._delete_=True'] if has_loss else []
                text = number(weight)
                options += [f'{loss}.type={LOSSES[args.method]}', f'{loss}.loss_weight={text}']
                name = f'{args.method}-w{text}-seed{seed}'
            cfg = load_config(args.config, parse_options(options))
            by_epoch = 'max_epochs' in cfg.train_cfg
            cfg = student_config(cfg) if alone else inline_models(cfg)
            cfg.pop('work_dir', None)
            make_paths_relative(cfg, [os.getcwd()])
            settings = flatten(cfg.to_dict())
            settings.update(gpus=args.gpus, teacher_sha256=digest)
            trainings.append(
                Training(
                    label=name,
                    config=Path(args.config),
                    folder=args.work_dir / name,
                    length=cfg.train_cfg.max_epochs if by_epoch else cfg.train_cfg.max_iters,
                    by_epoch=by_epoch,
                    metric=args.metric,
                    settings=settings,
                    options=options,
                    about=dict(
                        method=args.method,
                        weight=weight,
                        seed=seed,
                        config=relative(Path(args.config)),
                    ),
                    flags=['--student-alone'] if alone else [],
                    gpus=args.gpus,
                )
            )
    return trainings


def number(weight: float) -> str:
    """Give a weight as short as it can be written: 10, 0.3."""
    short = f'{weight:g}'
    return short if float(short) == weight else repr(weight)


def flatten(value, key: str = '') -> dict:
    """Give {'a.b.0': value} of nested dicts and lists, with what JSON has no name for as text."""
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


def relative(path: Path) -> str:
    """Give a path as seen from the current folder, if it lies below it, else its last part."""
    path = path.resolve()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path.name)


def write_csv(args) -> Path:
    """Write what is finished in the work dir, by whichever call of this tool.

    Raises:
        TrainingError: If one lacks the metric.
    """
    path = args.work_dir / 'results.csv'
    with locked(args.work_dir / '.lock', wait=True):
        rows = []
        for file in args.work_dir.glob('*/result.json'):
            result = json.loads(file.read_text())
            about, metrics = result['about'], result['metrics']
            if args.metric not in metrics:
                raise TrainingError(
                    f'{file.parent} has no metric {args.metric!r}, only {sorted(metrics)}: choose one '
                    'of these with --metric'
                )
            rows.append(
                dict(
                    pair=args.work_dir.resolve().name,
                    method=about['method'],
                    weight='' if about['weight'] is None else number(about['weight']),
                    seed=about['seed'],
                    metric=args.metric,
                    value=f'{metrics[args.metric]:.6g}',  # float32 in the log
                    iters=result['iters'],
                    seconds=round(result['seconds']),
                    config=about['config'],
                    work_dir=relative(file.parent),
                )
            )
        methods = list(LOSSES)
        rows.sort(
            key=lambda r: (methods.index(r['method']), float(r['weight'] or 0), int(r['seed']))
        )
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)
        write_text(path, text.getvalue())
    return path


def share_gpus(jobs: int, gpus: int, available: list) -> list:
    """Give each of the jobs the GPUs that it may use; [] if there are none to share.

    Raises:
        TrainingError: If a training asks for more GPUs than there are, or two that do with several
            GPUs each would meet.
    """
    if not available:
        return []
    if jobs * gpus <= len(available):
        return [available[i * gpus : (i + 1) * gpus] for i in range(jobs)]
    if gpus == 1:
        return [[available[i % len(available)]] for i in range(jobs)]
    raise TrainingError(
        f'--jobs {jobs} with --gpus {gpus} needs {jobs * gpus} GPUs, there are {len(available)}: '
        f'{",".join(available)}'
    )


def visible_gpus() -> list:
    """Give the names of the GPUs, as in CUDA_VISIBLE_DEVICES."""
    import torch

    count = torch.cuda.device_count()
    names = os.environ.get('CUDA_VISIBLE_DEVICES')
    return names.split(',')[:count] if names else [str(i) for i in range(count)]


def run(args, trainings: list) -> int:
    """Train what is not finished; gives the exit code."""
    devices = share_gpus(args.jobs, args.gpus, visible_gpus())
    args.work_dir.mkdir(parents=True, exist_ok=True)
    todo = [training for training in trainings if find_result(training) is None]
    failures = {}
    path = write_csv(args)
    print(
        f'{len(trainings) - len(todo)} of {len(trainings)} trainings are finished. The whole log of '
        f'a training is <folder>/train.log in {args.work_dir}',
        flush=True,
    )
    with make_progress() as progress:
        task = progress.add_task(
            'sweep', total=len(trainings), completed=len(trainings) - len(todo), note=''
        )
        with Trainings(progress, args.jobs, devices, keep_bars=False) as pool:
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
                    write_csv(args)
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


def main() -> None:
    args = make_arguments()
    with contextlib.redirect_stdout(sys.stderr):  # which is for the commands of --print
        from rawkd_mm.training import UsageError

    try:
        trainings = make_trainings(args)
        if args.print:
            for training in trainings:
                if find_result(training) is None:
                    print(training.shell_command())
            return
        sys.exit(run(args, trainings))
    except (TrainingError, UsageError) as error:
        sys.exit(f'weight_sweep.py: error: {error}')
    except KeyboardInterrupt:
        message = (
            '\nweight_sweep.py: interrupted, the trainings were ended; the same command goes on'
        )
        print(message, file=sys.stderr)
        sys.exit(130)


if __name__ == '__main__':
    main()
