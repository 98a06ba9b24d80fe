"""What train.py and test.py have in common on the command line."""

import argparse
import os
from pathlib import Path

import _package  # a checkout's tools belong to the checkout's package
from mmengine.config import DictAction


def make_plain_parser(description: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=_package.program(),
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def make_parser(description: str) -> argparse.ArgumentParser:
    parser = make_plain_parser(description)
    parser.add_argument('config', metavar='CONFIG', help='path of a config file')
    return parser


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='override entries of the config, e.g. train_cfg.max_iters=100; lists as key="[a,b]" '
        'or key=a,b, without spaces',
    )


def add_run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--work-dir',
        metavar='DIR',
        help="logs and results; default: the config's work_dir, else ./work_dirs/<name of CONFIG>",
    )
    add_cfg_options(parser)
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='what started the processes, if there are several (dist_*.sh and slurm_*.sh set it)',
    )
    # torch.distributed.launch passes --local-rank since torch 2.0, --local_rank before
    parser.add_argument(
        '--local_rank', '--local-rank', type=int, default=0, metavar='N', help=argparse.SUPPRESS
    )


def parse_args(
    parser: argparse.ArgumentParser, arguments: list[str] | None = None
) -> argparse.Namespace:
    args = parser.parse_args(arguments)
    if not Path(args.config).is_file():
        parser.error(f'CONFIG: {args.config!r} is not a file (current folder: {os.getcwd()})')
    checkpoint = getattr(args, 'checkpoint', None)
    if checkpoint is not None and '://' not in checkpoint and not Path(checkpoint).is_file():
        parser.error(f'CKPT: {checkpoint!r} is not a file (current folder: {os.getcwd()})')
    if hasattr(args, 'local_rank'):
        os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args
