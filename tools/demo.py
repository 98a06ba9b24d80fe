#!/usr/bin/env python
"""The method in one command: teacher, student alone, LAD and CAD on DigitScenes, and a table.

Makes the data, trains the teacher once and the students for every seed, and writes to --work-dir:
table.md, results.json, predictions.png, curves.png and one folder a training. What is finished is
not done again; an interrupted training goes on from its last checkpoint. Several trainings run side
by side, which is faster than one after the other: models this small leave cores waiting.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import FIRST_EXCEPTION, wait
from pathlib import Path
from typing import NamedTuple

from _trainings import Training, TrainingError, Trainings, curve, make_progress

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / 'configs' / 'quickstart'
TEACHER = 'pspnet_r18-w12_1xb16-4k_digit-scenes-48x48.py'
STUDENT = 'pspnet_r18-w4_1xb16-4k_digit-scenes-48x48.py'
DISTILL = '{}_bottleneck_pspnet-r18-w12_pspnet-r18-w4_1xb16-4k_digit-scenes-48x48.py'
METHODS = {
    'teacher': TEACHER,
    'student': STUDENT,
    'LAD': DISTILL.format('lad'),
    'CAD': DISTILL.format('cad'),
}
LABELS = {'teacher': 'teacher', 'student': 'student alone', 'LAD': 'LAD', 'CAD': 'CAD'}


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
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/demo'), metavar='DIR')
    parser.add_argument('--data-root', type=Path, default=Path('data/digit_scenes'), metavar='DIR')
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
    if args.jobs < 1:
        parser.error(f'--jobs must be at least 1, got {args.jobs}')
    if args.iters is not None and args.iters < 2:
        parser.error(f'--iters must be at least 2, got {args.iters}')
    if len(set(args.seeds)) != len(args.seeds):
        parser.error(f'--seeds must differ, got {args.seeds}')
    return args


def make_data(args: argparse.Namespace) -> None:
    command = [sys.executable, ROOT / 'tools/dataset_converters/digit_scenes.py']
    command += ['--root', args.data_root, '--size', '48']
    command += ['--train', str(args.train), '--val', str(args.val)]
    if subprocess.run(command).returncode:
        sys.exit('demo: the data could not be made, see above')


def options(run: Run, args: argparse.Namespace, iters: int, teacher: Path | None) -> list:
    """Give what the command line changes in the config."""
    result = {'randomness.seed': run.seed}
    for loader in ('train', 'val', 'test'):
        result[f'{loader}_dataloader.dataset.data_root'] = args.data_root
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
        config=CONFIGS / METHODS[run.method],
        folder=args.work_dir / run.name,
        length=iters,
        metric='mIoU',
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
    results = {method: {} for method in METHODS}
    for run, future in futures.items():
        result = future.result()
        results[run.method][run.seed] = {'mIoU': result['metrics']['mIoU'], **result}
    return results


def wait_for(futures, until=None) -> None:
    """Wait for one or all futures; raises what any of them raised, as soon as it did."""
    pending = set(futures)
    while pending and not (until is not None and until.done()):
        done, pending = wait(pending, timeout=1, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()


def make_table(results: dict, seeds: list) -> str:
    """Give the results as a Markdown table; mean and sample standard deviation over the seeds."""
    alone = results['student']
    lines = ['| | mIoU | over the student alone | seconds |', '|---|---|---|---|']
    for method, runs in results.items():
        values = [run['mIoU'] for run in runs.values()]
        cell = f'{statistics.mean(values):.2f}'
        if len(values) > 1:
            cell += f' ± {statistics.stdev(values):.2f}'
        delta = ''
        if method in ('LAD', 'CAD'):
            deltas = [runs[seed]['mIoU'] - alone[seed]['mIoU'] for seed in seeds]
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
    import numpy as np
    from mmengine.config import Config
    from mmseg.apis import inference_model, init_model
    from PIL import Image

    import rawkd_mm  # noqa: F401 (registers)

    images = sorted((args.data_root / 'images/val').glob('*.png'))[:count]
    columns = {'image': [], 'ground truth': []}
    for image in images:
        columns['image'].append(np.asarray(Image.open(image)))
        label = args.data_root / 'annotations/val' / image.name
        columns['ground truth'].append(np.asarray(Image.open(label)))
    for method, runs in results.items():
        run = next(iter(runs.values()))
        config = Config.fromfile(CONFIGS / (TEACHER if method == 'teacher' else STUDENT))
        with contextlib.redirect_stdout(io.StringIO()):  # that the connectors are not the student's
            model = init_model(config, run['checkpoint'], device='cpu')
        columns[f'{LABELS[method]}\n{run["mIoU"]:.1f} mIoU'] = [
            inference_model(model, str(image)).pred_sem_seg.data[0].numpy() for image in images
        ]
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(model.dataset_meta['palette'])] = model.dataset_meta['palette']
    palette[255] = (128, 128, 128)

    figure, axes = plt.subplots(
        len(images), len(columns), figsize=(1.6 * len(columns), 1.6 * len(images) + 0.5)
    )
    for column, (title, pictures) in enumerate(columns.items()):
        for row, picture in enumerate(pictures):
            axis = axes[row][column]
            axis.imshow(palette[picture] if picture.ndim == 2 else picture, interpolation='nearest')
            axis.set_axis_off()
        axes[0][column].set_title(title, fontsize=9)
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_curves(args: argparse.Namespace, results: dict, path: Path) -> None:
    """Draw mIoU, and the cosine between student and teacher, over the iterations."""
    import matplotlib.pyplot as plt

    colours = {'teacher': '0.45', 'student': 'tab:blue', 'LAD': 'tab:orange', 'CAD': 'tab:green'}
    figure, (metric, angle) = plt.subplots(1, 2, figsize=(10, 4))
    for method, runs in results.items():
        for i, seed in enumerate(runs):
            folder = args.work_dir / Run(method, seed).name
            style = dict(color=colours[method], label=None if i else LABELS[method])
            values = curve(folder, 'mIoU')
            dashes = '--' if method == 'teacher' else '-'
            metric.plot(values.keys(), values.values(), dashes, marker='o', markersize=3, **style)
            if method in ('LAD', 'CAD'):
                values = curve(folder, '/cos_theta')
                angle.plot(values.keys(), values.values(), linewidth=1, **style)
    metric.set(xlabel='iteration', ylabel='mIoU on val (%)', title='Segmentation')
    angle.set(
        xlabel='iteration',
        ylabel='cosine (whole map, batch mean)',
        title='Student and teacher feature',
    )
    for axis in (metric, angle):
        axis.grid(alpha=0.3)
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    args = parse_args()
    from mmengine.config import Config

    make_data(args)
    iters = (
        args.iters
        or Config.fromfile(
            CONFIGS.parent / '_base_/schedules/digit_scenes_4k.py'
        ).train_cfg.max_iters
    )
    print(f'Training in {args.work_dir}; the whole log of a training is <folder>/train.log')
    try:
        with make_progress() as progress:
            results = train_all(args, iters, progress)
    except TrainingError as error:
        sys.exit(f'demo: {error}')

    table = make_table(results, args.seeds)
    (args.work_dir / 'table.md').write_text(table + '\n')
    (args.work_dir / 'results.json').write_text(json.dumps(results, indent=2))
    draw_predictions(args, results, args.work_dir / 'predictions.png')
    draw_curves(args, results, args.work_dir / 'curves.png')
    seeds = ', '.join(map(str, args.seeds))
    print(
        f'\nDigitScenes, {iters} iterations, seed {seeds}: mIoU on val in percent; seconds with '
        f'{args.jobs} trainings side by side\n\n{table}\n'
    )
    for name in ('table.md', 'results.json', 'predictions.png', 'curves.png'):
        print(args.work_dir / name)


if __name__ == '__main__':
    main()
