"""The table of what is finished in a sweep, as CSV."""

import csv
import io
import json
from pathlib import Path

from filelock import FileLock

from .methods import LOSSES
from .one_training import TrainingError
from .text_files import write_text

COLUMNS = (
    'pair', 'method', 'weight', 'seed', 'metric', 'value', 'iters', 'seconds', 'config', 'work_dir',
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


def write_csv(work_dir: Path, metric: str) -> Path:
    """Write what is finished in the work dir of a sweep, by whichever call of its tool.

    Args:
        work_dir (Path): Has a folder for each training.
        metric (str): Name of the value of the last validation.

    Returns:
        Path: The CSV.

    Raises:
        TrainingError: If one lacks the metric.
    """
    path = work_dir / 'results.csv'
    with FileLock(work_dir / '.lock'):
        rows = []
        for file in work_dir.glob('*/result.json'):
            result = json.loads(file.read_text())
            about, metrics = result['about'], result['metrics']
            if metric not in metrics:
                raise TrainingError(
                    f'{file.parent} has no metric {metric!r}, only {sorted(metrics)}: choose one '
                    'of these with --metric'
                )
            rows.append(
                dict(
                    pair=work_dir.resolve().name,
                    method=about['method'],
                    weight='' if about['weight'] is None else number(about['weight']),
                    seed=about['seed'],
                    metric=metric,
                    value=f'{metrics[metric]:.6g}',  # float32 in the log
                    iters=result['iters'],
                    seconds=round(result['seconds']),
                    config=about['config'],
                    work_dir=relative(file.parent),
                )
            )
        methods = list(LOSSES)
        rows.sort(
            key=lambda r: (methods.index(r['method']), float(r['weight'] or 0), int(r['seed']))
        )
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)
        write_text(path, text.getvalue())
    return path
