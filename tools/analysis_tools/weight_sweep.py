#!/usr/bin/env python
"""Train with several weights of a loss, values of config options and seeds, and collect the metric.

Trains CONFIG once for each weight and seed, in WORK_DIR/<method>-w<weight>-seed<seed>, with --method
as the loss of all pairs of features instead of CONFIG's own. `--method student` trains the student
alone, once for each seed, in WORK_DIR/student-seed<seed>. Without --method, each CONFIG is trained as it
is. `--grid KEY=V1,V2` adds all values of an option of the config; several of them make all combinations.

Call it once for each method, or give several: all that is finished in WORK_DIR stands in
WORK_DIR/results.csv. plot_weight_sweep.py draws it, summarise_sweep.py compares it with a baseline.
Trainings with one seed begin with the same student and see the same batches.

What is finished is not done again. Ctrl-C ends the trainings that run; the same command goes on from
their last checkpoints. A training that fails is reported at the end, and the others go on.
"""

import contextlib
import math
import os
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _common import make_plain_parser
from _package import load_module

METHODS = tuple(load_module('analysis.methods').LOSSES)
GRID = load_module('analysis.grid')
# What the sweep itself sets, and the argument that says so.
OWN_KEYS = {
    'randomness.seed': '--seeds',
    'work_dir': '--work-dir',
}
METHOD_KEYS = {'model.distiller.loss': '--method and --weights'}


def make_arguments():
    parser = make_plain_parser(__doc__)
    parser.add_argument(
        'config',
        nargs='+',
        metavar='CONFIG',
        help='path of a config file; several of them are compared as they are, without --method',
    )
    parser.add_argument(
        '--method',
        action='append',
        choices=METHODS,
        help='the loss of all pairs, or the student alone: '
        + ', '.join(METHODS)
        + ' (kl compares logits: take one of configs/kl as CONFIG, or one that names them). May be '
        'given several times; without it CONFIG is trained as it is',
    )
    parser.add_argument(
        '--weights',
        type=float,
        nargs='+',
        default=[],
        metavar='W',
        help='the loss_weight of each training; for every method but student',
    )
    parser.add_argument(
        '--grid',
        action='append',
        default=[],
        metavar='KEY=V1,V2',
        help='values of an option of the config, each in trainings of its own, such as '
        'optim_wrapper.optimizer.lr=0.01,0.001. Lists stand in brackets, and dicts as Python writes '
        'them: "KEY=[1,2],[3]", "KEY={\'type\': \'CADLoss\'}". A second --grid combines its values '
        'with those of the first',
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
        '--name',
        nargs='+',
        metavar='NAME',
        help='what results call each CONFIG without --method (default: the names of the files)',
    )
    parser.add_argument(
        '--as-long-as',
        metavar='CELL',
        help='with --method student: train it for as many processor seconds as these trainings took '
        'that have ended, such as cad-w3, which is the name of their folders without -seed0',
    )
    parser.add_argument(
        '--jobs', type=int, default=1, metavar='N', help='trainings side by side (default: 1)'
    )
    parser.add_argument(
        '--minutes',
        type=float,
        metavar='M',
        help='begin no training that would end after so many minutes',
    )
    parser.add_argument(
        '--share-teacher',
        action='store_true',
        help='train those of one seed in one process, in turns: the teacher runs once for all of them. '
        'Their results are bit by bit those of separate trainings, on a device that repeats its '
        'results. What cannot share is trained by itself, and a line says why',
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
    args = parser.parse_args()
    check_arguments(parser, args)
    return args


def check_arguments(parser, args) -> None:
    """Refuse what cannot be, and fill in what follows from the rest."""
    for config in args.config:
        if not Path(config).is_file():
            parser.error(f'CONFIG: {config!r} is not a file (current folder: {os.getcwd()})')
    methods = args.method or []
    if not methods and args.weights:
        parser.error(f'--weights needs --method, whose loss gets them; got {args.weights}')
    weighted = [method for method in methods if method != 'student']
    if methods and bool(weighted) != bool(args.weights):
        what = 'needs --weights' if weighted else 'has no --weights'
        parser.error(f'--method {" ".join(weighted or methods)} {what}, got {args.weights}')
    for weight in args.weights:
        if not (math.isfinite(weight) and weight > 0):
            parser.error(f'--weights must be positive numbers, got {weight}')
    for name, values in dict(weights=args.weights, seeds=args.seeds, method=methods).items():
        if len(set(values)) != len(values):
            parser.error(f'--{name} must differ, got {values}')
    for name in ('jobs', 'gpus'):
        if getattr(args, name) < 1:
            parser.error(f'--{name} must be at least 1, got {getattr(args, name)}')
    if args.minutes is not None and not args.minutes > 0:
        parser.error(f'--minutes must be positive, got {args.minutes}')
    try:
        args.grid = GRID.parse_grid(args.grid)
    except GRID.GridError as error:
        parser.error(f'--grid: {error}')
    check_keys(parser, args, {**OWN_KEYS, **(METHOD_KEYS if methods else {})})
    check_configs(parser, args, methods)


def check_keys(parser, args, own_keys: dict[str, str]) -> None:
    for option in args.cfg_options:
        if '=' not in option:
            parser.error(f'--cfg-options: {option!r} is not KEY=VALUE')
    given = [('--cfg-options', option) for option in args.cfg_options]
    given += [('--grid', f'{key}={",".join(values)}') for key, values in args.grid.items()]
    for argument, option in given:
        key = option.partition('=')[0]
        for own, instead in own_keys.items():
            if f'{key}.'.startswith(f'{own}.') or f'{own}.'.startswith(f'{key}.'):
                parser.error(f'{argument} {option}: the sweep sets {own}; use {instead}')
    changed = [option.partition('=')[0] for option in args.cfg_options]
    for key in args.grid:
        for other in [*changed, *(other for other in args.grid if other != key)]:
            if f'{key}.'.startswith(f'{other}.') or f'{other}.'.startswith(f'{key}.'):
                parser.error(f'--grid {key}: {other} is set too, and one of them would be lost')


def check_configs(parser, args, methods: list[str]) -> None:
    if methods and (len(args.config) > 1 or args.name):
        parser.error(
            f'--method {" ".join(methods)} names the trainings of one CONFIG; several CONFIGs, and '
            '--name, go without --method'
        )
    args.name = args.name or [Path(config).stem for config in args.config]
    if len(set(args.name)) != len(args.config):
        parser.error(
            f'--name must give each of the {len(args.config)} CONFIGs a name of its own, got '
            f'{args.name}'
        )
    known = sorted({*args.name} & {*METHODS}) if not methods else []
    if known:
        parser.error(
            f'the results of CONFIG would be called {" ".join(known)}, as those of a --method. Give '
            'another name with --name'
        )
    if args.share_teacher and args.print:
        parser.error('--print prints the commands of separate trainings; leave out --share-teacher')
    if args.share_teacher and methods == ['student']:
        parser.error('--share-teacher: the student alone has no teacher')
    if args.as_long_as is not None and (methods != ['student'] or args.grid):
        parser.error('--as-long-as is for --method student alone, without --grid')
    if args.work_dir is None:
        if len(args.config) > 1:
            parser.error('several CONFIGs need a --work-dir')
        args.work_dir = Path('work_dirs/weight_sweep', Path(args.config[0]).stem)


def main() -> None:
    args = make_arguments()
    with contextlib.redirect_stdout(sys.stderr):  # which is for the commands of --print
        from rawkd_mm.analysis.grid import GridError
        from rawkd_mm.analysis.weight_sweep import Sweep, TrainingError, print_commands, run_sweeps
        from rawkd_mm.training import UsageError

    common = {name: value for name, value in vars(args).items() if name in Sweep.__annotations__}
    sweeps = []
    for config, name in zip(args.config, args.name):
        sweep = Sweep(**{**common, 'config': config, 'name': name, 'method': None})
        for method in args.method or [None]:
            weights = [] if method == 'student' else args.weights
            sweeps.append(replace(sweep, method=method, weights=weights))
    try:
        if args.print:
            print_commands(sweeps)
            return
        sys.exit(run_sweeps(sweeps, args.minutes, args.share_teacher))
    except (TrainingError, GridError, UsageError) as error:
        sys.exit(f'weight_sweep.py: error: {error}')
    except KeyboardInterrupt:
        message = (
            '\nweight_sweep.py: interrupted, the trainings were ended; the same command goes on'
        )
        print(message, file=sys.stderr)
        sys.exit(130)


if __name__ == '__main__':
    main()
