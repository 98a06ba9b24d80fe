#!/usr/bin/env python
"""Draw mn/N, and m and n, over the training, as the paper's Fig. 8, from what the trainings logged.

WORK_DIR is that of a weight sweep, or of one training with a FeatureGeometryHook. One column for each
sweep, method and pair of features, one line for each weight. n and m are the norms of the student's
(behind its connector) and the teacher's feature, N is the number of values of a feature of one image;
all are means over the batch of the iteration. Lines are means over the seeds, bands sample standard
deviations. m does not depend on the weight and is drawn once, as the mean of all trainings.
"""

import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _figures import METHODS, FigureError, add_legend, choose_titles, make_parser, make_title, save
from _trainings import read_about, read_geometry


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
            columns += _split(f'{name}, {METHODS[method][0]}', geometry, folder)
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
    """Draw a column for each of the columns; gives the figure."""
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


def main() -> None:
    parser = make_parser(__doc__, 'work dir of a weight sweep, or of one training', 'WORK_DIR')
    parser.add_argument(
        '--methods',
        nargs='+',
        choices=METHODS,
        default=['naive'],
        metavar='METHOD',
        help=f'of a sweep: {", ".join(METHODS)} (default: naive, as in the paper)',
    )
    parser.add_argument(
        '--cos-theta', action='store_true', help='add a row with the cosine of the angle'
    )
    parser.add_argument(
        '--smooth',
        type=int,
        default=1,
        metavar='N',
        help='draw the moving mean of the last N records, which the figure says (default: 1, none)',
    )
    args = parser.parse_args()
    if args.smooth < 1:
        parser.error(f'--smooth must be at least 1, got {args.smooth}')
    rows = [row for row in ROWS if row != 'cos_theta' or args.cos_theta]
    try:
        columns = read_columns(args.sources, args.methods)
        titles = choose_titles(args.titles, [column.name for column in columns])
        save(draw(columns, titles, rows, args.smooth), args.out)
    except FigureError as error:
        sys.exit(f'plot_feature_geometry.py: error: {error}')


if __name__ == '__main__':
    main()
