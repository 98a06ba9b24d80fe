#!/usr/bin/env python
"""List the configs that come with this package, or copy one as a file that needs no other.

Without -o, prints the names of the configs that have every TEXT in their name. With -o, TEXT is the
name of one config, with or without its folder and .py, or a part of it that no other has. The copy
has its bases and models written out. It works in any folder, in an environment that has rawkd_mm.
Paths in it, such as those of the data and of the teacher's weights, are relative to the folder in which
the training is started; they are printed with what makes them.
"""

import sys
from pathlib import Path

from _common import add_cfg_options, make_plain_parser
from _package import load_module

zoo = load_module('zoo')
CONFIGS = Path(__file__).resolve().parents[1] / 'configs'


def parse_args():
    parser = make_plain_parser(__doc__)
    parser.add_argument('texts', nargs='*', metavar='TEXT', help='a name, or parts of names')
    parser.add_argument(
        '-o',
        '--out',
        metavar='FILE.py|DIR',
        help='the file to write; in the folder DIR the copy has the name of the config',
    )
    parser.add_argument('--force', action='store_true', help='overwrite the file if it exists')
    add_cfg_options(parser)
    args = parser.parse_args()
    names = zoo.config_names(CONFIGS)
    args.names = zoo.matching(names, args.texts)
    if not args.names:
        what = ' '.join(args.texts)
        close = zoo.closest(names, what)
        parser.error(
            f'no config has {what!r} in its name; '
            + (f'the closest: {", ".join(close)}' if close else 'without TEXT all are listed')
        )
    if args.out is None:
        if args.cfg_options or args.force:
            parser.error('--cfg-options and --force are about the file that -o writes')
        return args
    if len(args.names) > 1:
        some = '\n  '.join(args.names[:10] + ['...'] * (len(args.names) > 10))
        parser.error(f'-o copies one config, and {len(args.names)} fit:\n  {some}')
    out = Path(args.out)
    args.out = out / Path(args.names[0]).name if out.is_dir() else out
    if args.out.suffix != '.py':
        parser.error(f'-o {str(out)!r}: expected a folder that exists or a name that ends in .py')
    if args.out.exists() and not args.force:
        parser.error(f'{str(args.out)!r} exists. Choose another name, or overwrite it with --force')
    return args


def main() -> None:
    args = parse_args()
    if args.out is None:
        print('\n'.join(args.names))
        return

    # see train.py
    from rawkd_mm.training import UsageError, read_self_contained, write_self_contained

    (name,) = args.names
    roots = [str(CONFIGS.parent)]
    try:
        cfg, _, _ = read_self_contained(str(CONFIGS / name), args.cfg_options, roots)
        paths = paths_of(cfg)
        header = (
            f'# Written by rawkd_mm from its config\n#   {name}\n'
            '# Needs the package rawkd_mm, nothing else of its repository. Reads, relative to the\n'
            '# folder in which the training is started:\n' + ''.join(f'#   {p}\n' for p in paths)
        )
        write_self_contained(cfg, args.out, header, name)
    except UsageError as error:
        sys.exit(f'configs.py: error: {error}')
    except ImportError as error:  # the configs of detectors build on mmdet's
        sys.exit(f'configs.py: error: {name} needs a package that is not installed: {error}')
    print(
        f'{args.out} is written, a copy of {name}.\n'
        'It reads, relative to the folder in which the training is started:\n  '
        + '\n  '.join(paths)
        + f'\nTo train it: rawkd train {args.out}'
    )


def paths_of(cfg) -> list[str]:
    """Say which data and which weights of the teacher a config needs, and what makes the weights."""
    dataset = (cfg.get('train_dataloader') or {}).get('dataset') or {}
    while 'data_root' not in dataset and isinstance(dataset.get('dataset'), dict):
        dataset = dataset['dataset']
    lines = [f'{dataset["data_root"]}: the data'] if dataset.get('data_root') else []
    checkpoint = cfg.model.get('teacher_ckpt')
    if checkpoint and '://' not in checkpoint:
        maker = zoo.maker_of(zoo.config_names(CONFIGS), checkpoint)
        how = ''
        if maker is not None:
            file = Path(maker).name
            how = f', from: rawkd configs {maker} -o . && rawkd train {file}'
        lines.append(f"{checkpoint}: the teacher's weights{how}")
    return lines


if __name__ == '__main__':
    main()
