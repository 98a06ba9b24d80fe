#!/usr/bin/env python
"""A real training in mixed precision, and the same one killed and resumed.

The quickstart's pair with CAD on DigitScenes of 256x256 (--small: 48x48). One training runs through. The
other gets SIGKILL after its first checkpoint, at half of the iterations, and is resumed. On a CPU both
end with the same weights, bit by bit. On a GPU the sums of some kernels depend on the order of threads:
there the losses after the checkpoint must agree, within 5 % or twice what they differ by in as many
iterations before it.

    python benchmarks/gpu/training.py FOLDER --json training.json
"""

import argparse
import json
import math
import shutil
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import scenes

TOLERANCE = 0.05


def make_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('folder', type=Path, metavar='FOLDER', help='of data, logs and checkpoints')
    parser.add_argument('--json', type=Path, required=True, metavar='FILE', help='the result')
    parser.add_argument(
        '--iters', type=int, default=300, metavar='N', help='iterations (default: 300)'
    )
    parser.add_argument('--small', action='store_true', help='small scenes, for a CPU')
    args = parser.parse_args()
    if args.iters < 4:
        parser.error(
            f'--iters must be at least 4, two on each side of a checkpoint, got {args.iters}'
        )
    return args


def main():
    args = make_arguments()
    args.folder = args.folder.resolve()
    setting = scenes.SMALL if args.small else scenes.LARGE
    scenes.make_scenes(setting, args.folder / 'data')
    config, checkpoint = args.folder / 'training.py', args.iters // 2
    scenes.make_training(setting, args.folder / 'data', args.iters, checkpoint, config)
    whole, resumed = args.folder / 'whole', args.folder / 'resumed'
    for work_dir in (whole, resumed):
        shutil.rmtree(work_dir, ignore_errors=True)
    begun = time.perf_counter()
    finish(scenes.start(config, whole))
    seconds = time.perf_counter() - begun
    kill_after(resumed / f'iter_{checkpoint}.pth', scenes.start(config, resumed))
    finish(scenes.start(config, resumed, '--resume'))
    result = dict(
        setting=setting._asdict(),
        iterations=args.iters,
        checkpoint=checkpoint,
        seconds=seconds,
        **summarise(scenes.logged(whole)),
        resume=compare(scenes.logged(whole), scenes.logged(resumed), checkpoint),
    )
    last = f'iter_{args.iters}.pth'
    result['resume']['same_weights'] = same_weights(whole / last, resumed / last)
    print(json.dumps(result, indent=2))
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(result, indent=2) + '\n')


def finish(process) -> None:
    """Wait for a training, and end with its exit code if it fails."""
    if process.wait():
        sys.exit(f'the training ended with exit code {process.returncode}')


def kill_after(checkpoint: Path, process) -> None:
    """Kill a training as soon as a checkpoint is there."""
    while not checkpoint.is_file():
        if process.poll() is not None:
            sys.exit(f'the training ended with {process.returncode} before {checkpoint.name}')
        time.sleep(0.005)
    process.kill()
    if process.wait() == 0:
        sys.exit(f'the training ended before it was killed, after {checkpoint.name}')
    print(f'killed after {checkpoint.name}', flush=True)


def summarise(entries: list[dict]) -> dict:
    """Summarise a training's log.

    Args:
        entries (list[dict]): As :func:`scenes.logged` gives them, of one run.

    Returns:
        dict: Mean losses of the first and the last tenth, whether all are finite, medians of the
        seconds of an iteration and of waiting for images, ``mIoU``, and the peak memory in MB.
    """
    trained = [entry for entry in entries if 'loss' in entry]
    losses = [entry['loss'] for entry in trained]
    tenth = max(len(losses) // 10, 1)
    return dict(
        first_loss=statistics.mean(losses[:tenth]),
        last_loss=statistics.mean(losses[-tenth:]),
        finite=all(map(math.isfinite, losses)),
        iteration_seconds=statistics.median(entry['time'] for entry in trained),
        data_seconds=statistics.median(entry['data_time'] for entry in trained),
        peak_megabytes=trained[-1].get('memory'),
        mIoU=entries[-1].get('mIoU'),
    )


def compare(whole: list[dict], resumed: list[dict], checkpoint: int) -> dict:
    """Compare a training that was killed and resumed with one that ran through.

    Args:
        whole (list[dict]): What the one that ran through logged, by :func:`scenes.logged`.
        resumed (list[dict]): What the other logged, in two runs.
        checkpoint (int): The iteration of its first checkpoint.

    Returns:
        dict: ``killed_at`` and ``resumed_at``, the last iteration of the first run and the first of
        the second; the mean relative differences of the losses ``before`` the checkpoint and
        ``after`` the resume, over as many iterations of each as there are, at most 50; the
        ``tolerance``, and whether the difference is ``within`` it.
    """
    expected = {entry['step']: entry['loss'] for entry in whole if 'loss' in entry}
    first = {e['step']: e['loss'] for e in resumed if e['run'] == 0 and 'loss' in e}
    second = {e['step']: e['loss'] for e in resumed if e['run'] == 1 and 'loss' in e}
    if not second or min(second) <= checkpoint or max(second) != max(expected):
        raise ValueError(
            f'the resumed training has logged the iterations {sorted(second)[:1]} to '
            f'{sorted(second)[-1:]}, expected some after {checkpoint}, and up to {max(expected)}'
        )
    resumed_at = min(second)
    number = min(50, resumed_at - 1, len(second))
    before = difference(expected, first, range(resumed_at - number, resumed_at))
    after = difference(expected, second, range(resumed_at, resumed_at + number))
    tolerance = max(TOLERANCE, 2 * before)
    return dict(
        killed_at=max(first),
        resumed_at=resumed_at,
        iterations_compared=number,
        before=before,
        after=after,
        tolerance=tolerance,
        within=after <= tolerance,
    )


def difference(expected: dict, found: dict, steps) -> float:
    """Give the mean relative difference of two trainings' losses in the given iterations."""
    return statistics.mean(abs(found[i] - expected[i]) / abs(expected[i]) for i in steps)


def same_weights(whole: Path, resumed: Path) -> bool:
    """Whether two checkpoints hold the same weights, bit by bit."""
    import torch

    from rawkd_mm.training.checkpoint_loading import load_checkpoint

    states = [load_checkpoint(str(path))['state_dict'] for path in (whole, resumed)]
    return all(torch.equal(value, states[1][name]) for name, value in states[0].items())


if __name__ == '__main__':
    main()
