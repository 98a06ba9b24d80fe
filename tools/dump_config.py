#!/usr/bin/env python
"""Write a config as one file that needs no other: to be used in an mmseg or mmdet project.

Bases are merged, models given by cfg_path are written out, rawkd_mm is imported. The project trains
it with its own tools/train.py; all it needs is `rawkd_mm` installed.
"""

import os
import sys
from pathlib import Path

from _common import add_cfg_options, make_parser, parse_args


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument('out', metavar='OUT.py', help='the file to write')
    parser.add_argument('--force', action='store_true', help='overwrite OUT.py if it exists')
    add_cfg_options(parser)
    args = parse_args(parser)
    out = Path(args.out)
    if out.suffix != '.py':
        parser.error(f'OUT.py: {args.out!r} must end in .py')
    if out.exists() and not args.force:
        parser.error(f'{args.out!r} exists. Choose another name, or overwrite it with --force')

    # see train.py
    from rawkd_mm.training import (
        UsageError,
        package_of,
        read_self_contained,
        write_self_contained,
    )

    roots = [os.getcwd(), str(Path(__file__).resolve().parents[1])]
    header = (
        f'# Written by rawkd_mm (tools/dump_config.py) from {Path(args.config).name}.\n'
        '# Needs the package rawkd_mm, nothing else of its repository. Paths are relative to the\n'
        '# folder in which the training is started.\n'
    )
    try:
        cfg, changed, left = read_self_contained(args.config, args.cfg_options, roots)
        write_self_contained(cfg, out, header, repr(args.config))
    except UsageError as error:
        sys.exit(f'dump_config.py: error: {error}')

    for key, path in changed.items():
        print(f'now relative: {key} = {path!r}')
    for key, path in left.items():
        print(f'WARNING: an absolute path is left: {key} = {path!r}', file=sys.stderr)
    project = {'mmseg': 'mmsegmentation', 'mmdet': 'mmdetection'}.get(package_of(cfg), 'own')
    print(
        f'{out} is written. Copy it anywhere into your {project} project, in an environment that '
        f'has rawkd_mm, and there:\n    python tools/train.py {out.name}'
    )


if __name__ == '__main__':
    main()
