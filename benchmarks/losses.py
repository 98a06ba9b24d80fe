#!/usr/bin/env python
"""Time and memory of the losses at the shapes of the zoo, with the connectors they train.

Each method of Tables 8 and 9, the naive one, and LAD, CAD and naive written in plain PyTorch as one
would, each eager and compiled. Milliseconds are the median of --iters rounds of all, the spread is the
range of the middle half; peak MB is what the allocator holds at most beyond what was there before, GB/s
the bytes that must be moved (both features read; in backward read again, and the gradient written) over
the time, copy that of a copy of as many bytes.

    python benchmarks/losses.py benchmarks/results/losses.csv
"""

import argparse
import csv
import ctypes
import platform
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

# (channels, (height, width) of each map); two images
SHAPES = {
    'segmentation': (512, [(64, 128)]),
    'detection': (256, [(100, 168), (50, 84), (25, 42), (13, 21), (7, 11)]),
    'small': (16, [(12, 12)]),  # to see that the program runs
}
BATCH = 2
METHODS = Path(__file__).resolve().parents[1] / 'configs/_base_/methods'
COLUMNS = (
    'device', 'threads', 'torch', 'shape', 'method', 'forward_ms', 'backward_ms', 'both_ms',
    'both_spread_ms', 'peak_mb', 'both_gb_per_s', 'copy_gb_per_s',
)  # fmt: skip


def plain_lad(student, teacher):
    dims = (1, 2, 3)
    return plain_angle(student, teacher, dims)


def plain_cad(student, teacher):
    return plain_angle(student, teacher, (2, 3))


def plain_angle(student, teacher, dims):
    import torch

    norm = torch.linalg.vector_norm
    cosine = (student * teacher).sum(dims) / (norm(student, dim=dims) * norm(teacher, dim=dims))
    return 3 * (1 - cosine).mean()


def plain_naive(student, teacher):
    import torch

    return torch.nn.functional.mse_loss(student, teacher)


def make_methods(channels: int, device) -> dict:
    """Give, for each method, how a level's loss is computed from the two features."""
    import torch
    from mmengine.config import Config

    from rawkd_mm.registry import MODELS

    def published(method):
        return Config.fromfile(METHODS / f'{method}.py').method.model.distiller

    def build(type, **kwargs):
        module = MODELS.build(dict(type=type, **kwargs)).to(device)
        return module.train()

    def of_loss(kind, **kwargs):
        return lambda level: build(kind, **kwargs)

    class Plain(torch.nn.Module):  # what a distiller takes
        def __init__(self, function):
            super().__init__()
            self.function = function

        def forward(self, student, teacher):
            return self.function(student, teacher)

    def of_function(function):
        return lambda level: Plain(function)

    def fkd(level):
        method = published('fkd_one-stage')
        pair = method.pairs[level]
        student, teacher = (
            build(**{**pair[f'{role}_connector'], 'in_channels': channels})
            for role in ('student', 'teacher')
        )
        loss = build(**method.loss)
        return lambda s, t: loss(student(s), teacher(t))

    def fgd(level):
        from mmengine.structures import BaseDataElement, InstanceData

        student, teacher = (build('GlobalContextConnector', in_channels=channels) for _ in range(2))
        loss = build('FGDLoss')
        sample = BaseDataElement(metainfo=dict(batch_input_shape=(800, 1344)))
        boxes = torch.tensor([[10.0, 20.0, 400.0, 300.0]] * 8, device=device)
        sample.gt_instances = InstanceData(bboxes=boxes)
        samples = [sample] * BATCH
        return lambda s, t: loss(student(s), teacher(t), samples)

    def mgd(level):
        method = published('mgd_one-stage')
        both = dict(student_channels=channels, teacher_channels=channels)
        connector = build(**{**method.student_connector, **both})
        loss = build(**method.loss)
        return lambda s, t: loss(connector(s), t)

    return {
        'LAD': of_loss('LADLoss'),
        'LAD, compile=True': of_loss('LADLoss', compile=True),
        'LAD plain': of_function(plain_lad),
        'LAD plain, compiled': of_function(torch.compile(plain_lad)),
        'CAD': of_loss('CADLoss'),
        'CAD, compile=True': of_loss('CADLoss', compile=True),
        'CAD plain': of_function(plain_cad),
        'CAD plain, compiled': of_function(torch.compile(plain_cad)),
        'Naive': of_loss('NaiveFeatureLoss'),
        'Naive, compile=True': of_loss('NaiveFeatureLoss', compile=True),
        'Naive plain': of_function(plain_naive),
        'Naive plain, compiled': of_function(torch.compile(plain_naive)),
        'CWD': of_loss('ChannelWiseDivergence', tau=1.0, loss_weight=10.0),
        'FKD': fkd,
        'FGD': fgd,
        'MGD': mgd,
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('out', type=Path, metavar='CSV')
    parser.add_argument('--device', default=None, help='default: cuda if there is one, else cpu')
    parser.add_argument(
        '--iters', type=int, default=16, metavar='N',
        help='rounds; in 16, each method follows each other one once (default: 16)',
    )  # fmt: skip
    parser.add_argument(
        '--shapes', nargs='+', default=['segmentation', 'detection'], choices=SHAPES,
        help='default: segmentation detection',
    )  # fmt: skip
    parser.add_argument(
        '--methods', nargs='+', metavar='NAME', help="of the table's rows (default: all)"
    )
    args = parser.parse_args()
    if args.iters < 2:
        parser.error(f'--iters must be at least 2, to have a spread of the times, got {args.iters}')
    import torch

    keep_memory()
    device = torch.device(args.device or ('cuda' if torch.cuda.is_available() else 'cpu'))
    rows = []
    for shape in args.shapes:
        rows += list(measure_shape(shape, device, args.iters, args.methods))
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with args.out.open('w', newline='') as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator='\n')
            writer.writeheader()
            writer.writerows(rows)


def keep_memory():
    """Have glibc keep what tensors free, as CUDA's allocator does.

    Else it gives large ones back to the system, which hands every page out anew: two thirds of a
    backward, or nothing, depending on what the methods before have left.
    """
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    trim_threshold, mmap_max = -1, -4  # malloc.h
    if not (mallopt and mallopt(mmap_max, 0) and mallopt(trim_threshold, 2**31 - 1)):
        print('This is not glibc: the times contain what new memory costs.', file=sys.stderr)


def measure_shape(shape: str, device, iters: int, names=None):
    """Yield a row for each method."""
    import torch

    from rawkd_mm.training.device_name import device_name

    channels, sizes = SHAPES[shape]
    torch.manual_seed(0)
    students, teachers = (
        [torch.randn(BATCH, channels, *size, device=device) for size in sizes] for _ in range(2)
    )
    for feature in students:
        feature.requires_grad_()
    numbers = sum(feature.numel() for feature in students)
    source = torch.randn(numbers, device=device)
    target = torch.empty_like(source)

    def synchronize():
        if device.type == 'cuda':
            torch.cuda.synchronize()

    def seconds(function, *arguments):
        synchronize()
        start = time.perf_counter()
        result = function(*arguments)
        synchronize()
        return time.perf_counter() - start, result

    copies = [seconds(target.copy_, source)[0] for _ in range(iters + 2)][2:]
    copy_speed = 2 * 4 * numbers / statistics.median(copies) / 1e9

    def make_step(make):
        levels = [make(i) for i in range(len(sizes))]

        def forward():
            return sum(f(s, t) for f, s, t in zip(levels, students, teachers))

        def step():
            for feature in students:
                feature.grad = None
            spent, loss = seconds(forward)
            return spent, seconds(loss.backward)[0]

        return step

    methods = make_methods(channels, device)
    unknown = [name for name in names or () if name not in methods]
    if unknown:
        sys.exit(f'--methods {", ".join(unknown)}: expected some of {", ".join(methods)}')
    steps = {name: make_step(methods[name]) for name in names or methods}
    times = {name: [] for name in steps}
    orders = balanced_orders(list(steps))
    for i in range(2 + iters):  # round after round, so that what the machine does meets all alike
        for name in orders[i % len(orders)]:
            spent = steps[name]()
            if i >= 2:
                times[name].append(spent)
    for name, step in steps.items():
        forwards, backwards = zip(*times[name])
        low, both, high = statistics.quantiles([f + b for f, b in times[name]], n=4)
        row = dict(
            device=device_name(device),
            threads='' if device.type == 'cuda' else torch.get_num_threads(),
            torch=f'{torch.__version__}, Python {platform.python_version()}',
            shape=shape,
            method=name,
            forward_ms=f'{1e3 * statistics.median(forwards):.2f}',
            backward_ms=f'{1e3 * statistics.median(backwards):.2f}',
            both_ms=f'{1e3 * both:.2f}',
            both_spread_ms=f'{1e3 * (high - low):.2f}',
            peak_mb=f'{peak(step, students, device) / 1e6:.1f}',
            both_gb_per_s=f'{5 * 4 * numbers / both / 1e9:.1f}',
            copy_gb_per_s=f'{copy_speed:.1f}',
        )
        print({k: row[k] for k in COLUMNS[3:]}, flush=True)
        yield row


def balanced_orders(names: list) -> list[list]:
    """Give as many orders as names, in which each stands once at each place and once after each other.

    What a method leaves behind, free memory above all, decides about the time of the next one. A
    Williams design, for an even number of names.
    """
    count = len(names)
    first = [i // 2 if i % 2 == 0 else count - 1 - i // 2 for i in range(count)]
    return [[names[(place + shift) % count] for place in first] for shift in range(count)]


def peak(step, students, device) -> float:
    """Give the bytes that the allocator holds at most in a step, beyond what was there before."""
    import torch

    for feature in students:
        feature.grad = None
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        step()
    events = profile.profiler.kineto_results.events()
    events = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == '[memory]')
    held = highest = 0
    for _, change in events:
        held += change
        highest = max(highest, held)
    return highest


if __name__ == '__main__':
    main()
