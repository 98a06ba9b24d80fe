"""What the figures of a sweep have in common."""

import argparse
import textwrap
from pathlib import Path

# --method of weight_sweep.py -> what a legend calls it, and how it is drawn.
METHODS = {
    'naive': ('Naive', dict(color='#d55e00', marker='o')),
    'md': ('MD', dict(color='#0072b2', marker='s')),
    'lad': ('LAD', dict(color='#009e73', marker='^')),
    'cad': ('CAD', dict(color='#cc79a7', marker='D')),
    'pad': ('PAD', dict(color='#e69f00', marker='v')),
    'nfd': ('NFD', dict(color='#56b4e9', marker='X')),
}


class FigureError(Exception):
    """The figure cannot be drawn; the message says why."""


def make_parser(description: str, what: str, metavar: str) -> argparse.ArgumentParser:
    """Give a parser with the arguments that every figure takes."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('sources', type=Path, nargs='+', metavar=metavar, help=what)
    parser.add_argument(
        '-o',
        '--out',
        required=True,
        metavar='PREFIX',
        help='writes PREFIX.png and PREFIX.svg, in a folder that is made if need be',
    )
    parser.add_argument(
        '--titles',
        nargs='+',
        metavar='TITLE',
        help="the columns' titles, from left to right, instead of names of folders",
    )
    return parser


def choose_titles(given: list | None, names: list) -> list:
    """Give a title for each column.

    Raises:
        FigureError: If there is not one for each.
    """
    if given is not None and len(given) != len(names):
        raise FigureError(
            f'--titles has {len(given)} titles, the figure {len(names)} columns: {names}'
        )
    return given or names


def make_title(title: str, seeds: list[int]) -> str:
    """Give a column's title, broken into lines, and what its points or lines are.

    Args:
        title (str): The title.
        seeds (list[int]): Over how many seeds each of them is averaged.
    """
    number = f'{min(seeds)} to {max(seeds)}' if min(seeds) != max(seeds) else str(max(seeds))
    note = 'one seed' if max(seeds) == 1 else f'mean ± standard deviation, {number} seeds'
    return '\n'.join([*textwrap.wrap(title, 44), note])


def add_legend(axis, handles: list, below: float) -> None:
    """Put the legend under the axis, where it hides nothing; ``below`` is its distance in inches."""
    _, height = axis.figure.get_size_inches() * axis.get_position().size
    axis.legend(
        handles=handles,
        loc='upper center',
        bbox_to_anchor=(0.5, -below / height),
        ncols=3,
        fontsize=9,
        frameon=False,
    )


def save(figure, prefix: str) -> None:
    """Write a figure as PNG and SVG; the same data give the same files."""
    import matplotlib

    Path(prefix).parent.mkdir(parents=True, exist_ok=True)
    # words stay words in the SVG, to be searched and read
    with matplotlib.rc_context({'svg.fonttype': 'none', 'svg.hashsalt': 'rawkd_mm'}):
        for suffix, metadata in (('png', {}), ('svg', {'Date': None})):
            path = f'{prefix}.{suffix}'
            figure.savefig(path, dpi=150, metadata=metadata)
            print(path)
