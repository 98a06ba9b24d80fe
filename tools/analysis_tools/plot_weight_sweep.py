#!/usr/bin/env python
"""Draw the metric over the weight of the loss, as the paper's Fig. 7, from weight_sweep.py's CSVs.

One panel for each pair of teacher and student, one line for each method, the student alone dashed.
Points are means over the seeds; bars, and the band around the dashed line, are sample standard
deviations (none where there is one seed).
"""

import csv
import math
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from _figures import METHODS, FigureError, add_legend, choose_titles, make_parser, make_title, save

NEEDED = ('pair', 'method', 'weight', 'seed', 'metric', 'value', 'iters')


class Point(NamedTuple):
    """A metric over the seeds; ``std`` is the sample standard deviation, None with one seed."""

    mean: float
    std: float | None
    seeds: int


class Panel(NamedTuple):
    """What there is about one pair."""

    metric: str
    student: Point
    methods: dict[str, dict[float, Point]]


def read_rows(paths: list[Path]) -> list[dict]:
    """Read CSVs.

    Raises:
        FigureError: If one is not there, is not of weight_sweep.py, or has a value that is no
            number.
    """
    rows = []
    for path in paths:
        if not path.is_file():
            raise FigureError(f'{str(path)!r} is not a file; give the results.csv of a sweep')
        with path.open(newline='') as file:
            reader = csv.DictReader(file)
            missing = [name for name in NEEDED if name not in (reader.fieldnames or ())]
            if missing:
                raise FigureError(f'{path} lacks the columns {missing}: is it of weight_sweep.py?')
            for row in reader:
                known = row['method'] in METHODS or row['method'] == 'student'
                if not known:
                    raise FigureError(
                        f'{path}, line {reader.line_num}: method {row["method"]!r} is none of '
                        f'{["student", *METHODS]}'
                    )
                for name in ('value', 'weight'):
                    row[name] = _number(row[name])
                    if row[name] is None and not (name == 'weight' and row['method'] == 'student'):
                        raise FigureError(
                            f'{path}, line {reader.line_num}: {name} is no finite number'
                        )
                rows.append(row)
    return rows


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def make_panels(rows: list[dict]) -> dict[str, Panel]:
    """Average over the seeds.

    Returns:
        dict[str, Panel]: By pair, in the order of the rows.

    Raises:
        FigureError: If a pair lacks the student alone or a distillation, or has a training twice,
            or several metrics or lengths of training, which cannot be compared.
    """
    if not rows:
        raise FigureError('there are no rows to draw; has any training of the sweep finished?')
    by_pair = defaultdict(list)
    for row in rows:
        by_pair[row['pair']].append(row)
    return {pair: _make_panel(pair, rows) for pair, rows in by_pair.items()}


def _make_panel(pair: str, rows: list[dict]) -> Panel:
    for name in ('metric', 'iters'):
        found = sorted({row[name] for row in rows})
        if len(found) > 1:
            raise FigureError(f'the rows of {pair} have more than one {name}, {found}')
    values, seen = defaultdict(list), set()
    for row in rows:
        key = (row['method'], row['weight'])
        if (*key, row['seed']) in seen:
            raise FigureError(
                f'{pair} has method {row["method"]!r}, weight {row["weight"]}, seed {row["seed"]} '
                'more than once; is the same CSV given twice?'
            )
        seen.add((*key, row['seed']))
        values[key].append(row['value'])
    student = values.pop(('student', None), None)
    if student is None:
        raise FigureError(
            f'{pair} lacks the student alone, the dashed line: weight_sweep.py CONFIG --method '
            'student with the same --work-dir'
        )
    methods = defaultdict(dict)
    for method in METHODS:
        for weight in sorted(w for m, w in values if m == method):
            methods[method][weight] = _point(values[method, weight])
    if not methods:
        raise FigureError(f'{pair} has nothing but the student alone')
    return Panel(rows[0]['metric'], _point(student), dict(methods))


def _point(values: list[float]) -> Point:
    std = statistics.stdev(values) if len(values) > 1 else None
    return Point(statistics.mean(values), std, len(values))


def draw(panels: dict[str, Panel], titles: list[str], ylim: tuple | None = None):
    """Draw panels side by side, of the metric's values from and to ``ylim``; gives the figure."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, len(panels), figsize=(4.6 * len(panels), 4.2), squeeze=False, layout='constrained'
    )
    for axis, panel, title in zip(axes[0], panels.values(), titles):
        student = panel.student
        axis.axhline(student.mean, color='0.4', linestyle='--', label='student alone')
        if student.std is not None:
            band = (student.mean - student.std, student.mean + student.std)
            axis.axhspan(*band, color='0.4', alpha=0.15, linewidth=0)
        for method, points in panel.methods.items():
            label, style = METHODS[method]
            axis.errorbar(
                list(points),
                [point.mean for point in points.values()],
                [point.std or 0.0 for point in points.values()],
                label=label,
                capsize=3,
                markersize=5,
                **style,
            )
        weights = sorted({w for points in panel.methods.values() for w in points})
        axis.set_xscale('log')
        axis.set_xticks(weights, [f'{weight:g}' for weight in weights])
        axis.minorticks_off()
        axis.set_ylim(ylim)
        axis.set_xlabel('weight w of the loss (log scale)')
        axis.set_ylabel(f'{panel.metric} on val (%)' if panel.metric == 'mIoU' else panel.metric)
        counts = [p.seeds for points in panel.methods.values() for p in points.values()]
        axis.set_title(make_title(title, [student.seeds, *counts]), fontsize=9)
        axis.grid(alpha=0.3)
        handles, _ = axis.get_legend_handles_labels()
        add_legend(axis, handles, below=0.55)
    return figure


def main() -> None:
    parser = make_parser(__doc__, 'results.csv of a weight sweep', 'CSV')
    parser.add_argument(
        '--ylim',
        type=float,
        nargs=2,
        metavar=('LOW', 'HIGH'),
        help='cut the axis of the metric, where one line hides what the others do',
    )
    args = parser.parse_args()
    if args.ylim and not args.ylim[0] < args.ylim[1]:
        parser.error(f'--ylim LOW HIGH: LOW must be below HIGH, got {args.ylim}')
    try:
        panels = make_panels(read_rows(args.sources))
        titles = choose_titles(args.titles, list(panels))
        save(draw(panels, titles, args.ylim), args.out)
    except FigureError as error:
        sys.exit(f'plot_weight_sweep.py: error: {error}')


if __name__ == '__main__':
    main()
