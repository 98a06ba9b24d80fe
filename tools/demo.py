#!/usr/bin/env python
"""The method in one command: a student with few labels alone, with LAD and with CAD, and a table.

Makes the data (DigitScenes), trains the students for every seed, and writes to --work-dir:
table.md, results.json, predictions.png, curves.png, report.html (of CAD) and one folder a training.
The student has the labels of few images. LAD and CAD let it see the others too, without their labels,
through a teacher that comes with the package. Another student alone trains for as long as CAD did.
What is finished is not done again; an interrupted training goes on from its last checkpoint.

--task seg is segmentation by PSPNet, --task det detection by RetinaNet, for which MMDetection and
MMCV's compiled operators are needed (make env-test).
"""

import argparse
import importlib.util
import os
import sys
from pathlib import Path

import _package  # a checkout's tools belong to the checkout's package

# By default, of each task.
WORK_DIRS = {'seg': Path('work_dirs/demo'), 'det': Path('work_dirs/demo-det')}
DATA_ROOTS = {'seg': Path('data/digit_scenes'), 'det': Path('data/digit_scenes_64')}

# Minutes for one seed on two cores of a server processor, and what the teacher's training adds.
MINUTES = {'seg': (6, 4), 'det': (7, 6)}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=_package.program(),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        '--task', choices=WORK_DIRS, default='seg', help='segmentation (default) or detection'
    )
    work_dirs, data_roots = (
        ', '.join(f'{folder} ({task})' for task, folder in folders.items())
        for folders in (WORK_DIRS, DATA_ROOTS)
    )
    parser.add_argument('--work-dir', type=Path, metavar='DIR', help=f'default: {work_dirs}')
    parser.add_argument('--data-root', type=Path, metavar='DIR', help=f'default: {data_roots}')
    parser.add_argument(
        '--seeds',
        type=int,
        nargs='+',
        default=[0],
        help='train the students with each of these; each has labels of its own (default: 0)',
    )
    parser.add_argument(
        '--iters',
        type=int,
        metavar='N',
        help="iterations of every training (default: the configs'); few show nothing but that it runs",
    )
    parser.add_argument(
        '--from-scratch',
        action='store_true',
        help='train the teacher too, with the first seed, instead of using the one that comes along',
    )
    parser.add_argument(
        '--train', type=int, default=4000, metavar='N', help='training images (default: 4000)'
    )
    parser.add_argument(
        '--val', type=int, default=300, metavar='N', help='validation images (default: 300)'
    )
    parser.add_argument(
        '--jobs',
        type=int,
        default=min(os.cpu_count() or 1, 4),
        metavar='N',
        help='trainings side by side (default: the number of cores, at most 4)',
    )
    args = parser.parse_args()
    args.work_dir = args.work_dir or WORK_DIRS[args.task]
    args.data_root = args.data_root or DATA_ROOTS[args.task]
    if args.task == 'det' and not can_detect():
        parser.error(
            '--task det needs MMDetection and MMCV with its compiled operators, and '
            f'{sys.executable} does not have both: `make env-test` sets up an environment that has'
        )
    if args.jobs < 1:
        parser.error(f'--jobs must be at least 1, got {args.jobs}')
    if args.iters is not None and args.iters < 2:
        parser.error(f'--iters must be at least 2, got {args.iters}')
    if len(set(args.seeds)) != len(args.seeds):
        parser.error(f'--seeds must differ, got {args.seeds}')
    return args


def can_detect() -> bool:
    return all(importlib.util.find_spec(name) for name in ('mmdet', 'mmcv', 'mmcv._ext'))


def main() -> None:
    args = vars(parse_args())
    minutes, for_teacher = MINUTES[args['task']]
    minutes = len(args['seeds']) * minutes + args['from_scratch'] * for_teacher
    trainings = 4 * len(args['seeds']) + args['from_scratch']
    print(  # at once: the imports take seconds
        f'Data, {trainings} trainings, figures and report: about {minutes} minutes on two cores of a '
        "server processor, with the configs' iterations.",
        flush=True,
    )
    from rawkd_mm.analysis.demo import Demo, DemoError, run_demo
    from rawkd_mm.analysis.one_training import TrainingError

    try:
        run_demo(Demo(args.pop('task'), **args))
    except (DemoError, TrainingError) as error:
        sys.exit(f'demo: {error}')


if __name__ == '__main__':
    main()
