#!/usr/bin/env python
"""Write the paper's Tables 8 and 9 (COCO) with the results of finished trainings beside its numbers.

Reads the work dirs that tools/train.py left: the config that was dumped there says which row a
training belongs to, by its student, teacher and loss, and the log of its last validation gives the
numbers. Several trainings of one row, with other seeds say, are averaged. What is no row of the tables
or is not finished is listed with the reason.
"""

import argparse
import contextlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import _package  # noqa: F401 (a checkout's tools belong to the checkout's package)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'work_dirs', nargs='+', type=Path, metavar='WORK_DIR', help='such as work_dirs/*'
    )
    parser.add_argument(
        '-o', '--out', type=Path, metavar='FILE', help='write Markdown there instead of printing it'
    )
    args = parser.parse_args()
    for folder in args.work_dirs:
        if not folder.is_dir():
            parser.error(f'WORK_DIR: {str(folder)!r} is not a folder')
    return args


def main() -> None:
    args = parse_args()
    # stdout is for the tables; MMEngine's packages say there what they lack
    with contextlib.redirect_stdout(sys.stderr):
        from rawkd_mm.analysis.collect_results import MissingMetricError, collect_results

        try:
            text, number = collect_results(args.work_dirs)
        except MissingMetricError as error:
            sys.exit(f'collect_results.py: error: {error}')
    if args.out is None:
        print(text, end='')
        return
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text, encoding='utf-8')
    print(f'{args.out}: {number} work dirs are rows of the tables')


if __name__ == '__main__':
    main()
