"""Tables and figures of what sweeps have trained: each cell of the grid beside a baseline."""

import csv
import io
import math
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from .figures import add_legend, save
from .grid import cell_label
from .methods import LEGENDS
from .paired_statistics import Comparison, Interval, compare_paired, mean_interval
from .sweep_results import label_of, point_of, read_csv
from .text_files import write_text

NEEDED = ('pair', 'method', 'weight', 'seed', 'metric', 'value', 'iters')
ANGULAR_WEIGHT = '2w mn/N'


class SummaryError(Exception):
    """The results cannot be summarised; the message says why."""


class Cell(NamedTuple):
    """The trainings that differ in their seeds alone.

    Attributes:
        pair: Of teacher and student.
        label: Name of the cell in the folders of its trainings.
        method: Its method.
        weight: Text of the weight of its loss; '' without one.
        point: Key of the config to the text of its value.
        metric: Name of the value.
        values: Seed to value.
        iters: Iterations of each training.
        processor_seconds: Mean over the trainings of which it is known; None if of none.
        mn_over_n: The same of mn/N.
    """

    pair: str
    label: str
    method: str
    weight: str
    point: dict[str, str]
    metric: str
    values: dict[str, float]
    iters: int
    processor_seconds: float | None
    mn_over_n: float | None


class Line(NamedTuple):
    """A cell with its statistics.

    Attributes:
        cell: The trainings.
        mean: Over their seeds.
        baseline: Label of what it is compared with; None for the baseline itself.
        comparison: None for the baseline itself, and if no seed is the same.
    """

    cell: Cell
    mean: Interval
    baseline: str | None
    comparison: Comparison | None


def read_cells(paths: list[Path]) -> list[Cell]:
    """Read the CSVs of sweeps.

    Args:
        paths (list[Path]): The results.csv of sweeps.

    Returns:
        list[Cell]: In the order of the rows.

    Raises:
        SummaryError: If one is not there, is not of weight_sweep.py, or has a training twice, a
            value that is no number, or trainings of one cell with other iterations or metrics.
    """
    groups = defaultdict(list)
    for path in paths:
        if not path.is_file():
            raise SummaryError(f'{str(path)!r} is not a file; give the results.csv of a sweep')
        rows = read_csv(path)
        if not rows:
            raise SummaryError(f'{path} has no rows; has any training of the sweep finished?')
        missing = [name for name in NEEDED if name not in rows[0]]
        if missing:
            raise SummaryError(f'{path} lacks the columns {missing}: is it of weight_sweep.py?')
        for row in rows:
            groups[row['pair'], label_of(row)].append(row)
    return [_make_cell(rows) for rows in groups.values()]


def _make_cell(rows: list[dict]) -> Cell:
    first = rows[0]
    what = f'{label_of(first)} of {first["pair"]}'
    for name in ('metric', 'iters'):
        found = sorted({row[name] for row in rows})
        if len(found) > 1:
            raise SummaryError(f'{what} has more than one {name}, {found}')
    values = {}
    for row in rows:
        if row['seed'] in values:
            raise SummaryError(
                f'{what} has seed {row["seed"]} more than once; is the same CSV given twice?'
            )
        values[row['seed']] = _number(row['value'])
        if values[row['seed']] is None:
            raise SummaryError(f'{what}, seed {row["seed"]}: {row["value"]!r} is no finite number')

    def mean_of(column: str) -> float | None:
        numbers = [_number(row.get(column) or '') for row in rows]
        numbers = [value for value in numbers if value is not None]
        return sum(numbers) / len(numbers) if numbers else None

    return Cell(
        first['pair'],
        label_of(first),
        first['method'],
        first['weight'],
        point_of(first),
        first['metric'],
        values,
        int(first['iters']),
        mean_of('processor_seconds'),
        mean_of('mn_over_N'),
    )


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def summarise(cells: list[Cell], baseline: str) -> list[Line]:
    """Compare all cells with a baseline, seed by seed.

    Args:
        cells (list[Cell]): See :func:`read_cells`.
        baseline (str): Label of a cell, such as 'student'; or its part without the values of the
            grid: each cell is then compared with the one that has the same values, as far as the
            baseline has them at all.

    Returns:
        list[Line]: One for each cell.

    Raises:
        SummaryError: If a pair has no such cell, or several that would do, or several metrics.
        MissingScipyError: If SciPy is not installed.
    """
    return [_line(cell, _baseline_of(cell, cells, baseline)) for cell in cells]


def _baseline_of(cell: Cell, cells: list[Cell], baseline: str) -> Cell:
    pair = [other for other in cells if other.pair == cell.pair]
    metrics = sorted({other.metric for other in pair})
    if len(metrics) > 1:
        raise SummaryError(f'{cell.pair} has more than one metric, {metrics}')
    found = [other for other in pair if other.label == baseline]
    if not found:
        found = [o for o in pair if cell_label(o.method, o.weight, {}) == baseline]
        if not found:
            raise SummaryError(
                f'--baseline {baseline}: {cell.pair} has no such trainings, only '
                f'{[other.label for other in pair]}'
            )
        if len(found) > 1:
            point = cell.point.items()
            found = [o for o in found if o.point.items() <= point or point <= o.point.items()]
        if len(found) != 1:
            raise SummaryError(
                f'--baseline {baseline}: {cell.label} of {cell.pair} could be compared with '
                f'{[other.label for other in found] or "none"}. Give the whole name of one of '
                f'{[o.label for o in pair if cell_label(o.method, o.weight, {}) == baseline]}'
            )
    return found[0]


def _line(cell: Cell, baseline: Cell) -> Line:
    mean = mean_interval(list(cell.values.values()))
    if baseline is cell:
        return Line(cell, mean, None, None)
    return Line(cell, mean, baseline.label, compare_paired(cell.values, baseline.values))


def make_csv(lines: list[Line]) -> str:
    """Give all numbers as CSV.

    Args:
        lines (list[Line]): See :func:`summarise`.

    Returns:
        str: A row for each cell. Empty is what one seed does not tell.
    """
    keys = list(dict.fromkeys(key for line in lines for key in line.cell.point))
    rows = []
    for cell, mean, baseline, comparison in lines:
        pairs, difference, t_test, wilcoxon = comparison or ('', (None,) * 4, None, None)
        numbers = dict(zip(('mean', 'std', 'ci_low', 'ci_high'), mean))
        names = ('difference', 'difference_std', 'difference_ci_low', 'difference_ci_high')
        tests = dict(zip(names, difference), t_test_p=t_test, wilcoxon_p=wilcoxon)
        costs = dict(processor_seconds=cell.processor_seconds, mn_over_N=cell.mn_over_n)
        rows.append(
            dict(
                pair=cell.pair,
                method=cell.method,
                weight=cell.weight,
                **{key: cell.point.get(key, '') for key in keys},
                metric=cell.metric,
                seeds=len(cell.values),
                **_texts(numbers),
                baseline=baseline or '',
                pairs=pairs,
                **_texts(tests),
                iters=cell.iters,
                **_texts(costs),
            )
        )
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _texts(numbers: dict[str, float | None]) -> dict[str, str]:
    return {name: '' if value is None else f'{value:.6g}' for name, value in numbers.items()}


def make_markdown(lines: list[Line]) -> str:
    """Give the table that a page shows.

    Args:
        lines (list[Line]): See :func:`summarise`.

    Returns:
        str: A table, and below it what its columns are.
    """
    keys = list(dict.fromkeys(key for line in lines for key in line.cell.point))
    several = len({line.cell.pair for line in lines}) > 1
    metrics = sorted({line.cell.metric for line in lines})
    baselines = sorted({line.baseline for line in lines if line.baseline})
    names = [*(['pair'] if several else []), 'method', 'w', *keys, 'seeds', ' or '.join(metrics)]
    names += ['difference', '95 % interval', 'p (t)', 'p (Wilcoxon)', 'iterations']
    names += ['processor seconds']
    rows = [f'| {" | ".join(names)} |', '|' + '---|' * len(names)]
    for cell, mean, _, comparison in lines:
        cells = [*([cell.pair] if several else []), cell.method, cell.weight]
        cells += [short(cell.point.get(key, '')) for key in keys]
        # detectors have AP from 0 to 1
        digits = 4 if abs(mean.mean) <= 1 and (mean.std or 0) < 0.1 else 2
        cells += [str(len(cell.values)), _plus_minus(mean, digits)]
        if comparison is None:
            cells += [''] * 4
        else:
            low, high = comparison.difference.low, comparison.difference.high
            pairs = '' if comparison.pairs == len(cell.values) else f' ({comparison.pairs} seeds)'
            cells.append(_plus_minus(comparison.difference, digits, '+') + pairs)
            cells.append('' if low is None else f'{low:+.{digits}f} to {high:+.{digits}f}')
            tests = comparison.t_test, comparison.wilcoxon
            cells += ['' if p is None else f'{p:.3f}' if p >= 0.001 else '< 0.001' for p in tests]
        seconds = cell.processor_seconds
        cells += [str(cell.iters), '' if seconds is None else f'{seconds:.0f}']
        rows.append(f'| {" | ".join(cells)} |')
    note = (
        'Means ± sample standard deviations over the seeds. The difference is that to '
        f'{" or ".join(baselines) or "nothing"} with the same seeds, with the 95 % confidence interval '
        "of its mean by Student's t. p: two-sided, of the paired t-test and of Wilcoxon's signed-rank "
        'test; not corrected for the number of rows.'
    )
    return '\n'.join([*rows, '', note, ''])


def _plus_minus(interval: Interval, digits: int, sign: str = '') -> str:
    text = f'{interval.mean:{sign}.{digits}f}'
    return text if interval.std is None else f'{text} ± {interval.std:.{digits}f}'


def short(value: str) -> str:
    """Give a value of a grid as a reader knows it: of a path the name of its file."""
    return Path(value).stem if '/' in value and not value.startswith(('{', '[')) else value


def draw_over_weight(lines: list[Line], by: str | None, x: str, ylim: tuple | None = None):
    """Draw the metric over the weight: a panel for each pair and method, a curve for each value.

    Args:
        lines (list[Line]): See :func:`summarise`.
        by (str | None): Key of the grid, of whose values each has a curve.
        x (str): 'weight', ``ANGULAR_WEIGHT``, or a key of the grid with numbers.
        ylim (tuple | None): The lowest and the highest value of the metric to show. Defaults to
            None, all of them.

    Returns:
        matplotlib.figure.Figure | None: The figure; None if no method has two values of x.

    Raises:
        SummaryError: If a curve would have two points at one place.
    """
    import matplotlib.pyplot as plt

    panels = defaultdict(lambda: defaultdict(dict))
    for line in lines:
        place = _place(line.cell, x)
        if place is not None:
            curve = panels[line.cell.pair, line.cell.method][line.cell.point.get(by, '')]
            if place in curve:
                raise SummaryError(
                    f'{line.cell.label} and {curve[place].cell.label} are both at {x} = {place:g} of '
                    'one curve. Tell them apart with --by KEY'
                )
            curve[place] = line
    panels = {
        key: curves for key, curves in panels.items() if any(len(c) > 1 for c in curves.values())
    }
    if not panels:
        return None
    baselines = {(line.cell.pair, line.cell.label): line for line in lines}
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4.6 * len(panels), 4.2), squeeze=False, layout='constrained',
        sharey=len({pair for pair, _ in panels}) == 1,
    )  # fmt: skip
    for axis, ((pair, method), curves) in zip(axes[0], panels.items()):
        shown = {line.baseline for curve in curves.values() for line in curve.values()}
        for label in sorted(name for name in shown if name):
            mean = baselines[pair, label].mean
            axis.axhline(mean.mean, color='0.4', linestyle='--', label=label)
            if mean.std is not None:
                band = mean.mean - mean.std, mean.mean + mean.std
                axis.axhspan(*band, color='0.4', alpha=0.12, linewidth=0)
        for i, (value, curve) in enumerate(
            sorted(curves.items(), key=lambda item: _order(item[0]))
        ):
            points = [curve[place] for place in sorted(curve)]
            axis.errorbar(
                sorted(curve),
                [line.mean.mean for line in points],
                [line.mean.std or 0.0 for line in points],
                label=short(value) or (by and "the config's own") or method,
                color=f'C{i}',
                marker='osD^vXP'[i % 7],
                capsize=3,
                markersize=5,
            )
        axis.set(xscale='log', ylim=ylim, xlabel=f'{x} (log scale)')
        metric = next(iter(next(iter(curves.values())).values())).cell.metric
        axis.set_ylabel(metric)
        axis.set_title(f'{pair}\n{LEGENDS.get(method, (method,))[0]}', fontsize=9)
        axis.grid(alpha=0.3)
        add_legend(axis, axis.get_legend_handles_labels()[0], below=0.55)
    return figure


def _place(cell: Cell, x: str) -> float | None:
    if x == ANGULAR_WEIGHT:
        weight = _number(cell.weight)
        known = weight is not None and cell.mn_over_n is not None
        return 2 * weight * cell.mn_over_n if known else None
    return _number(cell.weight if x == 'weight' else cell.point.get(x, ''))


def _order(value: str) -> tuple:
    number = _number(short(value).rpartition('-')[2])
    return (number is None, number or 0.0, value)


def draw_over_time(lines: list[Line], ylim: tuple | None = None):
    """Draw the metric over the processor time: a panel for each pair, a curve for each method.

    The student alone and what was trained as long as something else are one curve.

    Args:
        lines (list[Line]): See :func:`summarise`.
        ylim (tuple | None): See :func:`draw_over_weight`. Defaults to None.

    Returns:
        matplotlib.figure.Figure | None: The figure; None if no processor time is known.
    """
    import matplotlib.pyplot as plt

    panels = defaultdict(lambda: defaultdict(list))
    for line in lines:
        if line.cell.processor_seconds is not None:
            method = line.cell.method.partition('-as-long-as-')[0]
            panels[line.cell.pair][method].append(line)
    if not panels:
        return None
    figure, axes = plt.subplots(
        1, len(panels), figsize=(6.4 * len(panels), 5.0), squeeze=False, layout='constrained'
    )
    for axis, (pair, methods) in zip(axes[0], panels.items()):
        for i, (method, found) in enumerate(methods.items()):
            found = sorted(found, key=lambda line: line.cell.processor_seconds)
            label, style = LEGENDS.get(method, (method, {}))
            style = dict(color=f'C{i % 10}', marker='*hd<>p8'[i % 7]) | style
            if method == 'student':
                label, style = 'student alone', dict(color='0.3', marker='o', linestyle='--')
            else:
                style['linestyle'] = '-' if len({line.cell.weight for line in found}) > 1 else ''
            axis.errorbar(
                [line.cell.processor_seconds for line in found],
                [line.mean.mean for line in found],
                [line.mean.std or 0.0 for line in found],
                label=label,
                capsize=3,
                markersize=6,
                **style,
            )
        axis.set(ylim=ylim, xlabel='processor seconds of a training', title=pair)
        axis.set_ylabel(next(iter(methods.values()))[0].cell.metric)
        axis.grid(alpha=0.3)
        add_legend(axis, axis.get_legend_handles_labels()[0], below=0.55)
    return figure


def write_summary(
    paths: list[Path],
    out: str,
    baseline: str = 'student',
    by: str | None = None,
    x: str = 'weight',
    ylim: tuple | None = None,
    only: Collection[tuple[str, str]] | None = None,
) -> None:
    """Write the table as CSV and Markdown, and the figures; print their names and the table.

    Args:
        paths (list[Path]): The results.csv of sweeps.
        out (str): Writes <out>.csv, <out>.md and, where there is something to draw, <out>_weight and
            <out>_time as PNG and SVG.
        baseline (str): See :func:`summarise`. Defaults to 'student'.
        by (str | None): See :func:`draw_over_weight`. Defaults to None, the only key of the grid that
            cells with a value of x have, if there is one.
        x (str): See :func:`draw_over_weight`. Defaults to 'weight'.
        ylim (tuple | None): See :func:`draw_over_weight`. Defaults to None.
        only (Collection[tuple[str, str]] | None): Pair and label of the cells that count. Defaults to
            None, all.

    Raises:
        SummaryError: See :func:`read_cells`, :func:`summarise` and :func:`draw_over_weight`, and if no
            row has a key that was asked for.
        MissingScipyError: If SciPy is not installed.
    """
    cells = read_cells(paths)
    if only is not None:
        cells = [cell for cell in cells if (cell.pair, cell.label) in only]
        if not cells:
            raise SummaryError('none of these trainings has finished')
    keys = list(dict.fromkeys(key for cell in cells for key in cell.point))
    for argument, key in (('--by', by), ('--x', x)):
        if key not in (None, *keys) and not (
            key in ('weight', ANGULAR_WEIGHT) and argument == '--x'
        ):
            raise SummaryError(f'{argument} {key}: the grid has the keys {keys}')
    drawn = {key for cell in cells if _place(cell, x) is not None for key in cell.point} - {x}
    if by is None and len(drawn) == 1:
        (by,) = drawn
    lines = summarise(cells, baseline)
    table = make_markdown(lines)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    write_text(Path(f'{out}.csv'), make_csv(lines))
    write_text(Path(f'{out}.md'), table)
    print(f'{table}\n{out}.csv\n{out}.md')
    for name, figure in (
        ('weight', draw_over_weight(lines, by, x, ylim)),
        ('time', draw_over_time(lines, ylim)),
    ):
        if figure is not None:
            save(figure, f'{out}_{name}')
