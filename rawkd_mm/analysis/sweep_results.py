"""The table of what is finished in a sweep, as CSV."""

import csv
import io
import json
import statistics
from collections.abc import Iterable
from pathlib import Path

from filelock import FileLock

from .grid import cell_label
from .methods import LOSSES
from .one_training import TrainingError
from .text_files import write_text
from .training_logs import read_geometry

COLUMNS = (
    'pair', 'method', 'weight', 'seed', 'metric', 'value', 'iters', 'seconds', 'config', 'work_dir',
    'processor_seconds', 'startup_seconds', 'mn_over_N',
)  # fmt: skip


def number(weight: float) -> str:
    """Give a weight as short as it can be written.

    Args:
        weight (float): Any number.

    Returns:
        str: Such as '10' or '0.3', of which float() gives the same number.
    """
    short = f'{weight:g}'
    return short if float(short) == weight else repr(weight)


def relative(path: Path) -> str:
    """Give a path as seen from the current folder.

    Args:
        path (Path): A file or folder.

    Returns:
        str: The relative path, if it lies below the current folder, else its last part.
    """
    path = path.resolve()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path.name)


def point_of(row: dict) -> dict[str, str]:
    """Give where in the grid a row of the CSV is.

    Args:
        row (dict): Column to text.

    Returns:
        dict[str, str]: Key of the config to the text of its value.
    """
    return {key: text for key, text in row.items() if key not in COLUMNS and text}


def label_of(row: dict) -> str:
    """Name the cell of the grid that a row of the CSV is of.

    Args:
        row (dict): Column to text.

    Returns:
        str: See :func:`.grid.cell_label`.
    """
    return cell_label(row['method'], row['weight'], point_of(row))


def read_csv(path: Path) -> list[dict]:
    """Read a CSV of :func:`write_csv`.

    Args:
        path (Path): It need not exist.

    Returns:
        list[dict]: Rows, column to text.
    """
    if not path.is_file():
        return []
    with path.open(newline='') as file:
        return list(csv.DictReader(file))


def write_csv(work_dir: Path, metric: str, table: Path | None = None) -> Path:
    """Write what is finished in the work dir of a sweep, by whichever call of its tool.

    Args:
        work_dir (Path): Has a folder for each training.
        metric (str): Name of the value of the last validation.
        table (Path, optional): Another CSV that gets the same rows, and keeps those of trainings that
            the work dir does not have. Defaults to None.

    Returns:
        Path: The CSV in the work dir.

    Raises:
        TrainingError: If one lacks the metric.
    """
    path = work_dir / 'results.csv'
    with FileLock(work_dir / '.lock'):
        rows = [_row(work_dir, file, metric) for file in work_dir.glob('*/result.json')]
        write_text(path, _to_text(rows))
        if table is not None:
            new = {_key(row) for row in rows}
            kept = [row for row in read_csv(table) if _key(row) not in new]
            table.parent.mkdir(parents=True, exist_ok=True)
            write_text(table, _to_text([*kept, *rows]))
    return path


def finished_in(rows: Iterable[dict]) -> set[tuple[str, str, str]]:
    """Tell which trainings have rows.

    Args:
        rows (Iterable[dict]): See :func:`read_csv`.

    Returns:
        set[tuple[str, str, str]]: Pair, label of the cell, and seed.
    """
    return {_key(row) for row in rows}


def _key(row: dict) -> tuple[str, str, str]:
    return row['pair'], label_of(row), str(row['seed'])


def _row(work_dir: Path, file: Path, metric: str) -> dict:
    result = json.loads(file.read_text())
    about, metrics = result['about'], result['metrics']
    if metric not in metrics:
        raise TrainingError(
            f'{file.parent} has no metric {metric!r}, only {sorted(metrics)}: choose one '
            'of these with --metric'
        )
    used, start = (result.get(f'{name}_seconds') for name in ('processor', 'startup'))
    return {
        'pair': work_dir.resolve().name,
        'method': about['method'],
        'weight': '' if about['weight'] is None else number(about['weight']),
        'seed': about['seed'],
        'metric': metric,
        'value': f'{metrics[metric]:.6g}',  # float32 in the log
        'iters': result['iters'],
        'seconds': round(result['seconds']),
        'config': about['config'],
        'work_dir': relative(file.parent),
        'processor_seconds': '' if used is None else f'{used:.1f}',
        'startup_seconds': '' if start is None else f'{start:.1f}',
        'mn_over_N': _coupling(file.parent, result['iters']),
        **about.get('grid', {}),
    }


def _coupling(folder: Path, iters: int) -> str:
    """Give mn/N of a training with one pair of features: the mean over its second half."""
    pairs = list(read_geometry(folder).values())
    if len(pairs) != 1:
        return ''
    values = [value for step, value in pairs[0].get('mn_over_N', {}).items() if 2 * step >= iters]
    return f'{statistics.mean(values):.4g}' if values else ''


def _to_text(rows: list[dict]) -> str:
    methods = list(LOSSES)

    def order(row: dict) -> tuple:
        known = row['method'] in methods
        rank = methods.index(row['method']) if known else len(methods)
        point = tuple(sorted(point_of(row).items()))
        return row['pair'], rank, row['method'], float(row['weight'] or 0), point, int(row['seed'])

    rows = sorted(rows, key=order)
    keys = list(dict.fromkeys(key for row in rows for key in row if key not in COLUMNS))
    text = io.StringIO()
    writer = csv.DictWriter(text, [*COLUMNS, *keys], restval='', lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
