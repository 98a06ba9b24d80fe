#!/usr/bin/env python
"""Measure a distillation's step: student alone, MMRazor's SingleTeacherDistill, and this package.

One process, the same weights and the same random images for all; in each round every variant makes one
training step (forward, backward, optimizer), so that whatever else the machine does hits all of them.
Before that the losses of all variants are compared, without dropout: where they differ by more than
the precision explains, the tool stops. Memory is measured in a fresh process for each variant: the
peak of the CUDA allocator, or without a GPU that of the process.

Variants are `student` (alone), `mmrazor`, `configured` (CONFIG as it is) and CONFIG with other settings
of the teacher, joined by +: fp32, bf16, fp16, channels_last, compile (torch.compile), auto
(teacher_speed='auto': the fastest of these), auto_fp32 (the same with tolerance=0), and in_place
(activations overwrite their inputs, in both models). No data set and no weights are needed: without the
teacher's checkpoint at hand its weights are random, which takes the same time.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _common import add_cfg_options, make_parser, parse_args
from _package import load_module

known = load_module('analysis.benchmark_variants')


def make_arguments():
    parser = make_parser(__doc__)
    parser.add_argument(
        '--device', metavar='DEVICE', help='default: cuda if there is one, else cpu'
    )
    parser.add_argument(
        '--variants',
        nargs='+',
        metavar='NAME',
        help=f'default on a GPU: {" ".join(known.VARIANTS["cuda"])}; the same without fp16 on a CPU',
    )
    parser.add_argument('--batch', type=int, metavar='N', help="images (default: CONFIG's)")
    parser.add_argument(
        '--size', type=int, nargs=2, metavar=('H', 'W'), help="of the images (default: CONFIG's)"
    )
    parser.add_argument(
        '--iters', type=int, default=10, metavar='N', help='rounds that are timed (default: 10)'
    )
    parser.add_argument(
        '--warmup', type=int, default=2, metavar='N', help='rounds before that (default: 2)'
    )
    parser.add_argument('--amp', action='store_true', help='train the student in mixed precision')
    parser.add_argument(
        '--random-teacher', action='store_true', help='do not look for the checkpoint'
    )
    parser.add_argument(
        '--cpu-time',
        action='store_true',
        help='without a GPU, on a machine that others use: count the seconds that the process '
        'computes, not those that it waits; best with OMP_NUM_THREADS=1, as threads wait busily',
    )
    parser.add_argument(
        '--memory-jobs',
        type=int,
        default=1,
        metavar='N',
        help='measure the memory of N variants side by side, each with an Nth of a GPU; one that fails '
        'is measured again, alone (default: 1)',
    )
    parser.add_argument('--json', type=Path, metavar='FILE', help='write all numbers there')
    parser.add_argument('--memory-of', metavar='NAME', help='for the tool itself: one variant')
    add_cfg_options(parser)
    args = parse_args(parser)
    for name in ('batch', 'iters', 'memory_jobs'):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            option = name.replace('_', '-')
            parser.error(f'--{option} must be at least 1, got {getattr(args, name)}')
    for name in args.variants or ():
        unknown = [part for part in name.split('+') if part not in known.SETTINGS]
        if name not in known.BASELINES and unknown:
            parser.error(
                f'--variants {name}: expected {", ".join(known.BASELINES)} or some of '
                f'{", ".join(known.SETTINGS)}, joined by +'
            )
    return args


def main():
    args = make_arguments()
    import torch

    from rawkd_mm.analysis.benchmark import Benchmark, BenchmarkError, BenchmarkOptions
    from rawkd_mm.analysis.benchmark_table import table
    from rawkd_mm.analysis.text_files import write_text

    device = args.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    if device.startswith('cuda') and not torch.cuda.is_available():
        sys.exit(f'--device {device}: PyTorch {torch.__version__} finds no GPU')
    if args.cpu_time and device.startswith('cuda'):
        sys.exit('--cpu-time counts what a CPU computes: add --device cpu, or leave it out')
    try:
        options = {field: getattr(args, field) for field in BenchmarkOptions.__annotations__}
        command = [__file__, *sys.argv[1:]]
        benchmark = Benchmark(BenchmarkOptions(**options), torch.device(device), command)
        if args.memory_of:
            print(json.dumps(benchmark.measure_memory(args.memory_of)))
            return
        result = benchmark.run(args.variants or known.VARIANTS[torch.device(device).type])
    except BenchmarkError as error:
        sys.exit(str(error))
    print(table(result))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        write_text(args.json, json.dumps(result, indent=2) + '\n')


if __name__ == '__main__':
    main()
