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
    from mmengine.config import Config

    from rawkd_mm.training import (
        UsageError,
        add_imports,
        inline_models,
        load_config,
        make_paths_relative,
        package_of,
        refuse_what_is_no_text,
    )

    try:
        cfg = inline_models(load_config(args.config, args.cfg_options))
        refuse_what_is_no_text(cfg, repr(args.config))
    except UsageError as error:
        sys.exit(f'dump_config.py: error: {error}')
    add_imports(cfg, dict(imports=['rawkd_mm'], allow_failed_imports=False))
    roots = [os.getcwd(), str(Path(__file__).resolve().parents[1])]
    changed, left = make_paths_relative(cfg, roots)

    header = (
        f'# Written by rawkd_mm (tools/dump_config.py) from {Path(args.config).name}.\n'
        '# Needs the package rawkd_mm, nothing else of its repository. Paths are relative to the\n'
        '# folder in which the training is started.\n'
    )
    text = header + cfg.pretty_text
    try:
        if Config.fromstring(text, '.py').to_dict() != cfg.to_dict():
            raise ValueError('it reads differently than it was written')
    except Exception as error:
        sys.exit(
            f'dump_config.py: error: {args.config!r} cannot be written as a text config: {error}'
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding='utf-8')

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
