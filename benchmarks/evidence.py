#!/usr/bin/env python
"""The experiments that could refute the paper's claims, on DigitScenes: trains what the CSV lacks.

    python benchmarks/evidence.py --part alpha --jobs 2 --share-teacher   # the same command goes on
    python benchmarks/evidence.py --part alpha --summary                # table and figures of the CSV

The parts, in the order of what they tell:

alpha    Finding (3): teachers that compute the same, with a feature alpha times as large. The paper
         predicts that naive distillation's best weight moves by alpha^-2, and that LAD and CAD do not.
start    Why naive distillation of a small feature fails in the part alpha: connectors that begin as
         small as the feature, and such that begin smaller or larger for the teacher as it is.
methods  All methods with 5 seeds, and the student alone for as many processor seconds as --as-long-as.
flat     LAD and CAD with weights from 0.1 to 100, for PSPNet and (flat-detector) for RetinaNet.
where    LAD and CAD at other features, and with other connectors.
natural  Finding (3) with teachers that were trained differently: PSPNet with SGD and weight decay beside
         PSPNet with AdamW, and UPerNet on a small Swin. It trains the teachers first.
detectors
         The methods of the paper's Table 8, for RetinaNet. FGD needs boxes, and sees no images without
         labels. Nor does LAD in a training of its own, to be compared with FGD.

The setting is that of the demo, in which a distillation gains much: models and teachers of
configs/quickstart, 50 labelled images (detector: 200), and all images for the distillation, without
their labels. All seeds have the same labels. Parts share trainings: what one has trained, another does
not train again. All trainings of one seed begin with the same student and see the same batches.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')  # a training has one thread

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

RESULTS = Path('benchmarks/results/evidence.csv')
WORK_DIRS = Path('work_dirs/evidence')
CONFIGS = Path('benchmarks/evidence_configs')
QUICKSTART = Path('configs/quickstart')
TEACHER = 'pspnet_r18-w12_1xb16-4k_digit-scenes-48x48'
DETECTOR = 'lad_neck_retinanet-r18-w32_retinanet-r18-w8_1xb16-1k_digit-scenes-64x64_200-labels.py'
PARTS = ('alpha', 'start', 'methods', 'flat', 'flat-detector', 'where', 'natural', 'detectors')
# Of detectors: the pair of models that is trained
DETECTORS = {'flat-detector': 'retinanet', 'detectors': 'retinanet-wide-neck'}
TEACHER_KEY, LOSS_KEY = 'model.teacher_ckpt', 'model.distiller.loss.type'
WEIGHT_KEY = 'model.distiller.loss.loss_weight'
START_KEY = 'model.distiller.pairs.0.align.init_cfg.std'
UNLABELLED_KEY = 'custom_hooks.1.dataset.data_root'  # of the images without labels
LABELS_ONLY = ('labels_only', 'fgd')  # configs of detectors without such images
# alpha -> the weights of naive distillation: around 1 / alpha^2, where the paper expects the best one
# if 1 is the best without rescaling, and 1 for all
NAIVE_WEIGHTS = {
    1: (0.1, 1, 10, 100),
    0.1: (1, 10, 100, 1000, 10000),
    10: (0.001, 0.01, 0.1, 1),
    0.32: (1, 10, 100, 1000),
    3.2: (0.01, 0.1, 1, 10),
}
# Times a power of two, a feature has the same digits: LAD and CAD must give the same student, bit by
# bit.
EXACT_ALPHAS = (0.125, 8)
NATURAL_WEIGHTS = (1, 10, 0.1, 100, 0.01, 1000)
# Features for which the connector, too, begins alpha times as large.
START_ALPHAS = (0.1, 0.32)
KAIMING = 0.204  # the standard deviation with which it begins else: sqrt(2 / 48 channels)
# Teachers that the part natural trains. The third of it, PSPNet with AdamW, comes along.
NATURAL_TEACHERS = ('pspnet_sgd', 'upernet_teacher')
FLAT_WEIGHTS = (3, 0.1, 100, 0.3, 30, 1, 10)
PLACES = (
    'at_backbone', 'at_logits', 'at_both', 'before_relu', 'before_relu_student', 'before_relu_teacher',
    'connector_bn', 'connector_bn_relu',
)  # fmt: skip


def teacher_of(alpha: float) -> Path:
    """Name the rescaled teacher's checkpoint."""
    return WORK_DIRS / f'teachers/alpha-{alpha:g}.pth'


def make_teachers() -> None:
    """Make the rescaled teachers, unless they are there."""
    from rawkd_mm.analysis.rescale_teacher import write_rescaled_teacher

    for alpha in (*NAIVE_WEIGHTS, *EXACT_ALPHAS):
        out = teacher_of(alpha)
        if alpha != 1 and not out.is_file():
            out.parent.mkdir(parents=True, exist_ok=True)
            config, weights = QUICKSTART / f'{TEACHER}.py', QUICKSTART / f'weights/{TEACHER}.pth'
            feature = 'decode_head.bottleneck'
            print(write_rescaled_teacher(str(config), str(weights), feature, alpha, out))


def natural_teacher(name: str, iters: int) -> Path:
    """Name the checkpoint of a teacher of the part natural."""
    return WORK_DIRS / f'teachers/{name}-{iters}.pth'


def train_teachers(args: argparse.Namespace) -> tuple[int, bool]:
    """Train the teachers of the part natural, unless they are there.

    Returns:
        tuple[int, bool]: The exit code, and whether all are there: --minutes may have been too few.
    """
    import torch

    from rawkd_mm.analysis.pictures import read_checkpoint
    from rawkd_mm.analysis.sweep_results import write_csv
    from rawkd_mm.analysis.weight_sweep import Sweep, make_trainings, run_sweeps

    iters = args.teacher_iters
    changed = [text for text in options(iters, args.data) if not text.startswith('custom_hooks')]
    sweeps = [
        Sweep(
            str(CONFIGS / f'{name}.py'),
            None,
            (),
            [0],
            'mIoU',
            WORK_DIRS / f'teachers-{iters}',
            jobs=args.jobs,
            cfg_options=changed,
            name=name,
        )
        for name in NATURAL_TEACHERS
        if not natural_teacher(name, iters).is_file()
    ]
    code = run_sweeps(sweeps, args.minutes) if sweeps else 0
    for sweep in sweeps:
        (training,) = make_trainings(sweep)
        checkpoint = training.folder / f'iter_{iters}.pth'
        if training.result_file.is_file():
            state = read_checkpoint(str(checkpoint))['state_dict']
            out = natural_teacher(sweep.name, iters)
            out.parent.mkdir(parents=True, exist_ok=True)
            torch.save(dict(meta=dict(config=sweep.config), state_dict=state), out)
    if sweeps:
        write_csv(sweeps[0].work_dir, 'mIoU', args.out)
    return code, all(natural_teacher(name, iters).is_file() for name in NATURAL_TEACHERS)


def make_sweep(
    args: argparse.Namespace,
    config: Path,
    pair: str,
    changed: list[str],
    method: str | None,
    weights: Sequence[float] = (),
    seeds: int = 3,
    metric: str = 'mIoU',
    **kwargs,
):
    """Give trainings of a config, in the folder of their pair of models, with results in the CSV.

    Args:
        args (argparse.Namespace): Of the command line.
        config (Path): Of a distillation.
        pair (str): Name of the pair.
        changed (list[str]): What is changed in the config.
        method (str, optional): None for the config's own.
        weights (Sequence[float]): Of its loss.
        seeds (int): How many, unless the command line says so.
        metric (str): What is published.
        **kwargs: Further ones of ``Sweep``.

    Returns:
        Sweep: The trainings.
    """
    from rawkd_mm.analysis.weight_sweep import Sweep

    return Sweep(
        str(config),
        method,
        weights,
        range(args.seeds or seeds),
        metric,
        WORK_DIRS / f'{pair}-{args.iters}',
        jobs=args.jobs,
        cfg_options=changed,
        table=args.out,
        **kwargs,
    )


def make_natural_sweeps(args: argparse.Namespace) -> list:
    """Give the sweeps of the part natural: those of PSPNet, and then those of UPerNet."""

    def sweeps(name: str, config: str, *teachers: Path | None) -> list:
        changed = options(args.iters, args.data)
        fixed = [] if None in teachers else [f'{TEACHER_KEY}={teachers[0]}']
        grids = [{TEACHER_KEY: [str(path)]} if path and not fixed else {} for path in teachers]
        sweep = partial(make_sweep, args, CONFIGS / config, name, changed + fixed)
        return [
            sweep('student'),
            *(sweep('naive', NATURAL_WEIGHTS, grid=grid) for grid in grids),
            *(sweep(method, [3], grid=grid) for grid in grids for method in ('lad', 'cad')),
        ]

    sgd, upernet = (natural_teacher(name, args.teacher_iters) for name in NATURAL_TEACHERS)
    # None: the teacher that comes along, as in the part alpha
    return [*sweeps('pspnet', 'lad.py', None, sgd), *sweeps('upernet', 'upernet.py', upernet)]


def make_start_sweeps(args: argparse.Namespace) -> list:
    """Give the sweeps of the part start."""
    changed = options(args.iters, args.data)
    teachers = {a: {TEACHER_KEY: [str(teacher_of(a))]} for a in START_ALPHAS}
    pspnet = partial(make_sweep, args, pair='pspnet', changed=changed)
    steps = [
        pspnet(CONFIGS / f'{name}.py', method=None, name=name, grid=teachers[0.1])
        for name in ('connector_both', 'connector_steps')
    ]
    config = CONFIGS / 'connector_start.py'
    sweep = partial(make_sweep, args, config, 'pspnet-start')
    small = [
        sweep([*changed, f'{START_KEY}={KAIMING * a:g}'], 'naive', NAIVE_WEIGHTS[a][-4:], grid=grid)
        for a, grid in teachers.items()
    ]
    starts = {START_KEY: [f'{KAIMING * factor:g}' for factor in (0.1, 10)]}
    others = [
        sweep(changed, None, grid={LOSS_KEY: [loss], WEIGHT_KEY: [weight], **starts})
        for loss, weight in (('NaiveFeatureLoss', '10'), ('LADLoss', '3'), ('CADLoss', '3'))
    ]
    students = [pspnet(CONFIGS / 'lad.py', method='student'), sweep(changed, 'student')]
    return [*students, *steps, *small, *others]


def make_data(root: Path, size: int) -> None:
    """Make the scenes, unless they are there."""
    from rawkd_mm.analysis.shipped import make_digit_scenes

    try:
        make_digit_scenes(root, size)
    except subprocess.CalledProcessError:
        sys.exit('evidence.py: error: the data could not be made, see above')


def options(iters: int, data: Path) -> list[str]:
    """Give what all trainings change in their configs."""
    changed = {
        'train_cfg.max_iters': iters,
        'param_scheduler.0.total_steps': iters,
        'train_cfg.val_interval': iters,
        'default_hooks.checkpoint.interval': min(500, iters),
        'default_hooks.logger.interval': min(50, max(1, iters // 4)),
        'custom_hooks.0.interval': max(1, iters // 80),
    }
    for loader in ('train', 'val', 'test'):
        changed[f'{loader}_dataloader.dataset.data_root'] = data
    changed[UNLABELLED_KEY] = data / 'images/train'
    return [f'{key}={value}' for key, value in changed.items()]


def make_sweeps(args: argparse.Namespace) -> list:
    """Give what a part is made of."""
    if args.part == 'natural':
        return make_natural_sweeps(args)
    if args.part == 'start':
        return make_start_sweeps(args)
    is_detector = args.part in DETECTORS
    data = args.detector_data if is_detector else args.data
    changed = options(args.iters, data)
    folder, base, pair = CONFIGS, CONFIGS / 'lad.py', DETECTORS.get(args.part, 'pspnet')
    if is_detector:
        changed += [f'{part}_evaluator.ann_file={data}/coco/val.json' for part in ('val', 'test')]
        folder = CONFIGS / 'retinanet'
        base = QUICKSTART / DETECTOR if args.part == 'flat-detector' else folder / 'lad.py'
    same = dict(
        seeds=5 if args.part == 'methods' else 3,
        metric='coco/bbox_mAP' if is_detector else 'mIoU',
    )

    def sweep(method: str | None, weights: Sequence[float] = (), **kwargs):
        config = folder / f'{kwargs["name"]}.py' if 'name' in kwargs else base
        its_own = changed
        if kwargs.get('name') in LABELS_ONLY:
            its_own = [text for text in changed if not text.startswith(UNLABELLED_KEY)]
        return make_sweep(args, config, pair, its_own, method, weights, **same, **kwargs)

    student = sweep('student')
    losses, naive = {LOSS_KEY: ['LADLoss', 'CADLoss']}, {LOSS_KEY: ['NaiveFeatureLoss']}
    if args.part == 'alpha':
        alphas = (*NAIVE_WEIGHTS, *EXACT_ALPHAS)
        grids = {a: {} if a == 1 else {TEACHER_KEY: [str(teacher_of(a))]} for a in alphas}
        return [
            student,
            *(sweep('naive', weights, grid=grids[a]) for a, weights in NAIVE_WEIGHTS.items()),
            *(sweep(method, [3], grid=grids[a]) for a in alphas for method in ('lad', 'cad')),
            # where the smallest feature fails: is it the ReLU?
            sweep(
                None,
                name='before_relu',
                grid={**naive, WEIGHT_KEY: ['3', '30', '300', '3000'], **grids[0.1]},
            ),
        ]
    if args.part == 'methods':
        return [
            student,
            sweep('cad', [3, 100]),  # the zoo's weight, and the best one of the part flat
            sweep('lad', [3, 10]),
            # the best place of the part where
            *(sweep(None, name='before_relu', grid=grid) for grid in (losses, naive)),
            sweep(None, name='kl'),
            sweep('naive', [args.naive_weight]),
            sweep(None, name='cad_kl'),
            sweep(None, name='lad_kl'),
            sweep(None, name='cwd'),
            sweep('nfd', [1.5]),
            sweep('pad', [3]),
            sweep(None, name='mgd'),
            sweep('md', [args.naive_weight]),
        ]
    if args.part == 'where':
        return [
            student,
            sweep('lad', [3]),
            sweep('cad', [3]),
            *(sweep(None, name=name, grid=losses) for name in PLACES),
            # at the same weight: is it the place, or the angle?
            sweep(None, name='before_relu', grid=naive),
        ]
    if args.part == 'detectors':
        names = ('fkd', 'cwd', 'mgd', *LABELS_ONLY)
        others = (sweep(None, name=name) for name in names)
        # the paper's weight, and the best one of the part flat-detector
        return [student, sweep('lad', [3, 100]), sweep('cad', [3, 100]), *others]
    return [student, *(sweep(method, FLAT_WEIGHTS) for method in ('cad', 'lad'))]


def longer_students(sweeps: list, cells: Sequence[str]) -> list:
    """Give the student alone for as many processor seconds as each of these."""
    from dataclasses import replace

    return [replace(sweeps[0], as_long_as=cell) for cell in cells]


def train(args: argparse.Namespace) -> int:
    """Train what a part lacks; gives the exit code."""
    from rawkd_mm.analysis.weight_sweep import run_sweeps

    if args.part in DETECTORS:
        make_data(args.detector_data, 64)
    else:
        make_data(args.data, 48)
    begun = os.times().elapsed

    def left() -> float | None:
        return args.minutes and args.minutes - (os.times().elapsed - begun) / 60

    if args.part in ('alpha', 'start'):
        make_teachers()
    if args.part == 'natural':
        code, complete = train_teachers(args)
        if not complete:
            return code
    sweeps = make_sweeps(args)
    code = 0
    for folder in dict.fromkeys(sweep.work_dir for sweep in sweeps):
        of_pair = [sweep for sweep in sweeps if sweep.work_dir == folder]
        code = run_sweeps(of_pair, left(), args.share_teacher) or code
    has_time = args.minutes is None or left() > 0
    if args.part == 'methods' and not args.share_teacher and not code and has_time:
        # of these the first seeds are enough to know how long
        code = run_sweeps(longer_students(sweeps, args.as_long_as), left())
    return code


def cells_of(sweeps: list) -> set[tuple[str, str]]:
    """Name what sweeps train: pairs of models, and labels of cells."""
    from rawkd_mm.analysis.grid import cell_label, grid_points
    from rawkd_mm.analysis.sweep_results import number

    return {
        (sweep.work_dir.name, cell_label(sweep.method_name, weight, point))
        for sweep in sweeps
        for weight in ([number(w) for w in sweep.weights] or [''])
        for point in grid_points(sweep.grid)
    }


def summarise(args: argparse.Namespace) -> None:
    """Write the table and the figures of what the CSV has of a part."""
    import matplotlib

    matplotlib.use('agg')
    from rawkd_mm.analysis.summarise_sweep import ANGULAR_WEIGHT, write_summary

    sweeps = make_sweeps(args)
    if args.part == 'methods':
        sweeps += longer_students(sweeps, args.as_long_as)
    only = cells_of(sweeps)
    out = args.out.with_name(f'{args.out.stem}_{args.part}')
    write_summary([args.out], str(out), args.baseline, only=only)
    if args.part in ('alpha', 'start', 'natural'):
        write_summary([args.out], f'{out}_angular', args.baseline, x=ANGULAR_WEIGHT, only=only)
    if args.part == 'natural':
        table = best_weights(args.out, only)
        out.with_name(f'{out.name}_best.md').write_text(table, encoding='utf-8')
        print(table)


def best_weights(path: Path, only: set) -> str:
    """Say for each teacher how large mn/N is, and which weight of naive distillation is the best."""
    from rawkd_mm.analysis.summarise_sweep import read_cells

    teachers = {}
    for cell in read_cells([path]):
        if (cell.pair, cell.label) in only and cell.method == 'naive' and cell.mn_over_n:
            teacher = Path(cell.point.get(TEACHER_KEY, 'as configured')).stem
            teachers.setdefault((cell.pair, teacher), []).append(cell)
    rows = []
    for key, cells in teachers.items():
        means = [sum(cell.values.values()) / len(cell.values) for cell in cells]
        best = cells[means.index(max(means))]
        sizes = [cell.mn_over_n for cell in cells]
        numbers = [f'{min(sizes):.3g} to {max(sizes):.3g}', len(best.values), best.weight]
        numbers += [f'{max(means):.2f}', f'{2 * float(best.weight) * best.mn_over_n:.3g}']
        rows.append((best.mn_over_n, f'| {" | ".join(map(str, [*key, *numbers]))} |'))
    names = 'pair | teacher | mn/N over the weights | seeds | best w | mIoU there | 2w mn/N there'
    lines = [f'| {names} |', '|---' * 7 + '|', *(row for _, row in sorted(rows)), '']
    lines += [
        'Sorted by mn/N. If it decides which weight is the best, the best w falls from row to row,'
    ]
    lines += ['and 2w mn/N is alike in all.']
    return '\n'.join(lines) + '\n'


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--part', required=True, choices=PARTS, help='which experiment')
    parser.add_argument('--jobs', type=int, default=1, metavar='N', help='trainings side by side')
    parser.add_argument(
        '--minutes', type=float, metavar='M', help='begin no training that would end after these'
    )
    parser.add_argument(
        '--share-teacher',
        action='store_true',
        help='train those of one teacher and one seed in one process: faster, with the same results, '
        'but what each took of the processor is not known, and --as-long-as is left out',
    )
    parser.add_argument(
        '--iters', type=int, default=1000, metavar='N', help='of each training (default: 1000)'
    )
    parser.add_argument(
        '--teacher-iters',
        type=int,
        default=4000,
        metavar='N',
        help='of the teachers that the part natural trains (default: 4000, as those that come along)',
    )
    parser.add_argument('--seeds', type=int, metavar='N', help='how many (default: 3; methods: 5)')
    parser.add_argument(
        '--naive-weight',
        type=float,
        default=10,
        metavar='W',
        help='of naive distillation and MD in the part methods: the best of alpha (default: 10)',
    )
    parser.add_argument(
        '--as-long-as',
        nargs='*',
        default=['cad-w3', 'cad_kl'],
        metavar='CELL',
        help='in the part methods, what the student alone is also trained as long as (default: '
        'cad-w3 cad_kl)',
    )
    parser.add_argument(
        '--data', type=Path, default=Path('data/digit_scenes'), metavar='DIR', help='of 48x48'
    )
    parser.add_argument(
        '--detector-data',
        type=Path,
        default=Path('data/digit_scenes_64'),
        metavar='DIR',
        help='of 64x64',
    )
    parser.add_argument(
        '--out', type=Path, default=RESULTS, metavar='CSV', help=f'default: {RESULTS}'
    )
    parser.add_argument('--summary', action='store_true', help='only write tables and figures')
    parser.add_argument(
        '--baseline', default='student', metavar='CELL', help='of the summary (default: student)'
    )
    args = parser.parse_args()
    for name in ('data', 'detector_data', 'out'):
        setattr(args, name, Path(os.path.relpath(getattr(args, name), ROOT)))
    os.chdir(ROOT)  # labels of cells have paths of teachers as seen from here

    from rawkd_mm.analysis.one_training import TrainingError
    from rawkd_mm.analysis.paired_statistics import MissingScipyError
    from rawkd_mm.analysis.summarise_sweep import SummaryError
    from rawkd_mm.training import UsageError

    try:
        if args.summary:
            summarise(args)
        else:
            sys.exit(train(args))
    except (TrainingError, UsageError, SummaryError, MissingScipyError) as error:
        sys.exit(f'evidence.py: error: {error}')
    except KeyboardInterrupt:
        print('\nevidence.py: interrupted; the same command goes on', file=sys.stderr)
        sys.exit(130)


if __name__ == '__main__':
    main()
