#!/usr/bin/env python
"""Compare what weight_sweep.py has trained with a baseline, seed by seed: a table and figures.

PREFIX.csv and PREFIX.md have for each method, weight and value of --grid the mean and the spread over
the seeds, the difference to the baseline with the same seeds, its 95 % confidence interval, and p of the
paired t-test and of Wilcoxon's test. PREFIX_weight.png has the metric over the weight, with a curve for
each value of a key of the grid. PREFIX_time.png has the metric over the processor time of each method.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import _package  # noqa: F401 (a checkout's tools belong to the checkout's package)
from _common import make_plain_parser


def main() -> None:
    parser = make_plain_parser(__doc__)
    parser.add_argument(
        'sources', nargs='+', type=Path, metavar='CSV', help='results.csv of a sweep'
    )
    parser.add_argument('-o', '--out', required=True, metavar='PREFIX', help='of the files')
    parser.add_argument(
        '--baseline',
        default='student',
        metavar='CELL',
        help='what the others are compared with, such as naive-w10: the folder of a training without '
        '-seed0. Without the values of --grid in it, each cell is compared with the one that has the '
        'same values (default: student)',
    )
    parser.add_argument(
        '--by',
        metavar='KEY',
        help='key of the grid whose values have curves of their own (default: the only one)',
    )
    parser.add_argument(
        '--x',
        default='weight',
        metavar='KEY',
        help="what the horizontal axis of the first figure has: weight, '2w mn/N' (as Eq. (10) weighs "
        'the angle), or a key of the grid with numbers (default: weight)',
    )
    parser.add_argument(
        '--ylim',
        type=float,
        nargs=2,
        metavar=('LOW', 'HIGH'),
        help='cut the axis of the metric, where one curve hides what the others do',
    )
    args = parser.parse_args()
    if args.ylim and not args.ylim[0] < args.ylim[1]:
        parser.error(f'--ylim LOW HIGH: LOW must be below HIGH, got {args.ylim}')
    import matplotlib

    matplotlib.use('agg')
    from rawkd_mm.analysis.paired_statistics import MissingScipyError
    from rawkd_mm.analysis.summarise_sweep import SummaryError, write_summary

    try:
        write_summary(args.sources, args.out, args.baseline, args.by, args.x, args.ylim)
    except (SummaryError, MissingScipyError) as error:
        sys.exit(f'summarise_sweep.py: error: {error}')


if __name__ == '__main__':
    main()
