#!/usr/bin/env python
"""Measure which of LAD, CAD and PAD fits which kind of teacher, on DigitScenes.

The student is the quickstart's PSPNet, a convolutional network. It learns from the quickstart's wider
PSPNet, or from a vision transformer of timm's that --train-vit has trained: one convolution of stride 2
and a pooling before its 2 x 2 patches, then 6 blocks of 96 channels at stride 8. A transformer needs
more data: it gets 20,000 scenes more, and batches of 32 for 12,000 iterations.
All methods of one seed have the same initial student and the same batches.

    python benchmarks/teacher_kinds.py --train-vit VIT.pth
    python benchmarks/teacher_kinds.py --conv TEACHER.pth --vit VIT.pth --jobs 16
    python benchmarks/teacher_kinds.py --summary
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

if '--train-vit' in sys.argv:
    os.environ.setdefault('CUDA_VISIBLE_DEVICES', '0')  # few_labels would turn GPUs off
import few_labels  # noqa: E402

RESULTS = few_labels.ROOT / 'benchmarks' / 'results' / 'teacher_kinds.csv'
LABELS = 4000
# The vision transformer, for images of 48 x 48 pixels.
VIT = dict(img_size=48, patch_size=2, embed_dim=96, depth=6, num_heads=3)
VIT_SCENES = 20000  # beside the 4000 of the other teacher
MODEL = 'vit_tiny_r_s16_p8_224'
LOSSES = dict(lad='LADLoss', cad='CADLoss', pad='PADLoss')
WEIGHT = 3.0  # that of all three in the zoo


class Task(NamedTuple):
    """One training.

    Attributes:
        teacher: 'none', 'conv' or 'vit'.
        method: 'alone', 'lad', 'cad' or 'pad'.
        iterations: How long.
        seed: Of the student and the order of its batches.
    """

    teacher: str
    method: str
    iterations: int
    seed: int

    @property
    def cost(self) -> float:
        """Roughly, in what an iteration of a student alone costs."""
        return dict(none=1, conv=1.7, vit=5)[self.teacher] * self.iterations


def grid(iterations: int, seeds: int) -> list[Task]:
    """Give all trainings."""
    ways = [('none', 'alone')] + [(kind, loss) for kind in ('conv', 'vit') for loss in LOSSES]
    return [Task(*way, iterations, seed) for way in ways for seed in range(seeds)]


def train(task: Task, teachers: dict[str, str]) -> float:
    """Run a training; gives the student's mIoU on the 300 validation scenes."""
    from rawkd_mm.training import build_runner

    method = 'alone' if task.teacher == 'none' else 'lad'
    same = few_labels.Task(LABELS, method, 0, 'both', task.iterations, task.seed)
    with tempfile.TemporaryDirectory() as folder:
        cfg = few_labels.config(same, teachers['conv'], task.iterations, folder)
        if method != 'alone':
            loss = dict(type=LOSSES[task.method], loss_weight=WEIGHT)
            cfg.model.distiller.loss = loss
        if task.teacher == 'vit':
            # trained without the norm behind the last block
            cfg.model.teacher = dict(type='TimmTeacher', model=MODEL, norm=False, kwargs=VIT)
            cfg.model.teacher_ckpt = teachers['vit']
            cfg.model.distiller.pairs[0].teacher = 'features[0]'
        runner = build_runner(cfg)
        runner.train()
        return float(runner.message_hub.get_scalar('val/mIoU').current())


def train_vit(file: Path, iterations: int) -> None:
    """Train the transformer as the backbone of an mmseg segmentor with one linear layer behind it."""
    import torch

    from rawkd_mm.training import build_runner

    with tempfile.TemporaryDirectory() as folder:
        task = few_labels.Task(LABELS, 'alone', 0, 'both', iterations, 0)
        cfg = few_labels.config(task, '', iterations, folder)
        cfg.model.backbone = dict(
            type='TIMMBackbone',
            model_name=MODEL,
            pretrained=False,
            out_indices=(5,),
            drop_path_rate=0.05,
            **VIT,
        )
        cfg.model.decode_head = dict(
            type='FCNHead',
            in_channels=96,
            in_index=0,
            channels=96,
            num_convs=0,
            concat_input=False,
            dropout_ratio=0.0,
            num_classes=11,
            norm_cfg=None,
            align_corners=False,
            loss_decode=dict(type='CrossEntropyLoss'),
        )
        cfg.model.auxiliary_head = None
        cfg.train_dataloader.batch_size = 32
        cfg.train_dataloader.dataset.update(count=LABELS + VIT_SCENES, seed=None)
        cfg.optim_wrapper.optimizer.update(lr=2e-3, weight_decay=0.05)
        cfg.optim_wrapper.clip_grad = dict(max_norm=1.0)
        cfg.param_scheduler[0].update(eta_max=2e-3)
        runner = build_runner(cfg)
        runner.train()
        miou = runner.message_hub.get_scalar('val/mIoU').current()
    weights = {k: v.cpu() for k, v in runner.model.state_dict().items()}
    torch.save(dict(state_dict=weights, meta=dict(mIoU=float(miou), iterations=iterations)), file)
    print(f'{file}: mIoU {miou:.2f} after {iterations} iterations', flush=True)


def summarise(file: Path) -> None:
    """Print the table of a CSV and write it beside it."""
    values = defaultdict(dict)
    for row in csv.DictReader(file.open(newline='')):
        values[row['teacher'], row['method']][int(row['seed'])] = float(row['mIoU'])
    alone = values['none', 'alone']
    lines = ['| teacher | loss | seeds | mIoU | gain over alone |', '|' + '---|' * 5]
    for (teacher, method), results in values.items():
        gains = [value - alone[seed] for seed, value in results.items() if seed in alone]
        spread = [statistics.stdev(x) if len(x) > 1 else 0.0 for x in (results.values(), gains)]
        gain = f'{statistics.mean(gains):+.1f} ± {spread[1]:.1f}' if teacher != 'none' else ''
        lines.append(
            f'| {teacher} | {method.upper() if teacher != "none" else "alone"} | {len(results)} | '
            f'{statistics.mean(results.values()):.1f} ± {spread[0]:.1f} | {gain} |'
        )
    few_labels.save_table(lines, file)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--conv', help="checkpoint of the quickstart's teacher")
    parser.add_argument('--vit', help='checkpoint of the transformer')
    parser.add_argument('--train-vit', type=Path, metavar='FILE', help='train the transformer')
    parser.add_argument('--vit-iters', type=int, default=12000, help='default: 12000')
    parser.add_argument('--jobs', type=int, default=os.cpu_count(), help='trainings side by side')
    parser.add_argument('--iters', type=int, default=1500, help='iterations (default 1500)')
    parser.add_argument('--seeds', type=int, default=5, help='default: 5')
    parser.add_argument(
        '--minutes', type=float, default=1e9, help='begin no training that would end after these'
    )
    parser.add_argument('--out', type=Path, default=RESULTS, help=f'the CSV (default {RESULTS})')
    parser.add_argument('--summary', action='store_true', help='print what the CSV has')
    args = parser.parse_args()
    if args.summary:
        summarise(args.out)
        return
    few_labels.prepare(VIT_SCENES if args.train_vit else 0, args.jobs)
    if args.train_vit:
        train_vit(args.train_vit, args.vit_iters)
        return
    done = few_labels.finished(args.out, Task)
    tasks = [task for task in grid(args.iters, args.seeds) if task not in done]
    teachers = dict(conv=args.conv, vit=args.vit)
    print(f'{len(tasks)} trainings to do, {len(done)} done', flush=True)
    fields = (*Task._fields, 'mIoU', 'seconds')
    sys.exit(
        few_labels.run(tasks, train, teachers, args.jobs, args.out, args.minutes, fields) and 1
    )


if __name__ == '__main__':
    main()
