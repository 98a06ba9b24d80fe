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
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _common import make_parser, parse_args
from _package import load_module

METHODS = tuple(load_module('analysis.methods').LOSSES)
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
        choices=METHODS,
        help='the loss of all pairs, or the student alone: '
        + ', '.join(METHODS)
        + ' (kl compares logits: take one of configs/kl as CONFIG, or one that names them)',
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


def main() -> None:
    args = make_arguments()
    with contextlib.redirect_stdout(sys.stderr):  # which is for the commands of --print
        from rawkd_mm.analysis.weight_sweep import Sweep, TrainingError, print_commands, run_sweep
        from rawkd_mm.training import UsageError

    only_print = vars(args).pop('print')
    sweep = Sweep(**vars(args))
    try:
        if only_print:
            print_commands(sweep)
            return
        sys.exit(run_sweep(sweep))
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
