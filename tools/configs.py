#!/usr/bin/env python
"""List the configs that come with this package, or copy one as a file that needs no other.

Without -o, prints the names of the configs that have every TEXT in their name. With -o, TEXT is the
name of one config, with or without its folder and .py, or a part of it that no other has. The copy
has its bases and models written out. It works in any folder, in an environment that has rawkd_mm.
Weights that come with the config, or with that of its teacher, are copied beside it.
Paths in it, such as those of the data and of the teacher's weights, are relative to the folder in which
the training is started; they are printed with what makes them.
"""

import filecmp
import re
import shutil
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
        weights = copy_weights(cfg, name, args.out.parent, args.force)
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
    print(f'{args.out} is written, a copy of {name}.')
    if paths:
        print('It reads, relative to the folder in which the training is started:')
        print(*(f'  {path}' for path in paths), sep='\n')
    print(f'To train it: rawkd train {args.out}')
    if weights is not None:
        print(f'Its weights are {weights}. To evaluate them: rawkd test {args.out} {weights}')


def copy_weights(cfg, name: str, folder: Path, force: bool) -> Path | None:
    """Copy the weights that come with a config, and with that of its teacher, into a folder.

    The config's ``teacher_ckpt`` becomes that of the copy.

    Returns:
        Path | None: The copy of the config's own weights, if it has any.
    """
    from rawkd_mm.training import UsageError

    own = (CONFIGS / name).parent / 'weights' / f'{Path(name).stem}.pth'
    teacher = cfg.model.get('teacher_ckpt') or ''
    shipped = CONFIGS.parent / teacher if '://' not in teacher else None
    copies = {}
    for file in (own, shipped):
        if file is None or file.parent.name != 'weights' or not file.is_file():
            continue
        copies[file] = copy = folder / file.name
        if copy.exists() and not force and not filecmp.cmp(file, copy, shallow=False):
            raise UsageError(
                f'{str(copy)!r} exists and is not the file {file.name} that comes with {name}. '
                'Choose another folder for -o, or overwrite it with --force'
            )
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    if shipped in copies:
        cfg.model.teacher_ckpt = str(copies[shipped])
    return copies.get(own)


def paths_of(cfg) -> list[str]:
    """Say which data and which weights of the teacher a config needs, and what makes them."""
    roots = [dataset.get('data_root') for dataset in datasets_of(cfg)]
    lines = [f'{root}: the data{how_to_make(cfg, root)}' for root in dict.fromkeys(roots) if root]
    checkpoint = cfg.model.get('teacher_ckpt')
    if checkpoint and '://' not in checkpoint:
        maker = zoo.maker_of(zoo.config_names(CONFIGS), checkpoint)
        how = ''
        if maker is not None:
            file = Path(maker).name
            how = f', from: rawkd configs {maker} -o . && rawkd train {file}'
        lines.append(f"{checkpoint}: the teacher's weights{how}")
    return lines


def datasets_of(cfg) -> list[dict]:
    """Give what a training reads: its data set, and that of images without labels."""
    dataset = (cfg.get('train_dataloader') or {}).get('dataset') or {}
    while 'data_root' not in dataset and isinstance(dataset.get('dataset'), dict):
        dataset = dataset['dataset']
    return [
        dataset,
        *(hook['dataset'] for hook in cfg.get('custom_hooks') or () if 'dataset' in hook),
    ]


def how_to_make(cfg, root: str) -> str:
    """Say what makes the data, where this package does."""
    size = re.search(r'digit-scenes-(\d+)x', Path(cfg.filename).name) if cfg.filename else None
    if size is None or not root.startswith('data/digit_scenes'):
        return ''
    folder = '/'.join(root.split('/')[:2])
    return f', from: rawkd digit-scenes --root {folder} --size {size[1]}'


if __name__ == '__main__':
    main()
