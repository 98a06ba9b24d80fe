#!/usr/bin/env python3
"""Run the tests while mmcv's operators compile.

First run the tests that need no operators, then the others. If the operators are compiled already, all
tests run in one go. Arguments are handed to pytest.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

SETUP = Path(__file__).resolve().with_name('setup_env.py')
NO_TESTS = 5  # pytest's exit code where nothing was selected


def has_ops() -> bool:
    """Tell whether mmcv's compiled operators are installed."""
    spec = importlib.util.find_spec('mmcv')
    folder = Path(spec.origin).parent if spec and spec.origin else None
    return folder is not None and any(folder.glob('_ext*'))


def run_pytest(arguments: list, marker: str) -> int:
    """Run pytest on the tests that a marker expression selects; gives its exit code."""
    command = [sys.executable, '-m', 'pytest', *arguments, '-m', marker]
    return subprocess.run(command).returncode


def set_up(stage: str) -> list:
    """The command that sets up a stage of this environment."""
    return [sys.executable, str(SETUP), stage]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument('--marker', default='not slow', help='which tests; default: %(default)s')
    args, rest = parser.parse_known_args()
    if has_ops():
        return run_pytest(rest, args.marker)
    print("mmcv's operators are compiled in the background (log: .venv/setup.log).", flush=True)
    compilation = subprocess.Popen(
        set_up('wheel'), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        preexec_fn=lambda: os.nice(10),
    )  # fmt: skip
    try:
        first = run_pytest(rest, f'({args.marker}) and not det')
    except BaseException:
        compilation.terminate()
        raise
    start = time.monotonic()
    output, _ = compilation.communicate()
    print(f'Waited {time.monotonic() - start:.0f} s more for the operators.', flush=True)
    if compilation.returncode or subprocess.run(set_up('test')).returncode:
        print(output)
        return 1
    second = run_pytest(rest, f'({args.marker}) and det')
    codes = [code for code in (first, second) if code != NO_TESTS]
    return next((code for code in codes if code), 0) if codes else NO_TESTS


if __name__ == '__main__':
    sys.exit(main())
