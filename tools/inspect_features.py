#!/usr/bin/env python
"""List the feature maps of a model: the modules that produce them, in the order in which they end.

CONFIG is a path, or the name of a published config such as
mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py. Each row is a name for
`make_distill_config.py --features STUDENT=TEACHER`. With --teacher both models are listed, and it is
marked which features match: of the same part of the model and the same stride. A star marks what
`--features auto` takes. Weights are random: neither shapes nor times depend on them.
"""

import argparse
import json
import logging
import os
import sys
import warnings
from pathlib import Path

from make_distill_config import build_alone, read_config, trial_size


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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


def chosen(model, role: str, shape) -> set:
    """Give the sources that `--features auto` takes."""
    from rawkd_mm.features import AutoFeatureError, find_features

    try:
        return {feature.source for feature in find_features(model, role, shape)}
    except (AutoFeatureError, RuntimeError):
        return set()


def print_table(console, title: str, listed, stars, marks, header: str | None) -> None:
    from rich.table import Table

    table = Table(title=title, title_justify='left')
    for name in ('', 'feature', 'module', 'shape', 'stride', 'time'):
        right = name in ('stride', 'time')
        table.add_column(name, justify='right' if right else 'left', overflow='fold')
    if header:
        table.add_column(header, overflow='fold')
    for entry in listed:
        source = entry.feature.source
        note = marks.get(source)
        text = note.text if note else ''
        if entry.runs != 1:
            text = f'runs {entry.runs} times: cannot be distilled'
        row = (
            '*' if source in stars else '',
            source.text,
            entry.kind,
            'x'.join(map(str, entry.feature.shape)),
            f'{entry.feature.stride:.3g}',
            f'{100 * entry.share:.1f} %',
        )
        table.add_row(*row, *([text] if header else []))
    console.print(table)


def to_json(listed, stars, marks) -> list[dict]:
    return [
        dict(
            feature=entry.feature.source.text,
            module=entry.kind,
            shape=list(entry.feature.shape),
            stride=entry.feature.stride,
            runs=entry.runs,
            time_share=entry.share,
            auto=entry.feature.source in stars,
            matches=marks[entry.feature.source].text if entry.feature.source in marks else None,
        )
        for entry in listed
    ]


def main() -> None:
    args = parse_args()

    # see train.py
    from rich.console import Console

    from rawkd_mm.features import image_channels, list_features, measure_feature, partners
    from rawkd_mm.features.listing import ListedFeature
    from rawkd_mm.training import UsageError

    warnings.simplefilter('ignore')
    logging.disable(logging.WARNING)
    console = Console(width=None if sys.stdout.isatty() else 140)
    depth = args.depth or None
    names = dict(student=args.config)
    if args.teacher:
        names['teacher'] = args.teacher
    lists, stars = {}, {}
    try:
        for role, name in names.items():
            cfg = read_config(name, role)
            if role == 'student':
                size = tuple(args.size or trial_size(cfg))
            model = build_alone(cfg, role)
            shape = (image_channels(model), *size)
            stars[role] = chosen(model, role, shape)
            lists[role] = list_features(model, shape, depth)
            listed = {entry.feature.source for entry in lists[role]}
            for source in stars[role] - listed:  # deeper than asked for, or an input
                kind = type(model.get_submodule(source.module)).__name__
                feature = measure_feature(model, source.text, shape)
                lists[role].append(ListedFeature(feature, kind, 1, 0.0))
    except (UsageError, ValueError, RuntimeError) as error:
        sys.exit(f'inspect_features.py: error: {error}')

    marks = {role: {} for role in lists}
    if args.teacher:
        marks['student'] = partners(lists['student'], lists['teacher'])
        if len(stars['student']) == len(stars['teacher']) == 1:
            marks['student'][next(iter(stars['student']))] = next(iter(stars['teacher']))
        marks['teacher'] = {theirs: ours for ours, theirs in marks['student'].items()}
    for role, name in names.items():
        other = {'student': 'teacher', 'teacher': 'student'}[role]
        title = f'{role if args.teacher else "features"} of {name}, image of {size[0]}x{size[1]}'
        header = f"matches the {other}'s" if args.teacher else None
        print_table(console, title, lists[role], stars[role], marks[role], header)
    if args.json:
        result = dict(image=list(size))
        for role, name in names.items():
            result[role] = dict(
                config=name, features=to_json(lists[role], stars[role], marks[role])
            )
        Path(args.json).parent.mkdir(parents=True, exist_ok=True)
        Path(args.json).write_text(json.dumps(result, indent=2) + '\n', encoding='utf-8')
        print(f'written to {args.json}')


if __name__ == '__main__':
    main()
