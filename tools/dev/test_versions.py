#!/usr/bin/env python3
"""Run the tests with several Pythons and PyTorches, and write the table of docs/versions.md.

Each combination gets an environment of its own (`.venv-py3.12-torch2.14`); those of `make test` and
`make test-classic` are there already. mmcv's operators are compiled in each, once per machine. The tests
of segmentation, which need no operators, and those of detection are counted apart. A row is written
when its combination is done: a run that is interrupted keeps what it has, and `--only` repeats one.
Rows: docs/data/versions.csv; what pytest printed: docs/data/versions.txt.
"""

import argparse
import csv
import datetime
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import setup_env

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / 'docs' / 'data'
ROWS = DATA / 'versions.csv'
LOG = DATA / 'versions.txt'
PAGE = ROOT / 'docs' / 'versions.md'
COLUMNS = ('python', 'torch', 'stack', 'segmentation', 'detection', 'minutes', 'date')

# Python, torch, and how setup_env.py makes it: the stage and its pins.
MODERN, OLDER = ('test', None), ('test', 'requirements/torch-2.10.txt')
CLASSIC = ('test-classic', None)
COMBINATIONS = {
    ('3.10', '2.14'): MODERN,
    ('3.11', '2.14'): MODERN,
    ('3.12', '2.14'): MODERN,
    ('3.13', '2.14'): MODERN,
    ('3.11', '2.10'): OLDER,
    ('3.11', '2.1'): CLASSIC,
}
# What most of the versions matter to, and a real distillation of a segmentor and of a detector.
TESTS = (
    'tests/test_compat.py',
    'tests/test_functional.py',
    'tests/test_losses.py',
    'tests/test_losses_fgd.py',
    'tests/test_connectors.py',
    'tests/test_distillers',
    'tests/test_features',
    'tests/test_teachers',
    'tests/test_algorithms',
    'tests/situations/test_same_start.py',
    'tests/situations/test_optimizer_groups.py',
    'tests/situations/test_copies_and_casts.py',
    'tests/situations/test_custom_hooks.py',
    'tests/test_tools/test_train_tool.py',
    'tests/test_tools/test_detector.py',
)


def find_python(version: str) -> str | None:
    """An interpreter of a version that runs: on the PATH, or pyenv's."""
    candidates = [shutil.which(f'python{version}')]
    root = Path(os.environ.get('PYENV_ROOT', Path.home() / '.pyenv')) / 'versions'
    candidates += sorted(str(p / 'bin' / 'python') for p in root.glob(f'{version}.*'))
    code = 'import ensurepip, sys; print("%d.%d" % sys.version_info[:2])'
    for candidate in filter(None, candidates):
        done = subprocess.run([candidate, '-c', code], capture_output=True, text=True)
        if done.stdout.strip() == version:
            return candidate
    return None


def run_tests(python: Path, marker: str, log) -> tuple[str, bool]:
    """Run the tests of a kind; gives what the table says, and whether all passed."""
    command = [str(python), '-m', 'pytest', '-q', '-n', 'logical', '--maxprocesses', '4']
    command += ['--dist', 'loadfile', '-m', f'not slow and {marker}', *TESTS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    tail = done.stdout.splitlines()[-40:]
    log.write('\n'.join(line.replace(str(ROOT), '.') for line in tail) + '\n')
    counts = {
        word: int(number)
        for number, word in re.findall(r'(\d+) (passed|failed|skipped|error)', tail[-1])
    }
    parts = [f'{counts[w]} {w}' for w in ('passed', 'failed', 'error', 'skipped') if w in counts]
    return ', '.join(parts) or f'ended with {done.returncode}', done.returncode == 0


def test(python: str, torch: str, log) -> tuple[dict, bool]:
    """Set up one combination and test it; gives its row of the table."""
    stage, pins = COMBINATIONS[python, torch]
    start = time.monotonic()
    interpreter = find_python(python)
    row = dict(python=python, torch=torch, stack='classic' if 'classic' in stage else 'modern')
    row['date'] = datetime.date.today().isoformat()
    if interpreter is None:
        return row | dict(segmentation='no such Python here', detection='', minutes=''), False
    # The environment that `make test` has is there already.
    is_default = pins is None and python == f'{sys.version_info[0]}.{sys.version_info[1]}'
    command = [interpreter, str(ROOT / 'tools/dev/setup_env.py'), stage]
    command += [] if is_default else ['--separate']
    log.write(f'\n=== Python {python}, torch {torch} ({stage})\n')
    if subprocess.run(command + (['--pins', str(ROOT / pins)] if pins else [])).returncode:
        return row | dict(segmentation='could not be set up', detection='', minutes=''), False
    venv = (setup_env.CLASSIC if stage.endswith('-classic') else setup_env.MODERN).venv
    if not is_default:
        venv = ROOT / setup_env.separate_name(tuple(map(int, python.split('.'))), torch)
    results = [run_tests(venv / 'bin' / 'python', m, log) for m in ('not det', 'det')]
    row['minutes'] = f'{(time.monotonic() - start) / 60:.0f}'
    row.update(segmentation=results[0][0], detection=results[1][0])
    return row, all(ok for _, ok in results)


def write_table(rows: list) -> None:
    """Write the rows, and the table between its marks in docs/versions.md."""
    with open(ROWS, 'w', newline='') as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    lines = ['| Python | torch | stack | tests of segmentation | tests of detection | date |']
    lines.append('|---|---|---|---|---|---|')
    for row in rows:
        keys = ('python', 'torch', 'stack', 'segmentation', 'detection', 'date')
        lines.append('| ' + ' | '.join(row[key] for key in keys) + ' |')
    begin, end = '<!-- test_versions.py -->\n', '\n<!-- end -->'
    text = PAGE.read_text()
    before, after = text.split(begin)[0], text.split(end)[1]
    PAGE.write_text(before + begin + '\n'.join(lines) + end + after)


def main() -> int:
    names = [f'{python}:{torch}' for python, torch in COMBINATIONS]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--only',
        nargs='+',
        choices=names,
        default=names,
        metavar='PYTHON:TORCH',
        help=f'of {", ".join(names)}; default: all',
    )
    parser.add_argument(
        '--remove', action='store_true', help='remove each environment (8 GB) when it is tested'
    )
    args = parser.parse_args()
    rows = {}
    if ROWS.exists():
        with open(ROWS, newline='') as file:
            rows = {(row['python'], row['torch']): row for row in csv.DictReader(file)}
    failed = []
    with open(LOG, 'a') as log:
        for python, torch in COMBINATIONS:
            if f'{python}:{torch}' not in args.only:
                continue
            rows[python, torch], ok = test(python, torch, log)
            log.flush()
            write_table([rows[key] for key in COMBINATIONS if key in rows])
            print(' | '.join(rows[python, torch].get(c, '') for c in COLUMNS), flush=True)
            failed += [] if ok else [f'{python}:{torch}']
            if args.remove:
                version = tuple(map(int, python.split('.')))
                shutil.rmtree(ROOT / setup_env.separate_name(version, torch), ignore_errors=True)
    if failed:
        print(f'Not all tests passed with {", ".join(failed)}: see {LOG.relative_to(ROOT)}')
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
