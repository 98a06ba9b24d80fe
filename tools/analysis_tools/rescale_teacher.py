#!/usr/bin/env python
"""Make a teacher that computes the same and whose feature has another norm, alpha times as large.

Multiplies weight and bias of the norm before the feature by alpha, and divides the weights of the layers
that read the feature by alpha. OUT.pth is a checkpoint for the same CONFIG. Before it is written, the
predictions are compared in float64: on random images and, if they are there, on the validation data of
CONFIG. A feature that does not allow it is refused with the reason. docs/sweeps.md shows a use.
"""

import contextlib
import logging
import math
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _common import add_cfg_options, make_parser, parse_args


def make_arguments():
    parser = make_parser(__doc__)
    parser.add_argument('checkpoint', metavar='CKPT', help="path or URL of the teacher's weights")
    parser.add_argument(
        '--feature',
        required=True,
        metavar='NAME',
        help='such as decode_head.bottleneck; tools/inspect_features.py lists them',
    )
    parser.add_argument(
        '--alpha', required=True, type=float, metavar='A', help='how many times as large, positive'
    )
    parser.add_argument(
        '-o', '--out', required=True, type=Path, metavar='OUT.pth', help='the file to write'
    )
    parser.add_argument('--force', action='store_true', help='overwrite OUT.pth if it exists')
    parser.add_argument(
        '--size',
        type=int,
        nargs=2,
        default=(128, 128),
        metavar=('HEIGHT', 'WIDTH'),
        help='of the random images (default: 128 128)',
    )
    parser.add_argument(
        '--images',
        type=int,
        default=4,
        metavar='N',
        help='validation images to compare (default: 4; 0 for none)',
    )
    add_cfg_options(parser)
    args = parse_args(parser)
    if not (args.alpha > 0 and math.isfinite(args.alpha)):
        parser.error(f'--alpha must be positive and finite, got {args.alpha}')
    if min(args.size) < 1:
        parser.error(f'--size must be positive, got {args.size[0]} {args.size[1]}')
    if args.images < 0:
        parser.error(f'--images must be at least 0, got {args.images}')
    if args.out.suffix != '.pth':
        parser.error(f'-o {str(args.out)!r} must end in .pth')
    if args.out.exists() and not args.force:
        parser.error(
            f'-o {str(args.out)!r} exists. Choose another name, or overwrite it with --force'
        )
    if args.out.exists() and '://' not in args.checkpoint and args.out.samefile(args.checkpoint):
        parser.error(f'-o {str(args.out)!r} is CKPT itself. Choose another name')
    del args.force
    return args


def main() -> None:
    args = make_arguments()
    # stdout is for the result; MMEngine's packages say there what they load
    with contextlib.redirect_stdout(sys.stderr):
        from rawkd_mm.analysis.rescale_teacher import write_rescaled_teacher
        from rawkd_mm.training import CheckpointError, UsageError

        warnings.simplefilter('ignore')
        logging.disable(logging.WARNING)
        try:
            text = write_rescaled_teacher(**vars(args))
        except (UsageError, CheckpointError) as error:
            sys.exit(f'rescale_teacher.py: error: {error}')
    print(text)


if __name__ == '__main__':
    main()
