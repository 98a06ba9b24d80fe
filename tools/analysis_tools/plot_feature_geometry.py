#!/usr/bin/env python
"""Draw mn/N, and m and n, over the training, as the paper's Fig. 8, from what the trainings logged.

WORK_DIR is that of a weight sweep, or of one training with a FeatureGeometryHook. One column for each
sweep, method and pair of features, one line for each weight. n and m are the norms of the student's
(behind its connector) and the teacher's feature, N is the number of values of a feature of one image;
all are means over the batch of the iteration. Lines are means over the seeds, bands sample standard
deviations. m does not depend on the weight and is drawn once, as the mean of all trainings.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _figure_arguments import make_parser
from _package import load_module

METHODS = tuple(load_module('analysis.methods').LEGENDS)


def main() -> None:
    parser = make_parser(__doc__, 'work dir of a weight sweep, or of one training', 'WORK_DIR')
    parser.add_argument(
        '--methods',
        nargs='+',
        choices=METHODS,
        default=['naive'],
        metavar='METHOD',
        help=f'of a sweep: {", ".join(METHODS)} (default: naive, as in the paper)',
    )
    parser.add_argument(
        '--cos-theta', action='store_true', help='add a row with the cosine of the angle'
    )
    parser.add_argument(
        '--smooth',
        type=int,
        default=1,
        metavar='N',
        help='draw the moving mean of the last N records, which the figure says (default: 1, none)',
    )
    args = parser.parse_args()
    if args.smooth < 1:
        parser.error(f'--smooth must be at least 1, got {args.smooth}')
    from rawkd_mm.analysis.plot_feature_geometry import FigureError, write_figure

    try:
        write_figure(args.sources, args.methods, args.out, args.titles, args.cos_theta, args.smooth)
    except FigureError as error:
        sys.exit(f'plot_feature_geometry.py: error: {error}')


if __name__ == '__main__':
    main()
