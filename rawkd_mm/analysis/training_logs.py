"""Reads what trainings have logged in their work dirs."""

import contextlib
import json
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

# Values of the last validation that say nothing about the model.
NOT_METRICS = ('step', 'time', 'data_time')
# Of FeatureGeometryHook's values: geometry/<pair>/<value>
GEOMETRY = 'geometry/'


def read_scalars(folder: Path) -> Iterator[dict]:
    """Yield what the trainings of a folder logged, in the order of time.

    Args:
        folder (Path): A work dir, of one or more sessions.

    Yields:
        dict: Names and values of one record.
    """
    for session in read_sessions(folder):
        yield from session


def read_sessions(folder: Path) -> Iterator[list[dict]]:
    """Yield what each session of a folder logged, in the order of time.

    Args:
        folder (Path): A work dir.

    Yields:
        list[dict]: Names and values of each record; a line that is not whole is left out.
    """
    for path in sorted(folder.glob('*/vis_data/scalars.json')):
        records = []
        for line in path.read_text().splitlines():
            # being written right now, or cut off by the end of a killed process
            with contextlib.suppress(json.JSONDecodeError):
                records.append(json.loads(line))
        yield records


def curve(folder: Path, key: str) -> dict:
    """Give {step: value} of a logged value, or of the ones that end in '/...'.

    Of what a resumed training did twice the last counts.

    Args:
        folder (Path): A work dir.
        key (str): The name of the value, or how it ends, with a leading '/'.

    Returns:
        dict: Empty if it was not logged.
    """
    return {
        entry['step']: entry[name]
        for entry in read_scalars(folder)
        for name in entry
        if name == key or (key.startswith('/') and name.endswith(key))
    }


def read_geometry(folder: Path) -> dict[str, dict[str, dict[int, float]]]:
    """Give {pair of features: {value: {step: number}}} of a training.

    Of what a resumed training did twice the last counts.

    Args:
        folder (Path): A work dir.

    Returns:
        dict: What the FeatureGeometryHook logged.
    """
    result = defaultdict(lambda: defaultdict(dict))
    for entry in read_scalars(folder):
        for key, number in entry.items():
            if key.startswith(GEOMETRY):
                pair, _, value = key.removeprefix(GEOMETRY).rpartition('/')
                result[pair][value][entry['step']] = number
    return {pair: dict(values) for pair, values in result.items()}


def iterations_per_epoch(folder: Path) -> int | None:
    """Give the number of iterations in an epoch of a training.

    Args:
        folder (Path): A work dir.

    Returns:
        int | None: The number; None until a log tells, or if it does not count in epochs.
    """
    for path in sorted(folder.glob('*/*.log')):
        match = re.search(r'Epoch\(train\)\s+\[\s*\d+\]\[\s*\d+/(\d+)\]', path.read_text())
        if match:
            return int(match[1])
    return None


def logged_seconds(folder: Path) -> float:
    """Give how long the trainings of a folder took, by their logs.

    Args:
        folder (Path): A work dir.

    Returns:
        float: Seconds, summed over the sessions.
    """
    seconds = 0.0
    for path in folder.glob('*/vis_data/scalars.json'):
        start = time.mktime(time.strptime(path.parts[-3], '%Y%m%d_%H%M%S'))
        seconds += max(0.0, path.stat().st_mtime - start)
    return seconds


def startup_seconds(folder: Path) -> float | None:
    """Give the processor seconds that the trainings of a folder took before their first iterations.

    Args:
        folder (Path): A work dir.

    Returns:
        float | None: Seconds, summed over the sessions; None if a log has none.
    """
    found = [
        re.search(r'Processor seconds before the training: ([\d.]+)', path.read_text())
        for path in folder.glob('*/*.log')
    ]
    return sum(float(match[1]) for match in found) if found and all(found) else None


def seconds_per_iteration(folder: Path) -> float:
    """Give how long an iteration of a training took, the median of what was logged.

    Args:
        folder (Path): A work dir.

    Returns:
        float: Seconds.
    """
    return statistics.median(e['time'] for e in read_scalars(folder) if 'loss' in e and 'time' in e)
