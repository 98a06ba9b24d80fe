#!/usr/bin/env python
"""Compare the two ways in which rawkd_mm.reductions reduces rows, on this machine's CPU.

Prints, for the maps of usual pairs, the time of norms_and_dot in blocks as a ratio of the plain way,
measured in turns in one process. Below 1 the blocks are faster.
"""

import argparse
import statistics
import time

import torch

from rawkd_mm import reductions

# batch, channels, height, width: PSPNet at 512x1024 and 48x48, UPerNet at 512x512, a level of an FPN
SHAPES = [(2, 512, 64, 128), (2, 512, 128, 128), (2, 256, 100, 168), (16, 48, 12, 12)]


def seconds(reduce, student, teacher) -> float:
    begun = time.perf_counter()
    reduce(student, teacher, torch.float32)
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--repeats', type=int, default=30, help='measurements of each (default 30)')
    args = parser.parse_args()
    print(f'torch {torch.__version__}, {torch.get_num_threads()} threads')
    print('| shape | dtype | blocks / plain, median | quartiles |')
    print('|---|---|---|---|')
    for shape in SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            rows = [torch.randn(shape).to(dtype).reshape(shape[0] * shape[1], -1) for _ in range(2)]
            ratios = []
            for number in range(args.repeats + 3):
                ways = [reductions.reduce_rows_in_blocks, reductions.reduce_rows]
                times = {way: seconds(way, *rows) for way in ways[:: 1 if number % 2 else -1]}
                ratios.append(times[ways[0]] / times[ways[1]])
            low, middle, high = statistics.quantiles(ratios[3:], n=4)
            name = 'x'.join(map(str, shape))
            print(f'| {name} | {str(dtype)[6:]} | {middle:.2f} | {low:.2f} - {high:.2f} |')


if __name__ == '__main__':
    main()
