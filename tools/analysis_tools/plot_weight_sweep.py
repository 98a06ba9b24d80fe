#!/usr/bin/env python
"""Draw the metric over the weight of the loss, as the paper's Fig. 7, from weight_sweep.py's CSVs.

One panel for each pair of teacher and student, one line for each method, the student alone dashed.
Points are means over the seeds; bars, and the band around the dashed line, are sample standard
deviations (none where there is one seed).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import _package  # noqa: F401 (a checkout's tools belong to the checkout's package)
from _figure_arguments import make_parser


def main() -> None:
    parser = make_parser(__doc__, 'results.csv of a weight sweep', 'CSV')
    parser.add_argument(
        '--ylim',
        type=float,
        nargs=2,
        metavar=('LOW', 'HIGH'),
        help='cut the axis of the metric, where one line hides what the others do',
    )
    args = parser.parse_args()
    if args.ylim and not args.ylim[0] < args.ylim[1]:
        parser.error(f'--ylim LOW HIGH: LOW must be below HIGH, got {args.ylim}')
    from rawkd_mm.analysis.plot_weight_sweep import FigureError, write_figure

    try:
        write_figure(args.sources, args.out, args.titles, args.ylim)
    except FigureError as error:
        sys.exit(f'plot_weight_sweep.py: error: {error}')


if __name__ == '__main__':
    main()
