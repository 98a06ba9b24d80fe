"""What the figures of a sweep have in common."""

import textwrap
from pathlib import Path


class FigureError(Exception):
    """The figure cannot be drawn; the message says why."""


def choose_titles(given: list | None, names: list) -> list:
    """Give a title for each column.

    Args:
        given (list | None): Titles to take instead of the names.
        names (list): The columns' names.

    Returns:
        list: As many titles as names.

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

    Returns:
        str: Lines.
    """
    number = f'{min(seeds)} to {max(seeds)}' if min(seeds) != max(seeds) else str(max(seeds))
    note = 'one seed' if max(seeds) == 1 else f'mean ± standard deviation, {number} seeds'
    return '\n'.join([*textwrap.wrap(title, 44), note])


def add_legend(axis, handles: list, below: float) -> None:
    """Put the legend under the axis, where it hides nothing.

    Args:
        axis (matplotlib.axes.Axes): Of a figure whose layout is made.
        handles (list): What the legend names.
        below (float): Distance from the axis in inches.
    """
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
    """Write a figure as PNG and SVG; the same data give the same files.

    Args:
        figure (matplotlib.figure.Figure): What is drawn.
        prefix (str): Of the files, whose names are printed; their folder is made if need be.
    """
    import matplotlib

    Path(prefix).parent.mkdir(parents=True, exist_ok=True)
    # words stay words in the SVG, to be searched and read
    with matplotlib.rc_context({'svg.fonttype': 'none', 'svg.hashsalt': 'rawkd_mm'}):
        for suffix, metadata in (('png', {}), ('svg', {'Date': None})):
            path = f'{prefix}.{suffix}'
            figure.savefig(path, dpi=150, metadata=metadata)
            print(path)
