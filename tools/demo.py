#!/usr/bin/env python
"""The method in one command: teacher, student alone, LAD and CAD on DigitScenes, and a table.

Makes the data, trains the teacher once and the students for every seed, and writes to --work-dir:
table.md, results.json, predictions.png, curves.png, report.html (of CAD) and one folder a training.
What is finished is not done again; an interrupted training goes on from its last checkpoint. Several
trainings run side by side, which is faster than one after the other: models this small leave cores
waiting.

--task seg is segmentation by PSPNet, --task det detection by RetinaNet, for which MMDetection and
MMCV's compiled operators are needed (make env-test).
"""

import argparse
import contextlib
import importlib.util
import io
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, wait
from pathlib import Path
from typing import NamedTuple

import _common  # noqa: F401 (a checkout's tools belong to the checkout's package)
from _trainings import Training, TrainingError, Trainings, curve, make_progress, read_scalars

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / 'configs' / 'quickstart'
LABELS = {'teacher': 'teacher', 'student': 'student alone', 'LAD': 'LAD', 'CAD': 'CAD'}


class Task(NamedTuple):
    """What the demo shows.

    Attributes:
        teacher: Config below configs/quickstart.
        student: The same.
        distill: The same, of LAD and CAD, with '{}' for their name.
        size: Height and width of the images.
        metric: What counts of a validation, as the log calls it.
        unit: What the table calls it, in percent.
        percent: What makes percent of it.
        title: Of the figure.
        work_dir: By default.
        data_root: By default.
        options: Further options for --cfg-options, from the data's folder.
    """

    teacher: str
    student: str
    distill: str
    size: int
    metric: str
    unit: str
    percent: int
    title: str
    work_dir: Path
    data_root: Path
    options: Callable[[Path], dict]

    @property
    def configs(self) -> dict:
        """Config file of each method."""
        names = dict(
            teacher=self.teacher,
            student=self.student,
            LAD=self.distill.format('lad'),
            CAD=self.distill.format('cad'),
        )
        return {method: CONFIGS / name for method, name in names.items()}


TASKS = {
    'seg': Task(
        teacher='pspnet_r18-w12_1xb16-4k_digit-scenes-48x48.py',
        student='pspnet_r18-w4_1xb16-4k_digit-scenes-48x48.py',
        distill='{}_bottleneck_pspnet-r18-w12_pspnet-r18-w4_1xb16-4k_digit-scenes-48x48.py',
        size=48,
        metric='mIoU',
        unit='mIoU',
        percent=1,
        title='Segmentation',
        work_dir=Path('work_dirs/demo'),
        data_root=Path('data/digit_scenes'),
        options=lambda data_root: {},
    ),
    'det': Task(
        teacher='retinanet_r18-w32_1xb16-3k_digit-scenes-64x64.py',
        student='retinanet_r18-w8_1xb16-3k_digit-scenes-64x64.py',
        distill='{}_neck_retinanet-r18-w32_retinanet-r18-w8_1xb16-3k_digit-scenes-64x64.py',
        size=64,
        metric='coco/bbox_mAP',
        unit='AP',
        percent=100,
        title='Detection',
        work_dir=Path('work_dirs/demo-det'),
        data_root=Path('data/digit_scenes_64'),
        options=lambda data_root: {
            f'{part}_evaluator.ann_file': data_root / 'coco/val.json' for part in ('val', 'test')
        },
    ),
}


class Run(NamedTuple):
    """One training."""

    method: str
    seed: int

    @property
    def name(self) -> str:
        return f'{self.method.lower()}-seed{self.seed}'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--task', choices=TASKS, default='seg', help='segmentation (default) or detection'
    )
    defaults = {
        name: ', '.join(f'{getattr(task, name)} ({key})' for key, task in TASKS.items())
        for name in ('work_dir', 'data_root')
    }
    parser.add_argument(
        '--work-dir', type=Path, metavar='DIR', help=f'default: {defaults["work_dir"]}'
    )
    parser.add_argument(
        '--data-root', type=Path, metavar='DIR', help=f'default: {defaults["data_root"]}'
    )
    parser.add_argument(
        '--seeds',
        type=int,
        nargs='+',
        default=[0],
        help='train the students with each of these; the teacher with the first (default: 0)',
    )
    parser.add_argument(
        '--iters',
        type=int,
        metavar='N',
        help="iterations of every training (default: the configs'); few show nothing but that it runs",
    )
    parser.add_argument(
        '--train', type=int, default=4000, metavar='N', help='training images (default: 4000)'
    )
    parser.add_argument(
        '--val', type=int, default=300, metavar='N', help='validation images (default: 300)'
    )
    parser.add_argument(
        '--jobs',
        type=int,
        default=min(os.cpu_count() or 1, 4),
        metavar='N',
        help='trainings side by side (default: the number of cores, at most 4)',
    )
    args = parser.parse_args()
    args.work_dir = args.work_dir or TASKS[args.task].work_dir
    args.data_root = args.data_root or TASKS[args.task].data_root
    if args.task == 'det' and not can_detect():
        parser.error(
            '--task det needs MMDetection and MMCV with its compiled operators, and '
            f'{sys.executable} does not have both: `make env-test` sets up an environment that has'
        )
    if args.jobs < 1:
        parser.error(f'--jobs must be at least 1, got {args.jobs}')
    if args.iters is not None and args.iters < 2:
        parser.error(f'--iters must be at least 2, got {args.iters}')
    if len(set(args.seeds)) != len(args.seeds):
        parser.error(f'--seeds must differ, got {args.seeds}')
    return args


def can_detect() -> bool:
    return all(importlib.util.find_spec(name) for name in ('mmdet', 'mmcv', 'mmcv._ext'))


def make_data(args: argparse.Namespace) -> None:
    command = [sys.executable, ROOT / 'tools/dataset_converters/digit_scenes.py']
    command += ['--root', args.data_root, '--size', str(TASKS[args.task].size)]
    command += ['--train', str(args.train), '--val', str(args.val)]
    if subprocess.run(command).returncode:
        sys.exit('demo: the data could not be made, see above')


def options(run: Run, args: argparse.Namespace, iters: int, teacher: Path | None) -> list:
    """Give what the command line changes in the config."""
    result = {'randomness.seed': run.seed}
    for loader in ('train', 'val', 'test'):
        result[f'{loader}_dataloader.dataset.data_root'] = args.data_root
    result.update(TASKS[args.task].options(args.data_root))
    if args.iters is not None:
        result['train_cfg.max_iters'] = result['param_scheduler.0.total_steps'] = iters
        result['train_cfg.val_interval'] = max(1, iters // 4)
        result['default_hooks.checkpoint.interval'] = max(1, iters // 4)
        result['default_hooks.logger.interval'] = max(1, min(50, iters // 4))
    if teacher is not None:
        result['model.teacher_ckpt'] = teacher
    return [f'{key}={value}' for key, value in result.items()]


def training(run: Run, args: argparse.Namespace, iters: int, teacher: Path | None) -> Training:
    """Describe a training; finished ones with other iterations or data are refused."""
    return Training(
        label=f'{LABELS[run.method]}, seed {run.seed}',
        config=TASKS[args.task].configs[run.method],
        folder=args.work_dir / run.name,
        length=iters,
        metric=TASKS[args.task].metric,
        settings=dict(
            iters=iters, train=args.train, val=args.val, data_root=str(args.data_root.resolve())
        ),
        options=options(run, args, iters, teacher),
    )


def train_all(args: argparse.Namespace, iters: int, progress) -> dict:
    """Train everything, --jobs at a time; gives {method: {seed: result}}."""
    teacher_run = Run('teacher', args.seeds[0])
    alone = [Run('student', seed) for seed in args.seeds]
    distilled = [Run(method, seed) for seed in args.seeds for method in ('LAD', 'CAD')]
    with Trainings(progress, args.jobs) as trainings:
        futures = {
            run: trainings.submit(training(run, args, iters, None))
            for run in (teacher_run, alone[0])
        }
        # the students with a teacher wait for it, the others fill the time
        wait_for(futures.values(), until=futures[teacher_run])
        teacher = futures[teacher_run].result()['checkpoint']
        for run in (*distilled, *alone[1:]):
            weights = teacher if run in distilled else None
            futures[run] = trainings.submit(training(run, args, iters, weights))
        wait_for(futures.values())
    task = TASKS[args.task]
    results = {method: {} for method in LABELS}
    for run, future in futures.items():
        result = future.result()
        value = task.percent * result['metrics'][task.metric]
        results[run.method][run.seed] = {task.unit: value, **result}
    return results


def wait_for(futures, until=None) -> None:
    """Wait for one or all futures; raises what any of them raised, as soon as it did."""
    pending = set(futures)
    while pending and not (until is not None and until.done()):
        done, pending = wait(pending, timeout=1, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()


def make_table(results: dict, seeds: list, unit: str) -> str:
    """Give the results as a Markdown table; mean and sample standard deviation over the seeds."""
    alone = results['student']
    lines = [f'| | {unit} | over the student alone | seconds |', '|---|---|---|---|']
    for method, runs in results.items():
        values = [run[unit] for run in runs.values()]
        cell = f'{statistics.mean(values):.2f}'
        if len(values) > 1:
            cell += f' ± {statistics.stdev(values):.2f}'
        delta = ''
        if method in ('LAD', 'CAD'):
            deltas = [runs[seed][unit] - alone[seed][unit] for seed in seeds]
            delta = f'{statistics.mean(deltas):+.2f}'
            if len(deltas) > 1:
                delta += f' ± {statistics.stdev(deltas):.2f}'
        seconds = statistics.mean(run['seconds'] for run in runs.values())
        lines.append(f'| {LABELS[method]} | {cell} | {delta} | {seconds:.0f} |')
    return '\n'.join(lines)


def draw_predictions(args: argparse.Namespace, results: dict, path: Path, count: int = 5) -> None:
    """Draw validation images, ground truth and what each model sees.

    Every checkpoint is loaded with a plain config: those of the distillation are students.
    """
    import matplotlib.pyplot as plt
    from _pictures import build_dataset, images_of, load_model, predictions_of, show, truth_of

    import rawkd_mm  # noqa: F401 (registers)
    from rawkd_mm.training import load_config

    task = TASKS[args.task]
    data = {'val_dataloader.dataset.data_root': str(args.data_root)}
    configs = {
        method: load_config(str(task.configs[method]), data) for method in ('teacher', 'student')
    }
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = build_dataset(configs['student'])
        images = range(min(count, len(dataset)))
        columns = {'image': images_of(dataset, images), 'ground truth': truth_of(dataset, images)}
        for method, runs in results.items():
            run = next(iter(runs.values()))
            config = configs['teacher' if method == 'teacher' else 'student']
            title = f'{LABELS[method]}\n{run[task.unit]:.1f} {task.unit}'
            model = load_model(config, run['checkpoint'])
            columns[title] = predictions_of(model, dataset, images)

    figure, axes = plt.subplots(
        len(images),
        len(columns),
        figsize=(1.6 * len(columns), 1.6 * len(images) + 0.5),
        squeeze=False,
    )
    for column, (title, pictures) in enumerate(columns.items()):
        for row, picture in enumerate(pictures):
            show(axes[row][column], picture)
        axes[0][column].set_title(title, fontsize=9)
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def cosines(folder: Path) -> dict:
    """Give {iteration: cosine between student and teacher}, the mean of all pairs of features."""
    means = {}
    for entry in read_scalars(folder):
        values = [value for name, value in entry.items() if name.endswith('/cos_theta')]
        if values:
            means[entry['step']] = statistics.mean(values)
    return means


def draw_curves(args: argparse.Namespace, results: dict, path: Path) -> None:
    """Draw the metric, and the cosine between student and teacher, over the iterations."""
    import matplotlib.pyplot as plt

    task = TASKS[args.task]

    colours = {'teacher': '0.45', 'student': 'tab:blue', 'LAD': 'tab:orange', 'CAD': 'tab:green'}
    figure, (metric, angle) = plt.subplots(1, 2, figsize=(10, 4))
    for method, runs in results.items():
        for i, seed in enumerate(runs):
            folder = args.work_dir / Run(method, seed).name
            style = dict(color=colours[method], label=None if i else LABELS[method])
            values = {k: task.percent * v for k, v in curve(folder, task.metric).items()}
            dashes = '--' if method == 'teacher' else '-'
            metric.plot(values.keys(), values.values(), dashes, marker='o', markersize=3, **style)
            if method in ('LAD', 'CAD'):
                values = cosines(folder)
                angle.plot(values.keys(), values.values(), linewidth=1, **style)
    metric.set(xlabel='iteration', ylabel=f'{task.unit} on val (%)', title=task.title)
    angle.set(
        xlabel='iteration',
        ylabel='cosine (whole map, mean of batch and maps)',
        title='Student and teacher feature',
    )
    for axis in (metric, angle):
        axis.grid(alpha=0.3)
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def write_report(args: argparse.Namespace) -> None:
    """Write what CAD did to the student of the first seed; the report prints its path."""
    distilled, alone = (
        args.work_dir / Run(method, args.seeds[0]).name for method in ('CAD', 'student')
    )
    command = [os.path.relpath(ROOT / 'tools/analysis_tools/report.py'), distilled]
    command += ['--baseline', alone, '--out', args.work_dir / 'report.html']
    print('\nThe whole story of CAD, to be opened in a browser:', flush=True)
    if subprocess.run([sys.executable, *map(str, command)]).returncode:
        sys.exit('demo: the report could not be written, see above')


def main() -> None:
    args = parse_args()
    from mmengine.config import Config

    task = TASKS[args.task]
    make_data(args)
    iters = args.iters or Config.fromfile(task.configs['student']).train_cfg.max_iters
    print(f'Training in {args.work_dir}; the whole log of a training is <folder>/train.log')
    try:
        with make_progress() as progress:
            results = train_all(args, iters, progress)
    except TrainingError as error:
        sys.exit(f'demo: {error}')

    table = make_table(results, args.seeds, task.unit)
    (args.work_dir / 'table.md').write_text(table + '\n')
    (args.work_dir / 'results.json').write_text(json.dumps(results, indent=2))
    draw_predictions(args, results, args.work_dir / 'predictions.png')
    draw_curves(args, results, args.work_dir / 'curves.png')
    seeds = ', '.join(map(str, args.seeds))
    print(
        f'\nDigitScenes, {iters} iterations, seed {seeds}: {task.unit} on val in percent; seconds with '
        f'{args.jobs} trainings side by side\n\n{table}\n'
    )
    for name in ('table.md', 'results.json', 'predictions.png', 'curves.png'):
        print(args.work_dir / name)
    write_report(args)


if __name__ == '__main__':
    main()
