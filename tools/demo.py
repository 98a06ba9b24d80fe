#!/usr/bin/env python
"""The method in one command: teacher, student alone, LAD and CAD on DigitScenes, and a table.

Makes the data, trains the teacher once and the students for every seed, and writes to --work-dir:
table.md, results.json, predictions.png, curves.png and one folder a training. What is finished is
not done again; an interrupted training goes on from its last checkpoint. Several trainings run side
by side, which is faster than one after the other: models this small leave cores waiting.

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

from _trainings import Training, TrainingError, Trainings, curve, make_progress, read_scalars

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / 'configs' / 'quickstart'
LABELS = {'teacher': 'teacher', 'student': 'student alone', 'LAD': 'LAD', 'CAD': 'CAD'}
MIN_SCORE = 0.3  # of a box that is drawn


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

    task = TASKS[args.task]
    images = sorted((args.data_root / 'images/val').glob('*.png'))[:count]
    models = {}
    for method, runs in results.items():
        run = next(iter(runs.values()))
        config = task.configs['teacher' if method == 'teacher' else 'student']
        models[f'{LABELS[method]}\n{run[task.unit]:.1f} {task.unit}'] = config, run['checkpoint']
    columns = (columns_of_boxes if args.task == 'det' else columns_of_labels)(args, images, models)

    figure, axes = plt.subplots(
        len(images), len(columns), figsize=(1.6 * len(columns), 1.6 * len(images) + 0.5)
    )
    for column, (title, pictures) in enumerate(columns.items()):
        for row, (picture, boxes) in enumerate(pictures):
            axis = axes[row][column]
            axis.imshow(picture, interpolation='nearest')
            for (left, top, right, bottom), name, colour in boxes:
                box = plt.Rectangle((left, top), right - left, bottom - top, fill=False, ec=colour)
                axis.add_patch(box)
                label = dict(boxstyle='square,pad=0.1', fc=colour, lw=0)
                axis.text(left, top, name, fontsize=6, va='top', bbox=label, clip_on=True)
            axis.set_axis_off()
        axes[0][column].set_title(title, fontsize=9)
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def columns_of_labels(args: argparse.Namespace, images: list, models: dict) -> dict:
    """Give {title: [(picture, no boxes) of each image]} of a segmentation."""
    import numpy as np
    from mmengine.config import Config
    from mmseg.apis import inference_model, init_model
    from PIL import Image

    import rawkd_mm  # noqa: F401 (registers)

    columns = {}
    for title, (config, checkpoint) in models.items():
        with contextlib.redirect_stdout(io.StringIO()):  # that the connectors are not the student's
            model = init_model(Config.fromfile(config), checkpoint, device='cpu')
        columns[title] = [
            inference_model(model, str(image)).pred_sem_seg.data[0].numpy() for image in images
        ]
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(model.dataset_meta['palette'])] = model.dataset_meta['palette']
    palette[255] = (128, 128, 128)
    truth = [Image.open(args.data_root / 'annotations/val' / image.name) for image in images]
    columns = {'ground truth': [np.asarray(label) for label in truth], **columns}
    return {
        'image': [(np.asarray(Image.open(image)), ()) for image in images],
        **{title: [(palette[label], ()) for label in labels] for title, labels in columns.items()},
    }


def columns_of_boxes(args: argparse.Namespace, images: list, models: dict) -> dict:
    """Give {title: [(image, [(box, digit, colour)]) of each image]} of a detection."""
    import matplotlib.pyplot as plt
    import numpy as np
    from mmdet.apis import inference_detector, init_detector
    from mmengine.config import Config
    from PIL import Image

    import rawkd_mm  # noqa: F401 (registers)

    pictures = [np.asarray(Image.open(image)) for image in images]

    def draw(found: list) -> list:
        boxes = [[(box, str(digit), plt.cm.tab10(digit)) for box, digit in one] for one in found]
        return list(zip(pictures, boxes))

    coco = json.loads((args.data_root / 'coco/val.json').read_text())
    number = {image['file_name']: image['id'] for image in coco['images']}
    truth = []
    for image in images:
        given = [a for a in coco['annotations'] if a['image_id'] == number[image.name]]
        corners = [(x, y, x + w, y + h) for x, y, w, h in (a['bbox'] for a in given)]
        truth.append(list(zip(corners, (a['category_id'] - 1 for a in given))))
    columns = {'ground truth': draw(truth)}
    for title, (config, checkpoint) in models.items():
        with contextlib.redirect_stdout(io.StringIO()):  # that the connectors are not the student's
            model = init_detector(Config.fromfile(config), checkpoint, device='cpu')
        found = []
        for image in images:
            boxes = inference_detector(model, str(image)).pred_instances
            boxes = boxes[boxes.scores >= MIN_SCORE]
            found.append(list(zip(boxes.bboxes.tolist(), boxes.labels.tolist())))
        columns[title] = draw(found)
    return columns


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


if __name__ == '__main__':
    main()
