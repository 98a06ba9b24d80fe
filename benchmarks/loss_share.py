#!/usr/bin/env python
"""What a distillation's step consists of: the part of its losses, and for how long a GPU computes.

For each CONFIG, with random weights and random images, one JSON entry:

- step_seconds: a step of CONFIG (forward, backward, optimizer);
- loss_seconds: the losses of the distillation with their connectors on the features of that step,
  forward and backward, on their own; loss_share is their part of the step. Both are medians of
  --iters rounds, in turns;
- on a GPU, for the student alone, MMRazor, CONFIG and teacher_speed='auto': gpu_seconds, the time of all
  kernels of a step, and kernels, how many there are; for the losses likewise. torch.profiler counts
  them in one step. What lies between gpu_seconds and the step's time, the GPU waits for the host.

    python benchmarks/loss_share.py CONFIG --amp --size 512 1024 --json loss_share.json
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

PROFILED = ('student', 'mmrazor', 'configured', 'auto')


def make_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('configs', nargs='+', metavar='CONFIG', help='configs of distillations')
    parser.add_argument('--json', type=Path, required=True, metavar='FILE', help='the result')
    parser.add_argument('--amp', action='store_true', help='train the student in mixed precision')
    parser.add_argument('--batch', type=int, default=2, metavar='N', help='images (default: 2)')
    parser.add_argument(
        '--size', type=int, nargs=2, metavar=('H', 'W'), help="of the images (default: CONFIG's)"
    )
    parser.add_argument('--iters', type=int, default=30, metavar='N', help='rounds (default: 30)')
    parser.add_argument(
        '--warmup', type=int, default=5, metavar='N', help='rounds before that (default: 5)'
    )
    parser.add_argument('--device', default=None, help='default: cuda if there is one, else cpu')
    args = parser.parse_args()
    if args.iters < 1:
        parser.error(f'--iters must be at least 1, got {args.iters}')
    return args


def main():
    args = make_arguments()
    import torch

    from rawkd_mm.analysis.benchmark import Benchmark, BenchmarkOptions

    device = torch.device(args.device or ('cuda' if torch.cuda.is_available() else 'cpu'))
    results = []
    for config in args.configs:
        options = BenchmarkOptions(
            config, batch=args.batch, size=args.size, amp=args.amp, random_teacher=True
        )
        results.append(measure(Benchmark(options, device), args.iters, args.warmup))
        print(json.dumps(results[-1], indent=2), flush=True)
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(results, indent=2) + '\n')


def measure(benchmark, iters: int, warmup: int) -> dict:
    """Measure one config.

    Args:
        benchmark (Benchmark): Of the config.
        iters (int): Rounds that are timed.
        warmup (int): Rounds before that.

    Returns:
        dict: As the module's docstring says.
    """
    from rawkd_mm.training.device_name import device_name

    device = benchmark.device
    variant = benchmark.build_variant('configured')
    variant.step()
    compute_loss = make_loss(variant)
    steps, losses = [], []
    for _ in range(warmup + iters):
        steps.append(seconds(variant.step, device))
        losses.append(seconds(compute_loss, device))
    step, loss = (statistics.median(times[warmup:]) for times in (steps, losses))
    result = dict(
        config=benchmark.options.config,
        device=device_name(device),
        student_amp=benchmark.amp,
        batch=benchmark.batch,
        size=list(benchmark.size),
        iters=iters,
        step_seconds=step,
        loss_seconds=loss,
        loss_share=loss / step,
        value=float(compute_loss()),
    )
    if device.type == 'cuda':
        result['profiles'] = {'losses': profile(compute_loss), 'configured': profile(variant.step)}
        del variant, compute_loss
        for name in PROFILED:
            if name != 'configured':
                other = benchmark.build_variant(name)
                for _ in range(warmup):
                    other.step()
                result['profiles'][name] = profile(other.step)
    return result


def make_loss(variant):
    """Give a function that computes the losses of the last step's distillation, and their gradient.

    Args:
        variant (TimedVariant): A distillation that has made a step.

    Returns:
        Callable[[], Tensor]: Gives the sum of the losses.
    """
    from rawkd_mm.analysis.timed_variant import compared_features

    distiller = variant.model.distiller
    students, teachers = compared_features(distiller, distiller.last_comparison.pairs)
    data_samples = variant.data['data_samples']
    trained = list(distiller.parameters())

    def compute():
        for tensor in (*students.values(), *trained):
            tensor.grad = None
        with variant.optim_wrapper.optim_context(variant.model):
            loss = sum(distiller.compare(students, teachers, data_samples).losses.values())
        loss.backward()
        return loss.detach()

    return compute


def seconds(function, device) -> float:
    """Give the seconds that a call takes, until the device has ended it."""
    import torch

    synchronize = torch.cuda.synchronize if device.type == 'cuda' else lambda: None
    synchronize()
    start = time.perf_counter()
    function()
    synchronize()
    return time.perf_counter() - start


def profile(function) -> dict:
    """Give the time of the kernels of a call and their number; both None if none is seen.

    Args:
        function (Callable): Computes on a GPU.

    Returns:
        dict: ``gpu_seconds`` and ``kernels``, memory copies included.
    """
    import torch
    from torch.autograd import DeviceType

    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        function()
        torch.cuda.synchronize()
    kernels = [
        event
        for event in profiler.events()
        if event.device_type == DeviceType.CUDA and not getattr(event, 'is_user_annotation', False)
    ]
    if not kernels:
        return dict(gpu_seconds=None, kernels=None)
    busy = sum(event.time_range.elapsed_us() for event in kernels)
    return dict(gpu_seconds=busy / 1e6, kernels=len(kernels))


if __name__ == '__main__':
    main()
