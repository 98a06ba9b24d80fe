#!/usr/bin/env python
"""Measure what images without labels add to few labels for a detector; few_labels.py's short version.

The student is the quickstart's narrow RetinaNet, the teacher its wider one, trained on 4000 scenes of
64x64 pixels. The student has the labels of 200 of these. The unlabelled scenes are 4000 others. All
methods of one seed have the same initial student, the same labelled scenes and the same order of them.

    python tools/train.py configs/quickstart/retinanet_r18-w32_1xb16-3k_digit-scenes-64x64.py
    python benchmarks/few_labels_detector.py --teacher TEACHER.pth    # trains what the CSV lacks
    python benchmarks/few_labels_detector.py --summary                # table of the CSV
"""

import argparse
import copy
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import few_labels
from few_labels import BATCH, ROOT, TEACHERS_SCENES

RESULTS = ROOT / 'benchmarks' / 'results' / 'few_labels_detector.csv'
DATA = ROOT / 'data' / 'digit_scenes_64_few_labels'
CONFIG = 'lad_neck_retinanet-r18-w32_retinanet-r18-w8_1xb16-3k_digit-scenes-64x64.py'
LABELS = 200
UNLABELLED = 4000
METRIC = 'mAP'


class Task(NamedTuple):
    """One training.

    Attributes:
        labels: Number of labelled scenes.
        method: 'alone' or 'lad'.
        unlabelled: Number of unlabelled scenes.
        iterations: How long.
        seed: Of the student, the labelled scenes and their order.
    """

    labels: int
    method: str
    unlabelled: int
    iterations: int
    seed: int

    @property
    def cost(self) -> float:
        """Roughly, in what an iteration of a student alone costs."""
        each = 1 if self.method == 'alone' else 3 if self.unlabelled else 1.6
        return each * self.iterations


def grid(iterations: int, seeds: list[int]) -> list[Task]:
    """Give all trainings; that with all labels says what the iterations allow."""
    ways = (
        (LABELS, 'lad', UNLABELLED),
        (LABELS, 'lad', 0),
        (LABELS, 'alone', 0),
        (TEACHERS_SCENES, 'alone', 0),
    )
    return [Task(*way, iterations, seed) for seed in seeds for way in ways]


def config(task: Task, teacher: str, folder: str):
    """Give the config of a training, as a reader of the guide would write it."""
    from rawkd_mm.training import student_config

    cfg = copy.deepcopy(few_labels.read(CONFIG))
    cfg.model.teacher_ckpt = teacher
    cfg.custom_hooks = []
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(num_workers=0, persistent_workers=False, batch_size=BATCH)
        loader.dataset.data_root = str(DATA)
    cfg.train_dataloader.dataset.indices = few_labels.labelled_scenes(
        task.labels, task.seed
    ).tolist()
    cfg.val_evaluator.ann_file = str(DATA / 'coco' / 'val.json')
    if task.unlabelled:
        images = dict(
            type='UnlabelledImages',
            data_root=str(DATA / 'images' / 'train'),
            indices=list(range(TEACHERS_SCENES, TEACHERS_SCENES + task.unlabelled)),
            pipeline=[dict(type='LoadImageFromFile'), dict(type='PackDetInputs')],
        )
        hook = dict(type='UnlabelledImagesHook', dataset=images, batch_size=BATCH, num_workers=0)
        cfg.custom_hooks = [hook]
    few_labels.set_schedule(cfg, task.iterations, task.seed, folder)
    cfg.experiment_name = 'labels'
    return student_config(cfg) if task.method == 'alone' else cfg


def train(task: Task, teacher: str) -> float:
    """Run a training; gives the student's box AP on the 300 validation scenes, in percent."""
    from rawkd_mm.training import build_runner

    with tempfile.TemporaryDirectory() as folder:
        runner = build_runner(config(task, teacher, folder))
        runner.train()
        return 100 * float(runner.message_hub.get_scalar('val/coco/bbox_mAP').current())


def prepare(jobs: int) -> None:
    """Make the scenes and import everything, for trainings that are forked."""
    import torch

    torch.set_num_threads(1)
    from digit_scenes_generator import DigitScenesOptions, generate

    generate(DATA, DigitScenesOptions(train=TEACHERS_SCENES + UNLABELLED), jobs)
    import mmdet.models  # noqa: F401

    import rawkd_mm  # noqa: F401 (registers)

    few_labels.read(CONFIG)


def summarise(file: Path) -> None:
    """Print the table of a CSV and write it beside it."""
    results = {
        few_labels.Task(**task._asdict(), norm='both'): dict(mIoU=row[METRIC])
        for task, row in few_labels.finished(file, Task).items()
    }
    few_labels.write_table(few_labels.table(results), file, METRIC)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--teacher', help="the teacher's checkpoint")
    parser.add_argument('--jobs', type=int, default=1, help='trainings side by side (default 1)')
    parser.add_argument('--iters', type=int, default=800, help='iterations (default 800)')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2], help='default: 0 1 2')
    parser.add_argument('--out', type=Path, default=RESULTS, help=f'the CSV (default {RESULTS})')
    parser.add_argument('--summary', action='store_true', help='print what the CSV has')
    args = parser.parse_args()
    if args.summary:
        summarise(args.out)
        return
    if not args.teacher or not Path(args.teacher).is_file():
        parser.error(
            f'--teacher {args.teacher!r} is no file. Train the teacher with tools/train.py'
        )
    prepare(args.jobs)
    done = few_labels.finished(args.out, Task)
    tasks = [task for task in grid(args.iters, args.seeds) if task not in done]
    print(f'{len(tasks)} trainings to do, {len(done)} done', flush=True)
    fields = (*Task._fields, METRIC, 'seconds')
    failed = few_labels.run(tasks, train, args.teacher, args.jobs, args.out, 1e9, fields, METRIC)
    sys.exit(1 if failed else 0)


if __name__ == '__main__':
    main()
