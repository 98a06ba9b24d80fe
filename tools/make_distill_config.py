#!/usr/bin/env python
"""Write the config of a distillation from the configs of a teacher and a student.

CONFIG is a path, or the name of a published config such as
mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py. The teacher may be a model of another
library: timm::NAME, hf::NAME_OR_FOLDER, torchvision::NAME, or module::package.function for a model of
your own. The student keeps its own data and schedule. The result is built, given the teacher's weights
and trained for one iteration on made-up images before it is written. A table says what learns from
what, what it costs and what to mind.
"""

import argparse
import logging
import os
import re
import sys
import warnings
from pathlib import Path

import _common  # noqa: F401 (finds the checkout's package)

# as rawkd_mm.distill_config has them: --help does not wait for that to be imported
METHODS = ('lad', 'cad', 'pad', 'naive', 'md', 'nfd', 'cwd', 'kl', 'mgd', 'fgd', 'fkd')


def parse_args() -> argparse.Namespace:
    parser = _common.make_plain_parser(__doc__)
    parser.add_argument(
        '--teacher',
        required=True,
        metavar='CONFIG',
        help="the teacher's config, or a model of another library, such as timm::convnext_tiny",
    )
    parser.add_argument(
        '--teacher-ckpt',
        required=True,
        metavar='PATH',
        help="path or URL of its trained weights; 'pretrained' for those that its library has",
    )
    parser.add_argument(
        '--teacher-options',
        nargs='+',
        metavar='KEY=VALUE',
        default={},
        action=_common.DictAction,
        help='further arguments of a teacher from another library, such as out_indices="[3,7,11]"',
    )
    parser.add_argument('--student', required=True, metavar='CONFIG', help="the student's config")
    parser.add_argument(
        '--method',
        required=True,
        choices=METHODS,
        help='what compares the features; fgd and fkd are for detectors, kl for segmentors',
    )
    parser.add_argument(
        '--features',
        nargs='+',
        default=['auto'],
        metavar='auto|memory|STUDENT=TEACHER',
        help='what is compared. auto (default): of a segmentor the last feature before the '
        'classifier (cwd, kl: the scores of the main head), of mask classification the map that the '
        'masks are products of, of a detector every level of the neck (fgd, mgd, fkd of two stages: '
        "those that the RoI head reads) or else the backbone's maps. memory: of models with queries "
        "what the queries read instead. Or pairs of modules' paths, such as backbone[3]=backbone[3] "
        'decode_head.convs=decode_head.bottleneck backbone.layers.11:tokens=backbone[3], which '
        'tools/inspect_features.py lists',
    )
    parser.add_argument(
        '--unlabelled',
        metavar='FOLDER',
        help='distil images without labels, too: all images of this folder and below, through the '
        "student's own transforms less those that need labels",
    )
    parser.add_argument(
        '--unlabelled-batch',
        type=int,
        metavar='N',
        help="how many of them in an iteration and process (default: the student's batch size)",
    )
    parser.add_argument('-o', '--out', required=True, metavar='OUT.py', help='the file to write')
    parser.add_argument('--force', action='store_true', help='overwrite OUT.py if it exists')
    parser.add_argument(
        '--no-check',
        action='store_true',
        help="write without loading the teacher's weights and without the trial iteration",
    )
    args = parser.parse_args()
    for name in ('teacher', 'student'):
        value = getattr(args, name)
        if '::' not in value and not Path(value).is_file():
            parser.error(
                f'--{name} {value!r} is not a file (current folder: {os.getcwd()}) and not the '
                "name of a published config, such as 'mmseg::FOLDER/FILE.py'"
            )
    ckpt = args.teacher_ckpt
    is_pretrained = ckpt == 'pretrained' and '::' in args.teacher
    if '://' not in ckpt and not is_pretrained and not args.no_check and not Path(ckpt).is_file():
        parser.error(
            f'--teacher-ckpt {ckpt!r} is not a file (current folder: {os.getcwd()}). With '
            '--no-check the config is written without it'
        )
    if args.unlabelled is not None and not Path(args.unlabelled).is_dir():
        parser.error(
            f'--unlabelled {args.unlabelled!r} is not a folder (current folder: {os.getcwd()})'
        )
    if args.unlabelled_batch is not None and (args.unlabelled_batch < 1 or not args.unlabelled):
        parser.error(
            f'--unlabelled-batch {args.unlabelled_batch} is the number of images of --unlabelled '
            'FOLDER in an iteration, at least 1'
        )
    if Path(args.out).suffix != '.py':
        parser.error(f'-o {args.out!r} must end in .py')
    if Path(args.out).exists() and not args.force:
        parser.error(f'-o {args.out!r} exists. Choose another name, or overwrite it with --force')
    choices = {'auto', 'memory'}.intersection(args.features)
    wrong = [f for f in args.features if f not in choices and len(re.split(r'(?<!\[run)=', f)) != 2]
    if wrong or (choices and len(args.features) > 1):
        parser.error(
            f'--features {" ".join(args.features)}: expected either auto, or memory, or pairs '
            'STUDENT=TEACHER, such as decode_head.convs=decode_head.bottleneck'
        )
    return args


def main() -> None:
    args = parse_args()

    # see train.py
    from rawkd_mm.distill_config import run
    from rawkd_mm.training import UsageError

    # what this prints says all that the packages below would
    warnings.simplefilter('ignore')
    logging.disable(logging.WARNING)
    try:
        run(args)
    except (UsageError, ValueError, RuntimeError) as error:
        sys.exit(f'make_distill_config.py: error: {error}')


if __name__ == '__main__':
    main()
