#!/usr/bin/env python
"""Measure what images without labels add to few labels, on DigitScenes: many trainings side by side.

The student is the quickstart's PSPNet, the teacher its wider one, trained on 4000 labelled scenes. A
training has 16 labelled scenes an iteration, and with unlabelled ones 16 of these beside them. All
methods of one seed have the same initial student, the same labelled scenes and the same order of them.
The unlabelled scenes are others than the 4000 of the teacher's training.

    python benchmarks/few_labels.py --teacher TEACHER.pth --jobs 16     # trains what the CSV lacks
    python benchmarks/few_labels.py --summary                           # table and figure of the CSV
"""

import argparse
import contextlib
import csv
import functools
import logging
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault('OMP_NUM_THREADS', '1')  # before torch: a training has one thread
os.environ.setdefault('CUDA_VISIBLE_DEVICES', '')  # what is forked cannot use a GPU

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'tools' / 'dataset_converters')]

RESULTS = ROOT / 'benchmarks' / 'results' / 'few_labels.csv'
FIGURE = ROOT / 'docs' / 'images' / 'few_labels.png'
FIELDS = ('labels', 'method', 'unlabelled', 'norm', 'iterations', 'seed', 'mIoU', 'seconds')
TEACHERS_SCENES = 4000
BATCH = 16
# What a method is called in tables.
NAMES = dict(alone='student alone', lad='LAD', cad='CAD', first='features first (LAD), then labels')


class Task(NamedTuple):
    """One training.

    Attributes:
        labels: Number of labelled scenes.
        method: 'alone', 'lad', 'cad', or 'first': LAD on unlabelled scenes alone for the first half
            of the iterations, then the student alone on the labelled ones.
        unlabelled: Number of unlabelled scenes.
        norm: Of which images the running statistics are; as UnlabelledImagesHook has it.
        iterations: In all.
        seed: Of the student, the labelled scenes and their order.
    """

    labels: int
    method: str
    unlabelled: int
    norm: str
    iterations: int
    seed: int

    @property
    def cost(self) -> float:
        """Roughly, in what an iteration of a student alone costs."""
        if self.method == 'first':
            return 2 * self.iterations
        each = 1 if self.method == 'alone' else 3 if self.unlabelled else 1.7
        return each * self.iterations


def grid(iterations: int) -> list[Task]:
    """Give all trainings."""
    tasks = []
    for labels in (50, 200, 800, 4000):
        ways = [('alone', 0, 'both')]
        ways += [(method, count, 'both') for count in (0, 4000) for method in ('lad', 'cad')]
        if labels == 200:
            ways += [('lad', 20000, 'both'), ('cad', 20000, 'both')]
            ways += [('lad', 4000, 'labelled'), ('cad', 4000, 'labelled')]
            ways += [('first', 4000, 'both')]
        for seed in range(5 if labels == 200 else 3):
            tasks += [Task(labels, *way, iterations, seed) for way in ways]
    return tasks


# Scenes, made once and shared by all trainings, which are forked.
SCENES: dict[str, tuple] = {}


def _render(task: tuple[str, int, int]) -> tuple:
    import numpy as np
    from digit_scenes_drawing import DigitScenesOptions, render_scene

    split, start, stop = task
    options = DigitScenesOptions(size=(48, 48))
    scenes = [render_scene(options, split, index) for index in range(start, stop)]
    return np.stack([s.image for s in scenes]), np.stack([s.label for s in scenes])


def make_scenes(unlabelled: int, jobs: int) -> None:
    """Draw the scenes that tools/dataset_converters/digit_scenes.py --size 48 would write."""
    import numpy as np
    import torch

    counts = dict(train=TEACHERS_SCENES + unlabelled, val=300)
    chunks = [
        (split, start, min(start + 100, count))
        for split, count in counts.items()
        for start in range(0, count, 100)
    ]
    with multiprocessing.get_context('fork').Pool(jobs) as pool:
        made = pool.map(_render, chunks, chunksize=4)
    for split in counts:
        images, labels = zip(*(m for m, chunk in zip(made, chunks) if chunk[0] == split))
        # as MMCV loads them: channels in the order BGR
        images = np.concatenate(images)[..., ::-1].transpose(0, 3, 1, 2)
        SCENES[split] = (
            torch.from_numpy(np.ascontiguousarray(images)),
            torch.from_numpy(np.concatenate(labels)).long()[:, None],
        )


def labelled_scenes(count: int, seed: int):
    """Give the numbers of the scenes whose labels a student has, chosen among the teacher's."""
    import numpy as np

    chosen = np.random.default_rng((seed, 7)).permutation(TEACHERS_SCENES)
    return np.sort(chosen[:count])


def register() -> None:
    """Register the data set that reads SCENES."""
    import numpy as np
    from mmengine.registry import DATASETS
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample
    from torch.utils.data import Dataset

    from rawkd_mm.datasets import DigitScenesDataset

    @DATASETS.register_module(force=True)
    class ScenesInMemory(Dataset):
        """Scenes of a split: ``count`` from ``start`` on, or chosen among the teacher's by a seed."""

        def __init__(self, split, count, start=0, seed=None, has_labels=True):
            self.metainfo = dict(DigitScenesDataset.METAINFO)
            self.images, self.labels = SCENES[split]
            self.numbers = np.arange(start, start + count)
            if seed is not None:
                self.numbers = labelled_scenes(count, seed)
            self.has_labels = has_labels

        def __len__(self):
            return len(self.numbers)

        def __getitem__(self, index):
            number = self.numbers[index]
            sample = SegDataSample(
                metainfo=dict(
                    img_path=f'{number:05d}.png',
                    img_shape=(48, 48),
                    ori_shape=(48, 48),
                    scale_factor=(1.0, 1.0),
                )
            )
            if self.has_labels:
                sample.gt_sem_seg = PixelData(data=self.labels[number])
            return dict(inputs=self.images[number], data_samples=sample)


@functools.cache
def read(name: str):
    from rawkd_mm.training import load_config

    return load_config(str(ROOT / 'configs' / 'quickstart' / name))


def set_schedule(cfg, iterations: int, seed: int, folder: str) -> None:
    """Set how long a training is, and its seed; it writes nothing and is tested at its end."""
    cfg.test_dataloader = cfg.test_cfg = cfg.test_evaluator = None
    cfg.train_cfg.update(max_iters=iterations, val_interval=iterations)
    cfg.param_scheduler[0].total_steps = iterations
    cfg.default_hooks = dict(
        checkpoint=None, logger=None, sampler_seed=dict(type='DistSamplerSeedHook')
    )
    cfg.default_hooks.param_scheduler = dict(type='ParamSchedulerHook')
    cfg.visualizer = dict(type='Visualizer', vis_backends=[])
    cfg.log_level = 'ERROR'
    cfg.randomness = dict(seed=seed)
    cfg.work_dir = folder
    cfg.launcher = 'none'


def config(task: Task, teacher: str, iterations: int, folder: str, **model):
    """Give the config of a training, as a reader of the guide would write it."""
    import copy

    from rawkd_mm.training import student_config

    method = 'cad' if task.method == 'cad' else 'lad'
    cfg = copy.deepcopy(
        read(f'{method}_bottleneck_pspnet-r18-w12_pspnet-r18-w4_1xb16-4k_digit-scenes-48x48.py')
    )
    unlabelled = dict(
        type='ScenesInMemory',
        split='train',
        start=TEACHERS_SCENES,
        count=task.unlabelled,
        has_labels=False,
    )
    cfg.model.teacher_ckpt = teacher
    cfg.model.update(model)
    cfg.custom_hooks = []
    loader = dict(num_workers=0, batch_size=BATCH)
    cfg.train_dataloader = dict(
        **loader,
        sampler=dict(type='InfiniteSampler', shuffle=True),
        dataset=dict(type='ScenesInMemory', split='train', count=task.labels, seed=task.seed),
    )
    if model.get('calculate_student_loss') is False:
        # as many unlabelled scenes in half of the iterations as beside labelled ones in all
        cfg.train_dataloader.update(dataset=unlabelled, batch_size=2 * BATCH)
    elif task.unlabelled and task.method != 'first':
        hook = dict(type='UnlabelledImagesHook', dataset=unlabelled, batch_size=BATCH)
        cfg.custom_hooks = [dict(**hook, num_workers=0, norm=task.norm)]
    cfg.val_dataloader = dict(
        **loader,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(type='ScenesInMemory', split='val', count=300),
    )
    set_schedule(cfg, iterations, task.seed, folder)
    # without the teacher, what is about it is left out
    return student_config(cfg) if task.method in ('alone', 'first') and not model else cfg


def train(task: Task, teacher: str) -> float:
    """Run a training; gives the student's mIoU on the 300 validation scenes."""
    from mmengine.runner import load_state_dict

    from rawkd_mm.training import build_runner

    with tempfile.TemporaryDirectory() as folder:
        iterations, state = task.iterations, None
        if task.method == 'first':
            first = iterations // 2
            cfg = config(task, teacher, first, folder, calculate_student_loss=False)
            cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
            runner = build_runner(cfg)
            runner.train()
            state = runner.model.student.state_dict()
            iterations -= first
        cfg = config(task, teacher, iterations, folder)
        cfg.experiment_name = 'labels'
        runner = build_runner(cfg)
        if state is not None:
            runner.model.init_weights()
            load_state_dict(runner.model, state, strict=True)
        runner.train()
        return float(runner.message_hub.get_scalar('val/mIoU').current())


def _child(task: NamedTuple, train: Callable, teacher: object, pipe) -> None:
    import torch

    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    begun = time.time()
    try:
        with open(os.devnull, 'w') as null, contextlib.redirect_stdout(null):
            value = train(task, teacher)
        pipe.send((value, time.time() - begun))
    except BaseException:
        pipe.send(traceback.format_exc())
    finally:
        pipe.close()


def finished(file: Path, kind: type = Task) -> dict:
    """Read the trainings that a CSV has: tasks of a kind, and their rows."""
    if not file.is_file():
        return {}
    with file.open(newline='') as stream:
        rows = list(csv.DictReader(stream))
    types = kind.__annotations__
    return {kind(**{k: types[k](row[k]) for k in kind._fields}): row for row in rows}


def run(
    tasks: list,
    train: Callable,
    teacher: object,
    jobs: int,
    file: Path,
    minutes: float,
    fields: Sequence[str] = FIELDS,
    metric: str = 'mIoU',
) -> int:
    """Run ``train(task, teacher)``, which gives a metric, for all tasks, the longest first.

    None begins that would probably not end within the minutes. Gives how many failed.
    """
    context = multiprocessing.get_context('fork')
    waiting, running, failed, done = sorted(tasks, key=lambda t: -t.cost), {}, 0, 0
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.is_file():
        file.write_text(','.join(fields) + '\n')
    begun, pace = time.time(), []  # seconds for a cost of 1, of what has ended

    def fits(task: NamedTuple) -> bool:
        needed = task.cost * max(pace, default=0)
        return time.time() - begun + needed < 60 * minutes

    while waiting or running:
        while len(running) < jobs and (task := next(filter(fits, waiting), None)) is not None:
            waiting.remove(task)
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_child, args=(task, train, teacher, sender))
            process.start()
            sender.close()
            running[receiver] = task, process
        if not running:
            print(f'{len(waiting)} trainings are left for another call', flush=True)
            break
        for receiver in wait(list(running)):
            task, process = running.pop(receiver)
            try:
                result = receiver.recv()
            except EOFError:
                result = 'the process ended without a result'
            process.join()
            done += 1
            if isinstance(result, str):
                failed += 1
                print(f'FAILED {task}\n{result}', flush=True)
                continue
            value, seconds = result
            pace.append(seconds / task.cost)
            with file.open('a', newline='') as stream:
                row = {**task._asdict(), metric: f'{value:.2f}', 'seconds': f'{seconds:.1f}'}
                csv.DictWriter(stream, fields, lineterminator='\n').writerow(row)
            what = ' '.join(f'{name}={value}' for name, value in task._asdict().items())
            print(
                f'{done}/{len(tasks)} {time.time() - begun:.0f} s: {what}: {metric} {row[metric]} '
                f'({seconds:.0f} s)',
                flush=True,
            )
    return failed


def table(results: dict[Task, dict]) -> list[dict]:
    """Give mean, standard deviation and the gain over the student alone of the same seeds."""
    groups = defaultdict(dict)
    for task, row in results.items():
        groups[task._replace(seed=-1)][task.seed] = float(row['mIoU'])
    rows = []
    for group, values in sorted(groups.items()):
        alone = groups.get(group._replace(method='alone', unlabelled=0, norm='both'), {})
        gains = [value - alone[seed] for seed, value in values.items() if seed in alone]
        deviation = statistics.stdev if len(values) > 1 else lambda _: float('nan')
        is_other = group.method != 'alone' and gains
        rows.append(
            dict(
                labels=group.labels,
                method=group.method,
                unlabelled=group.unlabelled,
                norm=group.norm,
                iterations=group.iterations,
                seeds=len(values),
                mIoU=round(statistics.mean(values.values()), 2),
                deviation=round(deviation(values.values()), 2),
                gain=round(statistics.mean(gains), 2) if is_other else '',
                gain_deviation=round(deviation(gains), 2) if is_other and len(gains) > 1 else '',
            )
        )
    return rows


def summarise(file: Path, figure: Path) -> None:
    """Print the table of a CSV, write it beside the CSV, and draw the figure."""
    rows = table(finished(file))
    with file.with_name(f'{file.stem}_summary.csv').open('w', newline='') as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)
    write_table(rows, file)
    draw(rows, figure)
    print(f'Written: {figure}, {file.stem}_summary.csv and .md beside {file}')


def with_spread(values: Sequence[float], form: str) -> str:
    """Write the mean of values in a format, and their standard deviation if there are several."""
    values = list(values)
    spread = f' ± {statistics.stdev(values):.1f}' if len(values) > 1 else ''
    return f'{statistics.mean(values):{form}}{spread}' if values else ''


def save_table(lines: list[str], file: Path) -> None:
    """Print a table's lines, and write them beside the CSV."""
    text = '\n'.join(lines) + '\n'
    file.with_name(f'{file.stem}_summary.md').write_text(text, encoding='utf-8')
    print(text)


def write_table(rows: list[dict], file: Path, metric: str = 'mIoU') -> None:
    """Print what table() gives, and write it beside the CSV."""
    columns = ['labels', 'method', 'unlabelled', 'seeds', metric, 'gain over alone']
    several = len({row['iterations'] for row in rows}) > 1
    columns[3:3] = ['iterations'] * several
    lines = [f'| {" | ".join(columns)} |', '|' + '---|' * len(columns)]
    for row in rows:
        name = NAMES[row['method']]
        if row['unlabelled'] and row['norm'] == 'labelled':
            name += ', norm=labelled'
        gain = ''
        if row['gain'] != '':
            gain = f'{row["gain"]:+.1f}'
            gain += f' ± {row["gain_deviation"]:.1f}' if row['gain_deviation'] != '' else ''
        spread = f' ± {row["deviation"]:.1f}' if row['seeds'] > 1 else ''
        iterations = f'{row["iterations"]} | ' if several else ''
        lines.append(
            f'| {row["labels"]} | {name} | {row["unlabelled"] or ""} | {iterations}{row["seeds"]} | '
            f'{row["mIoU"]:.1f}{spread} | {gain} |'
        )
    save_table(lines, file)


def draw(rows: list[dict], figure: Path) -> None:
    """Draw the mIoU over the number of labels."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    curves = [
        ('alone', 0, 'student alone', '0.4', ':'),
        ('lad', 0, 'LAD on the labelled images', 'tab:blue', '--'),
        ('cad', 0, 'CAD on the labelled images', 'tab:orange', '--'),
        ('lad', 4000, 'LAD, and 4000 unlabelled images', 'tab:blue', '-'),
        ('cad', 4000, 'CAD, and 4000 unlabelled images', 'tab:orange', '-'),
    ]
    plot, axes = plt.subplots(figsize=(6.4, 4.2), dpi=150)
    for method, unlabelled, name, colour, style in curves:
        points = [
            row
            for row in rows
            if (row['method'], row['unlabelled'], row['norm']) == (method, unlabelled, 'both')
        ]
        if points:
            axes.errorbar(
                [row['labels'] for row in points],
                [row['mIoU'] for row in points],
                yerr=[row['deviation'] for row in points],
                label=name,
                color=colour,
                linestyle=style,
                marker='o',
                markersize=4,
                capsize=3,
            )
    axes.set_xscale('log')
    ticks = sorted({row['labels'] for row in rows})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel('labelled images')
    axes.set_ylabel('mIoU of the student')
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    plot.tight_layout()
    figure.parent.mkdir(parents=True, exist_ok=True)
    plot.savefig(figure)


def prepare(unlabelled: int, jobs: int) -> None:
    """Draw the scenes and import everything, for trainings that are forked."""
    begun = time.time()
    # before anything starts threads, which a fork would not have
    import torch

    torch.set_num_threads(1)
    make_scenes(unlabelled, jobs)
    print(f'Scenes are drawn: {time.time() - begun:.0f} s', flush=True)
    import rawkd_mm  # noqa: F401 (registers)
    import rawkd_mm.analysis.evaluation  # noqa: F401 (imports what a validation needs)

    register()
    for method in ('lad', 'cad'):
        read(f'{method}_bottleneck_pspnet-r18-w12_pspnet-r18-w4_1xb16-4k_digit-scenes-48x48.py')
    print(f'Everything is imported: {time.time() - begun:.0f} s', flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--teacher', help="the teacher's checkpoint")
    parser.add_argument('--jobs', type=int, default=os.cpu_count(), help='trainings side by side')
    parser.add_argument('--iters', type=int, default=1500, help='iterations (default 1500)')
    parser.add_argument(
        '--minutes', type=float, default=1e9, help='begin no training that would end after these'
    )
    parser.add_argument(
        '--only',
        nargs='+',
        default=[],
        metavar='NAME=VALUE',
        help='only these trainings, such as labels=200 method=lad seed=0',
    )
    parser.add_argument('--out', type=Path, default=RESULTS, help=f'the CSV (default {RESULTS})')
    parser.add_argument('--figure', type=Path, default=FIGURE, help='where --summary draws')
    parser.add_argument('--summary', action='store_true', help='print and draw what the CSV has')
    args = parser.parse_args()
    if args.summary:
        summarise(args.out, args.figure)
        return
    if not args.teacher or not Path(args.teacher).is_file():
        parser.error(
            f'--teacher {args.teacher!r} is no file. Train the teacher with tools/train.py'
        )
    wanted = [tuple(text.split('=', 1)) for text in args.only]
    for name, _ in wanted:
        if name not in Task._fields:
            parser.error(f'--only {name}=...: there are {", ".join(Task._fields)}')
    allowed = defaultdict(set)
    for name, value in wanted:
        allowed[name] |= set(value.split(','))
    done = finished(args.out)
    tasks = [
        task
        for task in grid(args.iters)
        if task not in done and all(str(getattr(task, k)) in v for k, v in allowed.items())
    ]
    print(f'{len(tasks)} trainings to do, {len(done)} done', flush=True)
    if not tasks:
        return
    prepare(max(task.unlabelled for task in tasks), args.jobs)
    sys.exit(1 if run(tasks, train, args.teacher, args.jobs, args.out, args.minutes) else 0)


if __name__ == '__main__':
    main()
