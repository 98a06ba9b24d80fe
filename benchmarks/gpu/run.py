#!/usr/bin/env python
"""Measure all that needs a GPU, unattended: `make bench-gpu` starts it.

Runs the steps of steps.py one after another, the most important first, and writes report.json, .csv,
.md and .svg. Each step is a process with a log and a time limit; when one fails, the next ones run. What
does not fit into --minutes is dropped. Another run in the same folder does what is not finished.

Without a GPU, --small shows that all of it works, on the CPU.

    tools/dev/bench_gpu.sh --minutes 25
"""

import argparse
import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import report as reports
import steps as known
from runner import ROOT, Cleaner, Runner, last_line, run_process

PROGRAM = 'tools/dev/bench_gpu.sh'


def make_arguments():
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--out',
        type=Path,
        metavar='DIR',
        help='the folder of the results; default: work_dirs/bench_gpu, with --small '
        'work_dirs/bench_gpu_small',
    )
    parser.add_argument(
        '--minutes', type=float, default=25, metavar='N', help='time for all of it (default: 25)'
    )
    parser.add_argument(
        '--small', action='store_true', help='small models and images, for a CPU: a few minutes'
    )
    parser.add_argument(
        '--redo',
        nargs='*',
        metavar='STEP',
        help='run these steps even if they are finished; without names, all',
    )
    parser.add_argument('--only', nargs='+', metavar='STEP', help='run no other steps')
    parser.add_argument(
        '--commit',
        metavar='HASH',
        help='what the report calls the commit, where there is no repository to ask',
    )
    args = parser.parse_args()
    if args.minutes <= 0:
        parser.error(f'--minutes must be more than 0, got {args.minutes:g}')
    args.steps = known.small_steps() if args.small else known.full_steps()
    names = [step.name for step in args.steps]
    for option in ('redo', 'only'):
        unknown = [name for name in getattr(args, option) or () if name not in names]
        if unknown:
            parser.error(f'--{option} {" ".join(unknown)}: expected some of {", ".join(names)}')
    args.out = args.out or ROOT / 'work_dirs' / ('bench_gpu_small' if args.small else 'bench_gpu')
    args.out = args.out.resolve()
    if args.redo == []:
        args.redo = names
    return args


def main() -> int:
    begun = time.monotonic()
    args = make_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    (args.out / 'logs').mkdir(parents=True, exist_ok=True)
    environment = find_environment(args.out)
    if not environment['gpu'] and not args.small:
        sys.exit(
            f'{PROGRAM}: PyTorch {environment["torch"]} finds no GPU. --small runs small models on '
            'the CPU, to see that the command works'
        )
    cleaner = Cleaner(args.out)
    session = dict(
        command=cleaner.text(shlex.join([PROGRAM, *sys.argv[1:]])),
        commit=args.commit or find_commit(),
        minutes=args.minutes,
        small=args.small,
    )
    # the last seconds are for the report
    deadline = begun + 60 * args.minutes - 10
    runner = Runner(args.out, environment, session['commit'], deadline)
    chosen = [step for step in args.steps if not args.only or step.name in args.only]
    try:
        runner.run(chosen, args.redo or ())
    finally:
        result = write_report(args, session, environment, runner)
        print_verdicts(result, cleaner.text(str(args.out / 'report.md')))
    return int(any(step['status'] == 'failed' for step in result['steps']))


def find_environment(out: Path) -> dict:
    """Describe the device and the versions; a process of its own, as this one needs no memory of it."""
    path, log = out / 'environment.json', out / 'logs' / 'environment.log'
    command = [sys.executable, 'benchmarks/gpu/environment.py', '--json', str(path)]
    path.unlink(missing_ok=True)
    code = run_process(command, log, 180)
    if code != 0:
        sys.exit(
            f'{PROGRAM}: {sys.executable} cannot run this package (exit code {code}): '
            f'{last_line(log)}. PYTHON=/path/to/python names another one'
        )
    Cleaner(out).file(log)
    return json.loads(path.read_text())


def find_commit() -> str:
    """Give the commit of the repository, and whether files differ from it; 'unknown' without git."""
    try:
        commit, changes = (
            subprocess.run(['git', *command], cwd=ROOT, capture_output=True, text=True, check=True)
            for command in (
                ('rev-parse', '--short=12', 'HEAD'),
                ('status', '--porcelain', '--untracked-files=no'),
            )
        )
    except (OSError, subprocess.CalledProcessError):
        return 'unknown'
    return commit.stdout.strip() + (' with changes' if changes.stdout.strip() else '')


def write_report(args, session: dict, environment: dict, runner) -> dict:
    """Write the report's four files; gives the report."""
    steps, results = [], {}
    for step in args.steps:
        record = runner.record_of(step)
        shown = {key: record[key] for key in ('title', 'status', 'seconds', 'message', 'log')}
        steps.append(dict(name=step.name, **shown, command=record['key']['command']))
        if record['status'] == 'done':
            results[step.name] = reports.load_result(args.out / step.result)
    report = reports.make_report(session, environment, steps, results)
    report['figure'] = None
    (args.out / 'report.svg').unlink(missing_ok=True)
    if reports.benchmarks_of(report):
        try:
            reports.draw(report, args.out / 'report.svg')
        except ImportError as error:
            report['figure'] = str(error)
    (args.out / 'report.json').write_text(json.dumps(report, indent=2) + '\n')
    (args.out / 'report.csv').write_text(reports.to_csv(report))
    (args.out / 'report.md').write_text(reports.to_markdown(report))
    return report


def print_verdicts(report: dict, path: str) -> None:
    print()
    for row in report['targets']:
        numbers = '' if row['value'] is None else f' {row["value"]:.4g} (bound {row["bound"]:.4g})'
        print(f'{row["verdict"]}{numbers}: {row["target"]}; {row["subject"]}; {row["note"]}')
    print(f'The report: {path}')


if __name__ == '__main__':
    sys.exit(main())
