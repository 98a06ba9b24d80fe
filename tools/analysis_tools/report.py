#!/usr/bin/env python
"""Write what a distillation did as one HTML file, which needs no network.

Curves of losses, metric and feature geometry; a table of teacher, student alone and distilled student,
also for each class; validation images with what each of them sees; the angle between student and
teacher feature at each position; configuration, environment, command and time.

WORK_DIR is what tools/train.py left, of segmentation or detection. Checkpoints are evaluated on the
validation set of its config, once: the results stay in WORK_DIR/report_cache.json. Start it in the
folder where the training was started if the config has relative paths. docs/report.md explains it.
"""

import argparse
import os
import shlex
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _common import add_cfg_options, make_plain_parser


def parse_args() -> argparse.Namespace:
    parser = make_plain_parser(__doc__)
    parser.add_argument('work_dir', type=Path, metavar='WORK_DIR', help='of a training')
    parser.add_argument(
        '--baseline', type=Path, metavar='WORK_DIR', help='of the same student trained alone'
    )
    parser.add_argument(
        '--teacher-ckpt',
        metavar='PATH',
        help="path or URL of the teacher's weights; default: the config's model.teacher_ckpt",
    )
    parser.add_argument(
        '-o', '--out', type=Path, metavar='FILE', help='default: WORK_DIR/report.html'
    )
    parser.add_argument(
        '--images',
        type=int,
        default=4,
        metavar='N',
        help='validation images to show, evenly from all of them (default: 4; 0 for none)',
    )
    parser.add_argument(
        '--logs-only',
        action='store_true',
        help='only what the logs tell: no data or weights are needed, nothing is evaluated',
    )
    add_cfg_options(parser)
    args = parser.parse_args()
    if args.images < 0:
        parser.error(f'--images must be at least 0, got {args.images}')
    return args


def main() -> None:
    args = parse_args()
    import matplotlib
    from mmengine.logging import MMLogger

    matplotlib.use('agg')
    MMLogger.get_instance('report', log_level='ERROR')  # else it prints what it loads, and tables
    warnings.filterwarnings('ignore', module='mm(cv|seg|det|engine)')
    # takes seconds
    from rawkd_mm.analysis.report import ReportError, write_report

    command = shlex.join(['python', os.path.relpath(sys.argv[0]), *sys.argv[1:]])
    try:
        print(write_report(**vars(args), command=command))
    except ReportError as error:
        sys.exit(f'report.py: error: {error}')


if __name__ == '__main__':
    main()
