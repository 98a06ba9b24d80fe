#!/usr/bin/env python
"""Check whether time or memory of an iteration grows during a long distillation.

Makes DigitScenes images in a temporary folder, distils a random teacher with a config of the
quickstart, and prints for each quarter of the iterations the time of one (the median, without its
wait for data), by the clock and of the processor, and the memory of the process at the end. On a
machine that does other things as well, the processor's time is the one to look at.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
CONFIG = 'cad_bottleneck_pspnet-r18-w12_pspnet-r18-w4_1xb16-4k_digit-scenes-48x48.py'


def make_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--iterations', type=int, default=200, metavar='N', help='default: 200')
    parser.add_argument(
        '--config', default=CONFIG, metavar='NAME', help=f'in configs/quickstart; default: {CONFIG}'
    )
    return parser.parse_args()


def resident() -> float:
    """Give the memory of this process in MiB; Linux."""
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    return pages * os.sysconf('SC_PAGE_SIZE') / 2**20


def main() -> None:
    args = make_arguments()

    import torch
    from mmengine.hooks import Hook

    from rawkd_mm.training import build_runner, load_config

    class Meter(Hook):
        """Takes time and memory of every iteration."""

        priority = 'LOWEST'

        def __init__(self):
            self.seconds = []
            self.processor = []
            self.memory = []

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            self.begin = time.perf_counter(), time.process_time()

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.seconds.append(time.perf_counter() - self.begin[0])
            self.processor.append(time.process_time() - self.begin[1])
            self.memory.append(resident())

    with tempfile.TemporaryDirectory() as folder:
        tool = ROOT / 'tools' / 'dataset_converters' / 'digit_scenes.py'
        options = ['--root', f'{folder}/data', '--train', '64', '--val', '16', '--size', '48']
        subprocess.run([sys.executable, str(tool), *options], check=True)
        cfg = load_config(
            str(ROOT / 'configs' / 'quickstart' / args.config),
            {
                'model.teacher_ckpt': None,
                'model.allow_random_teacher': True,
                'train_dataloader.dataset.data_root': f'{folder}/data',
                'val_dataloader.dataset.data_root': f'{folder}/data',
                'test_dataloader.dataset.data_root': f'{folder}/data',
                'train_cfg.max_iters': args.iterations,
                'train_cfg.val_interval': args.iterations + 1,
                'log_level': 'ERROR',
            },
        )
        cfg.launcher, cfg.work_dir = 'none', f'{folder}/work_dir'
        meter = Meter()
        runner = build_runner(cfg)
        runner.register_hook(meter)
        begin = resident()
        runner.train()
    quarter = args.iterations // 4
    print(f'{args.config}, {args.iterations} iterations; {begin:.0f} MiB before the first')
    for i in range(4):
        part = slice(i * quarter, (i + 1) * quarter)
        print(
            f'{part.start + 1:>6} to {part.stop}: '
            f'{1000 * statistics.median(meter.seconds[part]):.1f} ms an iteration, '
            f'{1000 * statistics.median(meter.processor[part]):.1f} ms of the processor, '
            f'{meter.memory[part][-1]:.0f} MiB'
        )


if __name__ == '__main__':
    main()
