#!/usr/bin/env python
"""The same training in two processes on one device, with NCCL; with gloo, where NCCL refuses it.

NCCL usually refuses two processes on one GPU. The result then has its message, and what became of gloo
with two processes on the GPU and of NCCL with one. Without a GPU, gloo with two processes on the CPU.

    python benchmarks/gpu/two_processes.py FOLDER --json two_processes.json
"""

import argparse
import json
import math
import shutil
import socket
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import scenes


def make_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('folder', type=Path, metavar='FOLDER', help='of data, logs and checkpoints')
    parser.add_argument('--json', type=Path, required=True, metavar='FILE', help='the result')
    parser.add_argument(
        '--iters', type=int, default=50, metavar='N', help='iterations (default: 50)'
    )
    parser.add_argument(
        '--seconds', type=float, default=90, metavar='S', help='of one attempt (default: 90)'
    )
    parser.add_argument('--small', action='store_true', help='small scenes, for a CPU')
    return parser.parse_args()


def main():
    args = make_arguments()
    args.folder = args.folder.resolve()
    setting = scenes.SMALL if args.small else scenes.LARGE
    scenes.make_scenes(setting, args.folder / 'data')
    config = args.folder / 'two_processes.py'
    scenes.make_training(setting, args.folder / 'data', args.iters, args.iters, config)
    import torch

    if torch.cuda.is_available():
        attempts = [attempt(args, config, 'nccl', 2)]
        if not attempts[0]['works']:
            attempts += [attempt(args, config, 'gloo', 2), attempt(args, config, 'nccl', 1)]
    else:
        attempts = [attempt(args, config, 'gloo', 2)]
    print(json.dumps(attempts, indent=2))
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(attempts, indent=2) + '\n')


def attempt(args, config: Path, backend: str, processes: int) -> dict:
    """Train with a backend, all processes on the first device.

    Args:
        args (argparse.Namespace): Of the command line.
        config (Path): Of the training.
        backend (str): Of torch.distributed.
        processes (int): How many.

    Returns:
        dict: ``backend``, ``processes``, whether it ``works``, and its last ``loss`` or the
        ``message`` of the failure.
    """
    work_dir = args.folder / f'{backend}_{processes}'
    shutil.rmtree(work_dir, ignore_errors=True)
    work_dir.mkdir(parents=True)
    common = dict(WORLD_SIZE=str(processes), MASTER_ADDR='127.0.0.1', MASTER_PORT=free_port())
    logs = [work_dir / f'rank{rank}.log' for rank in range(processes)]
    running = []
    for rank, log in enumerate(logs):
        # the same LOCAL_RANK: the same device
        own = dict(RANK=str(rank), LOCAL_RANK='0', LOCAL_WORLD_SIZE=str(processes))
        options = ('--launcher', 'pytorch', '--cfg-options', f'env_cfg.dist_cfg.backend={backend}')
        variables = {**common, **own, 'NCCL_DEBUG': 'WARN'}
        with log.open('wb') as file:
            running.append(
                scenes.start(config, work_dir, *options, environment=variables, output=file)
            )
    end = time.monotonic() + args.seconds
    while any(p.poll() is None for p in running) and time.monotonic() < end:
        if any(p.poll() for p in running):
            end = min(end, time.monotonic() + 10)  # the other one may wait for it for minutes
        time.sleep(0.1)
    codes = [process.poll() for process in running]
    for process in running:
        process.kill()
        process.wait()
    texts = [log.read_text(errors='replace') for log in logs]
    print(*texts, sep='\n', flush=True)
    result = dict(backend=backend, processes=processes, works=codes == [0] * processes)
    if result['works']:
        losses = [entry['loss'] for entry in scenes.logged(work_dir) if 'loss' in entry]
        result.update(works=math.isfinite(losses[-1]), iterations=len(losses), loss=losses[-1])
    else:
        result['message'] = find_message(texts) or f'not ended after {args.seconds:g} s'
    return result


def free_port() -> str:
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        return str(server.getsockname()[1])


def find_message(texts: list[str]) -> str | None:
    """Give what failed: NCCL's own words if there are some, else the last line of an exception."""
    lines = [line.strip() for text in texts for line in text.splitlines()]
    refusals = [line for line in lines if 'Duplicate GPU' in line]
    if refusals:
        return refusals[0][refusals[0].index('Duplicate GPU') :]
    errors = [line for line in lines if 'Error:' in line or 'error:' in line]
    return errors[-1] if errors else None


if __name__ == '__main__':
    main()
