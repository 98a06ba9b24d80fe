#!/usr/bin/env python
"""What loading costs with and without loader processes, and what the hooks of an iteration cost.

Trains CONFIG for a few iterations, in turns with each number of workers, in this process. Times are
processor milliseconds an iteration, so that other programs matter little:

- data: how long the main process is busy until it has a batch;
- workers: what the loader processes compute meanwhile;
- step: forward, backward, optimizer;
- hooks: all hooks of the iteration; our hooks: those of this package;
- sum: main process and workers.

It stops if the trained weights depend on the number of workers.

    OMP_NUM_THREADS=1 python benchmarks/loaders.py CONFIG OUT.json
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

from mmengine.config import DictAction

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

PARTS = ('data', 'workers', 'step', 'hooks', 'our hooks', 'sum')


def seconds_of_workers() -> float:
    """Give the processor seconds of this process's children, which are alive (Linux)."""
    ticks = 0
    for child in multiprocessing.active_children():
        fields = Path(f'/proc/{child.pid}/stat').read_text().rpartition(')')[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf('SC_CLK_TCK')


def make_watch(skipped: int):
    """Make two hooks, the first and the last of an iteration, and what they fill in."""
    from mmengine.hooks import Hook

    marks = dict.fromkeys(('data', 'hooks', 'step', 'our hooks'), 0.0)
    state = dict(last=None, iterations=0, workers=0.0)

    def mark(runner, part):
        now = time.process_time()
        if state['last'] is not None and part is not None:
            marks[part] += now - state['last']
        state['last'] = now

    class First(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            mark(runner, 'data')

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            mark(runner, 'step')

    class Last(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            mark(runner, 'hooks')

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            mark(runner, 'hooks')
            state['iterations'] += 1
            if runner.iter + 1 == skipped:  # begin anew
                marks.update(dict.fromkeys(marks, 0.0))
                state.update(iterations=0, workers=-seconds_of_workers())
            if runner.iter + 1 == runner.max_iters:
                state['workers'] += seconds_of_workers()

    return First(), Last(), marks, state


def time_hook(hook, marks: dict) -> None:
    """Add up what a hook takes in the iterations."""

    def timed(method):
        def call(*args, **kwargs):
            start = time.process_time()
            try:
                return method(*args, **kwargs)
            finally:
                marks['our hooks'] += time.process_time() - start

        return call

    for name in ('before_train_iter', 'after_train_iter'):
        setattr(hook, name, timed(getattr(hook, name)))


def train(config: str, options: dict, workers: int, iterations: int, skipped: int, folder: str):
    """Train; gives processor milliseconds an iteration, and the trained weights."""
    from rawkd_mm.hooks import register_training_hooks
    from rawkd_mm.training import build_runner, load_config

    cfg = load_config(config, options)
    cfg.work_dir, cfg.launcher = folder, 'none'
    cfg.experiment_name = Path(folder).name
    cfg.train_dataloader.num_workers = workers
    cfg.train_cfg.update(max_iters=iterations, val_interval=10 * iterations)
    cfg.default_hooks.checkpoint.update(interval=10 * iterations, save_last=False)
    cfg.val_dataloader = cfg.val_evaluator = cfg.val_cfg = None
    cfg.log_level = 'ERROR'
    runner = build_runner(cfg)
    register_training_hooks(runner)
    first, last, marks, state = make_watch(skipped)
    for hook in runner.hooks:
        if type(hook).__module__.startswith('rawkd_mm'):
            time_hook(hook, marks)
    runner._hooks.insert(0, first)
    runner._hooks.append(last)
    runner.train()
    found = {part: 1e3 * value / state['iterations'] for part, value in marks.items()}
    found['workers'] = 1e3 * state['workers'] / state['iterations']
    found['sum'] = sum(found[part] for part in ('data', 'workers', 'step', 'hooks'))
    return found, {name: value.clone() for name, value in runner.model.state_dict().items()}


def table(found: dict) -> str:
    """Give lines of Markdown: the median and half the range of the middle half of the rounds."""
    from rawkd_mm.analysis.benchmark import spread

    lines = ['| loader processes | ' + ' | '.join(PARTS) + ' |', '|---' * (len(PARTS) + 1) + '|']
    for workers, rounds in found.items():
        cells = [[each[part] for each in rounds] for part in PARTS]
        cells = [f'{statistics.median(values):.2f} ± {spread(values):.2f}' for values in cells]
        lines.append(f'| {workers} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', metavar='CONFIG')
    parser.add_argument('out', type=Path, metavar='JSON')
    parser.add_argument('--workers', type=int, nargs='+', default=[0, 2], metavar='N')
    parser.add_argument('--iters', type=int, default=80, metavar='N', help='default: 80')
    parser.add_argument(
        '--skip', type=int, default=20, metavar='N', help='that do not count (default: 20)'
    )
    parser.add_argument('--rounds', type=int, default=4, metavar='N', help='default: 4')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        metavar='KEY=VALUE',
        help="override CONFIG's",
    )
    args = parser.parse_args()
    if not 0 < args.skip < args.iters:
        parser.error(f'--skip must be in 1..{args.iters - 1} (--iters), got {args.skip}')
    import torch

    from rawkd_mm.analysis.text_files import write_text
    from rawkd_mm.compat import version_texts
    from rawkd_mm.training.device_name import device_name

    found, weights = {workers: [] for workers in args.workers}, None
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.rounds):
            for workers in args.workers[:: 1 if number % 2 else -1]:
                work_dir = str(Path(folder, f'{number}-{workers}'))
                times, trained = train(
                    args.config, args.cfg_options, workers, args.iters, args.skip, work_dir
                )
                found[workers].append(times)
                weights = weights or trained
                if any(not torch.equal(weights[name], trained[name]) for name in weights):
                    sys.exit(f'with {workers} workers other weights are trained')
    result = dict(
        config=args.config,
        cfg_options=args.cfg_options,
        iterations=args.iters - args.skip,
        clock='processor milliseconds an iteration',
        device=device_name(torch.device('cpu')),
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        versions=version_texts(),
        workers=found,
    )
    print(f'{args.config}\n\n{table(found)}')
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(args.out, json.dumps(result, indent=2) + '\n')


if __name__ == '__main__':
    main()
