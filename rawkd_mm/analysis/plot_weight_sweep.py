"""The metric over the weight of the loss, as the paper's Fig. 7, from the CSVs of weight sweeps."""

import csv
import math
import statistics
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from .figures import FigureError, add_legend, choose_titles, make_title, save
from .methods import LEGENDS

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

    Args:
        paths (list[Path]): The results.csv of sweeps.

    Returns:
        list[dict]: Their rows, with numbers as ``value`` and ``weight`` (None of the student alone).

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
                known = row['method'] in LEGENDS or row['method'] == 'student'
                if not known:
                    raise FigureError(
                        f'{path}, line {reader.line_num}: method {row["method"]!r} is none of '
                        f'{["student", *LEGENDS]}; summarise_sweep.py draws others too'
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

    Args:
        rows (list[dict]): See :func:`read_rows`.

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
                'more than once; is the same CSV given twice? summarise_sweep.py draws grids'
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
    for method in LEGENDS:
        for weight in sorted(w for m, w in values if m == method):
            methods[method][weight] = _point(values[method, weight])
    if not methods:
        raise FigureError(f'{pair} has nothing but the student alone')
    return Panel(rows[0]['metric'], _point(student), dict(methods))


def _point(values: list[float]) -> Point:
    std = statistics.stdev(values) if len(values) > 1 else None
    return Point(statistics.mean(values), std, len(values))


def draw(panels: dict[str, Panel], titles: list[str], ylim: tuple | None = None):
    """Draw panels side by side.

    Args:
        panels (dict[str, Panel]): See :func:`make_panels`.
        titles (list[str]): One for each.
        ylim (tuple | None): The lowest and the highest value of the metric to show. Defaults to
            None, all of them.

    Returns:
        matplotlib.figure.Figure: The figure.
    """
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
            label, style = LEGENDS[method]
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


def write_figure(
    paths: list[Path], out: str, titles: list[str] | None = None, ylim: tuple | None = None
) -> None:
    """Draw CSVs and write the figure.

    Args:
        paths (list[Path]): The results.csv of sweeps.
        out (str): Writes <out>.png and <out>.svg.
        titles (list[str] | None): The panels' titles. Defaults to None, the names of the pairs.
        ylim (tuple | None): See :func:`draw`. Defaults to None.

    Raises:
        FigureError: See :func:`read_rows`, :func:`make_panels` and :func:`.figures.choose_titles`.
    """
    panels = make_panels(read_rows(paths))
    save(draw(panels, choose_titles(titles, list(panels)), ylim), out)
