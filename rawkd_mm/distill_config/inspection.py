"""What the command inspect_features.py does: lists of the feature maps of models."""

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

from ..features import (
    find_features,
    find_memory,
    image_channels,
    list_features,
    measure_feature,
    partners,
)
from ..features.listing import ListedFeature
from ..features.source import FeatureSource
from ..teachers import teacher_from_name
from .models import build_alone, read_config, trial_size


def inspect(args: argparse.Namespace) -> None:
    """Print the feature maps of one model, or of two and what matches.

    Args:
        args (argparse.Namespace): ``config``, ``teacher``, ``size``, ``depth`` and ``json``, as
            inspect_features.py has them.

    Raises:
        UsageError: If a config cannot be read or its model built; ``ValueError`` and
            ``RuntimeError`` if it cannot run on such an image.
    """
    console = Console(width=None if sys.stdout.isatty() else 140)
    depth = args.depth or None
    names = dict(student=args.config)
    if args.teacher:
        names['teacher'] = args.teacher
    lists, stars, texts = {}, {}, {}
    for role, name in names.items():
        # a model of another library can only be a teacher
        cfg = read_config(name, 'teacher' if teacher_from_name(name) else role)
        if role == 'student':
            size = tuple(args.size or trial_size(cfg))
        model = build_alone(cfg, role)
        shape = (image_channels(model), *size)
        stars[role], texts[role] = chosen(model, role, shape)
        lists[role] = list_features(model, shape, depth)
        listed = {entry.feature.source for entry in lists[role]}
        for source in stars[role] - listed:  # deeper than asked for, or an input
            kind = type(model.get_submodule(source.module)).__name__
            feature = measure_feature(model, source.text, shape)
            lists[role].append(ListedFeature(feature, kind, 1, 0.0))

    marks = {role: {} for role in lists}
    if args.teacher:
        marks['student'] = partners(lists['student'], lists['teacher'])
        if len(stars['student']) == len(stars['teacher']) == 1:
            marks['student'][next(iter(stars['student']))] = next(iter(stars['teacher']))
        marks['teacher'] = {teacher: student for student, teacher in marks['student'].items()}
    for role, name in names.items():
        other = {'student': 'teacher', 'teacher': 'student'}[role]
        title = f'{role if args.teacher else "features"} of {name}, image of {size[0]}x{size[1]}'
        header = f"matches the {other}'s" if args.teacher else None
        print_table(console, title, lists[role], stars[role], marks[role], header)
        for text in texts[role]:
            console.print(text, markup=False, highlight=False)
    if args.json:
        result = dict(image=list(size))
        for role, name in names.items():
            result[role] = dict(
                config=name, features=to_json(lists[role], stars[role], marks[role])
            )
        Path(args.json).parent.mkdir(parents=True, exist_ok=True)
        Path(args.json).write_text(json.dumps(result, indent=2) + '\n', encoding='utf-8')
        print(f'written to {args.json}')


def chosen(
    model: nn.Module, role: str, shape: tuple[int, int, int]
) -> tuple[set[FeatureSource], list[str]]:
    """Give the sources that `--features auto` takes.

    And in words what `auto` and `memory` take, or why they take nothing.
    """
    try:
        found = [feature.source for feature in find_features(model, role, shape)]
    except (ValueError, RuntimeError) as error:  # AutoFeatureError is one
        return set(), [f'--features auto takes nothing: {error}']
    texts = [f'* --features auto takes {", ".join(source.text for source in found)}']
    try:
        memory = [feature.source for feature in find_memory(model, role, shape)]
    except (ValueError, RuntimeError) as error:
        texts.append(f'  --features memory takes nothing: {error}')
    else:
        if memory != found:
            texts.append(f'  --features memory takes {", ".join(source.text for source in memory)}')
    return set(found), texts


def print_table(
    console: Console,
    title: str,
    listed: list[ListedFeature],
    stars: set,
    marks: dict,
    header: str | None,
) -> None:
    """Print a model's features; a star marks what is chosen, the last column what matches.

    A sequence without a grid has 'no map' for its stride.
    """
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
            named = source._replace(run=0).text
            text = f'runs {entry.runs} times: choose one, such as {named}'
        row = (
            '*' if source in stars else '',
            escape(source.text),  # '[run=0]' is no markup
            entry.kind,
            'x'.join(map(str, entry.feature.shape)),
            f'{entry.feature.stride:.3g}' if entry.is_map else 'no map',
            f'{100 * entry.share:.1f} %',
        )
        table.add_row(*row, *([escape(text)] if header else []))
    console.print(table)


def to_json(listed: list[ListedFeature], stars: set, marks: dict) -> list[dict]:
    """Give the table as it is written to a file."""
    return [
        dict(
            feature=entry.feature.source.text,
            module=entry.kind,
            shape=list(entry.feature.shape),
            stride=entry.feature.stride if entry.is_map else None,
            runs=entry.runs,
            time_share=entry.share,
            auto=entry.feature.source in stars,
            matches=marks[entry.feature.source].text if entry.feature.source in marks else None,
        )
        for entry in listed
    ]
