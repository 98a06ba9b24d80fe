"""mn/N, and m and n, over the training, as the paper's Fig. 8, from what the trainings logged."""

import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from .figures import FigureError, add_legend, choose_titles, make_title, save
from .methods import LEGENDS
from .one_training import read_about
from .training_logs import read_geometry


class Row(NamedTuple):
    """A row of the figure: the value of its lines, by the hook's name, and the axis' label."""

    line: str
    label: str


ROWS = {
    'mn_over_N': Row('mn_over_N', 'mn/N'),
    'norms': Row('n', 'norm: n (solid), m (dashed)'),
    'cos_theta': Row('cos_theta', 'cos θ'),
}


class Curve(NamedTuple):
    """A value over the training; ``std`` is None for one training."""

    steps: list[int]
    mean: list[float]
    std: list[float] | None


class Column(NamedTuple):
    """The trainings of one method: label of a line -> {value: {step: number}} of each seed."""

    name: str
    lines: dict[str, list[dict[str, dict[int, float]]]]


def read_columns(folders: Iterable[Path], methods: list[str]) -> list[Column]:
    """Read work dirs.

    Args:
        folders (Iterable[Path]): Of sweeps, or of single trainings.
        methods (list[str]): Of the sweeps, see ``LEGENDS``.

    Returns:
        list[Column]: For each folder, method and pair of features.

    Raises:
        FigureError: If a folder does not exist or has no training of one of the methods, or nothing
            logged the geometry.
    """
    columns = []
    for folder in folders:
        if not folder.is_dir():
            raise FigureError(f'{str(folder)!r} is not a folder; give the work dir of a sweep')
        name = folder.resolve().name
        runs = defaultdict(lambda: defaultdict(list))  # method -> weight -> folders
        for run, about in read_about(folder):
            runs[about.get('method')][about.get('weight')].append(run)
        if not runs:  # of one training
            columns += _split(name, {'n (student)': [read_geometry(folder)]}, folder)
            continue
        for method in methods:
            if method not in runs:
                raise FigureError(
                    f'{folder} has no training of method {method!r}, only of {sorted(runs, key=str)}; '
                    'choose with --methods'
                )
            geometry = {
                f'w = {weight:g}': [read_geometry(run) for run in runs[method][weight]]
                for weight in sorted(runs[method])
            }
            columns += _split(f'{name}, {LEGENDS[method][0]}', geometry, folder)
    return columns


def _split(name: str, geometry: dict[str, list[dict]], folder: Path) -> list[Column]:
    """Give a column for each pair of features."""
    pairs = list(dict.fromkeys(p for runs in geometry.values() for run in runs for p in run))
    if not pairs:
        raise FigureError(
            f'{folder}: no training of {name!r} has logged the geometry of its features. To log it, a '
            "config needs custom_hooks = [dict(type='FeatureGeometryHook', interval=50)]"
        )
    columns = []
    for pair in pairs:
        lines = {
            label: [run[pair] for run in runs if pair in run] for label, runs in geometry.items()
        }
        title = f'{name}, {pair}' if len(pairs) > 1 else name
        columns.append(Column(title, {label: runs for label, runs in lines.items() if runs}))
    return columns


def average(runs: list[dict[int, float]], smooth: int = 1) -> Curve:
    """Average over trainings, at the steps that all of them have reached.

    Args:
        runs (list[dict[int, float]]): {step: number} of each training.
        smooth (int): Replace each number by the mean of the last so many of its training.
            Defaults to 1, which leaves them.

    Returns:
        Curve: Mean and sample standard deviation.
    """
    runs = [_smooth(run, smooth) for run in runs]
    steps = sorted(set.intersection(*(set(run) for run in runs)))
    values = [[run[step] for run in runs] for step in steps]
    std = [statistics.stdev(v) for v in values] if len(runs) > 1 else None
    return Curve(steps, [statistics.mean(v) for v in values], std)


def _smooth(run: dict[int, float], size: int) -> dict[int, float]:
    steps = sorted(run)
    return {
        step: statistics.mean(run[s] for s in steps[max(0, i + 1 - size) : i + 1])
        for i, step in enumerate(steps)
    }


def draw(columns: list[Column], titles: list[str], rows: list[str], smooth: int):
    """Draw a column of panels for each of the columns.

    Args:
        columns (list[Column]): See :func:`read_columns`.
        titles (list[str]): One for each.
        rows (list[str]): Keys of ``ROWS``.
        smooth (int): See :func:`average`.

    Returns:
        matplotlib.figure.Figure: The figure.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        len(rows),
        len(columns),
        figsize=(4.6 * len(columns), 2.4 * len(rows) + 1.2),
        squeeze=False,
        sharex='col',
        layout='constrained',
    )
    for i, (column, title) in enumerate(zip(columns, titles)):
        colors = plt.get_cmap('viridis')(
            [0.9 * k / max(1, len(column.lines) - 1) for k in range(len(column.lines))]
        )
        for row, axis in zip(rows, axes[:, i]):
            lines = []
            for (label, runs), color in zip(column.lines.items(), colors):
                curve = average([run[ROWS[row].line] for run in runs], smooth)
                lines.append(_line(axis, curve, color=color, label=label))
            if row == 'norms':
                every = [run['m'] for runs in column.lines.values() for run in runs]
                curve = average(every, smooth)._replace(std=None)
                lines.append(_line(axis, curve, color='0.2', linestyle='--', label='m (teacher)'))
                handles = lines
            axis.set_ylabel(ROWS[row].label)
            axis.grid(alpha=0.3)
        seeds = [len(runs) for runs in column.lines.values()]
        axes[0, i].set_title(make_title(title, seeds), fontsize=9)
        note = f' (moving mean of {smooth} records)' if smooth > 1 else ''
        axes[-1, i].set_xlabel(f'iteration{note}')
        add_legend(axes[-1, i], handles, below=0.55)
    return figure


def _line(axis, curve: Curve, **style):
    (line,) = axis.plot(curve.steps, curve.mean, linewidth=1.3, **style)
    if curve.std is not None:
        low = [mean - std for mean, std in zip(curve.mean, curve.std)]
        high = [mean + std for mean, std in zip(curve.mean, curve.std)]
        axis.fill_between(curve.steps, low, high, color=style['color'], alpha=0.15, linewidth=0)
    return line


def write_figure(
    folders: Iterable[Path],
    methods: list[str],
    out: str,
    titles: list[str] | None = None,
    cos_theta: bool = False,
    smooth: int = 1,
) -> None:
    """Draw work dirs and write the figure.

    Args:
        folders (Iterable[Path]): See :func:`read_columns`.
        methods (list[str]): The same.
        out (str): Writes <out>.png and <out>.svg.
        titles (list[str] | None): The columns' titles. Defaults to None, names of folders.
        cos_theta (bool): Add a row with the cosine of the angle. Defaults to False.
        smooth (int): See :func:`average`. Defaults to 1.

    Raises:
        FigureError: See :func:`read_columns` and :func:`.figures.choose_titles`.
    """
    rows = [row for row in ROWS if row != 'cos_theta' or cos_theta]
    columns = read_columns(folders, methods)
    titles = choose_titles(titles, [column.name for column in columns])
    save(draw(columns, titles, rows, smooth), out)
