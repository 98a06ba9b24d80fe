#!/usr/bin/env python
"""List the feature maps of a model: the modules that produce them, in the order in which they end.

CONFIG is a path, or the name of a published config such as
mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py. Each row is a name for
`make_distill_config.py --features STUDENT=TEACHER`. With --teacher both models are listed, and it is
marked which features match: of the same part of the model and the same stride. A star marks what
`--features auto` takes; below the list it is named again, with what `--features memory` takes where
that differs. Tokens are listed as the maps that ':tokens' makes of them. 'no map' in place of a stride:
a sequence without a grid (queries, classes, words), which can't be distilled. Weights are random:
neither shapes nor times depend on them.
"""

import argparse
import logging
import os
import sys
import warnings
from pathlib import Path

from _common import make_plain_parser


def parse_args() -> argparse.Namespace:
    parser = make_plain_parser(__doc__)
    parser.add_argument('config', metavar='CONFIG', help="a model's config; the student's")
    parser.add_argument('--teacher', metavar='CONFIG', help='a second model to compare it with')
    parser.add_argument(
        '--size',
        type=int,
        nargs=2,
        metavar=('HEIGHT', 'WIDTH'),
        help="of the image; default: the training crop of CONFIG, smaller where there's no GPU",
    )
    parser.add_argument(
        '--depth',
        type=int,
        default=2,
        metavar='N',
        help='list paths of at most N names (default 2, such as backbone.layer1); 0 lists all',
    )
    parser.add_argument('--json', metavar='FILE', help='write the lists to FILE as well')
    args = parser.parse_args()
    for value in (args.config, args.teacher):
        if value is not None and '::' not in value and not Path(value).is_file():
            parser.error(
                f'{value!r} is not a file (current folder: {os.getcwd()}) and not the name of a '
                "published config, such as 'mmseg::FOLDER/FILE.py'"
            )
    if args.depth < 0:
        parser.error(f'--depth must be 0 or more, got {args.depth}')
    if args.size is not None and min(args.size) < 1:
        parser.error(f'--size must be positive, got {args.size[0]} {args.size[1]}')
    return args


def main() -> None:
    args = parse_args()

    # see train.py
    from rawkd_mm.distill_config import inspect
    from rawkd_mm.training import UsageError

    warnings.simplefilter('ignore')
    logging.disable(logging.WARNING)
    try:
        inspect(args)
    except (UsageError, ValueError, RuntimeError) as error:
        sys.exit(f'inspect_features.py: error: {error}')


if __name__ == '__main__':
    main()
