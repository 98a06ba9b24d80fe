"""Run MMRazor 1.0.0's own tests of distillation, as it is and after `import rawkd_mm`.

    .venv/bin/python tools/dev/run_mmrazor_tests.py                       # those in its wheel
    .venv-classic/bin/python tools/dev/run_mmrazor_tests.py --tests MMRAZOR/tests   # a checkout's

The wheel of MMRazor has a part of its tests, installed as the package `tests`. Those of recorders,
deliveries, distillers and losses are only in its repository: check out its tag v1.0.0.

Nothing of MMRazor is changed. "Before" is pytest alone, "after" the same with `-p rawkd_mm`, which
imports rawkd_mm, and with it rawkd_mm.compat, before MMRazor. Exits with 1 if nothing passes after.
"""

import argparse
import os
import subprocess
import sys
import sysconfig
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Below MMRazor's `tests`; what a folder does not have is left out.
DISTILLATION = (
    'test_core/test_recorders',
    'test_core/test_delivers',
    'test_engine/test_hooks/test_distillation_loss_detach_hook.py',
    'test_engine/test_hooks/test_loss_weight_scheduler_hook.py',
    'test_engine/test_hooks/test_stop_distillation_hook.py',
    'test_models/test_distillers',
    'test_models/test_losses',
    'test_models/test_connectors',
    'test_models/test_algorithms/test_datafree_distill.py',
    'test_models/test_algorithms/test_ofd_algo.py',
    'test_models/test_algorithms/test_self_distill.py',
    'test_models/test_algorithms/test_single_teacher_distill.py',
)


def run(tests: Path, plugins: tuple = ()) -> dict:
    """Run the tests of distillation in a folder.

    Args:
        tests (Path): MMRazor's folder `tests`.
        plugins (tuple[str]): Modules that pytest imports first.

    Returns:
        dict[str, str | None]: Name of each test or of a file that could not be imported -> first
        line of what went wrong, None if it passed.
    """
    files = [str(tests / name) for name in DISTILLATION if (tests / name).exists()]
    if not files:
        sys.exit(f"--tests: {tests} has none of MMRazor's tests of distillation")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, 'report.xml')
        command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider']
        command += [f'--rootdir={tests.parent}', '-c', os.devnull, f'--junitxml={report}']
        command += [option for plugin in plugins for option in ('-p', plugin)]
        # The checkout's `rawkd_mm`; MMRazor's tests import each other as `tests.data...`.
        path = os.pathsep.join([str(ROOT), str(tests.parent)])
        environment = {**os.environ, 'PYTHONPATH': path}
        process = subprocess.run(
            command + files, cwd=folder, env=environment, capture_output=True, text=True
        )
        if not report.exists():
            sys.exit(f'pytest ended without a report:\n{process.stdout}{process.stderr}')
        results = {}
        for case in ElementTree.parse(report).iter('testcase'):
            wrong = [e for e in case if e.tag in ('failure', 'error', 'skipped')]
            name = f'{case.get("classname")}::{case.get("name")}'.removeprefix('::')
            results[name] = reason(wrong[0]) if wrong else None
    return results


def reason(element: ElementTree.Element) -> str:
    """The line of a report that says what went wrong."""
    lines = [line for line in (element.text or '').splitlines() if line.startswith('E  ')]
    return (lines[-1][1:] if lines else element.get('message', '').splitlines()[0]).strip()


def describe(results: dict, total: int) -> str:
    """`M of N passed`."""
    return f'{sum(wrong is None for wrong in results.values())} of {total} passed'


def main() -> int:
    """Run them twice and say what passed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--tests',
        type=Path,
        default=Path(sysconfig.get_path('purelib'), 'tests'),
        metavar='DIR',
        help="MMRazor's folder `tests`; default: the one that its wheel installed",
    )
    tests = parser.parse_args().tests.resolve()
    before, after = run(tests), run(tests, ('rawkd_mm',))
    for name, wrong in sorted(after.items()):
        print(
            f'{"passed" if wrong is None else "FAILED"}  {name}'
            + (f'\n        {wrong}' if wrong else '')
        )
    print(f'\nbefore, MMRazor as it is: {describe(before, len(after))}')
    for wrong in sorted({wrong for wrong in before.values() if wrong}):
        print(f'        {wrong}')
    print(f'after `import rawkd_mm`:  {describe(after, len(after))}')
    return 0 if None in after.values() else 1


if __name__ == '__main__':
    sys.exit(main())
