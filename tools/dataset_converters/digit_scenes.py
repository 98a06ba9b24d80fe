"""Make the DigitScenes data set: see digit_scenes_generator.py.

Needs numpy, Pillow, scikit-learn, filelock and rich. Nothing is downloaded.
"""

import argparse
import logging
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import _package
import digit_scenes_generator as generator
from digit_scenes_drawing import DigitScenesOptions


def parse_args() -> argparse.Namespace:
    defaults = DigitScenesOptions()
    available = (
        len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    )
    parser = argparse.ArgumentParser(
        prog=_package.program(),
        description='Make DigitScenes: handwritten digits on dimmed photographs, both from '
        'scikit-learn, as images with label maps (MMSegmentation) and as COCO json with boxes and '
        'masks (MMDetection). The same options and seed give the same data everywhere.',
        epilog='A folder that already has what is asked for is left as it is. Pixels: 0 is '
        'background, 1 to 10 are the digits 0 to 9, 255 is to be ignored.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument('--root', type=Path, default=Path('data/digit_scenes'), help='the folder')
    parser.add_argument('--train', type=int, default=defaults.train, help='training images')
    parser.add_argument('--val', type=int, default=defaults.val, help='validation images')
    parser.add_argument(
        '--size',
        type=int,
        nargs='+',
        default=list(defaults.size),
        metavar='PIXELS',
        help='one number for square images, or height and width; digits scale with the shorter one',
    )
    parser.add_argument('--seed', type=int, default=defaults.seed, help='seed of everything random')
    parser.add_argument(
        '--min-digits', type=int, default=defaults.min_digits, help='fewest digits in an image'
    )
    parser.add_argument(
        '--max-digits',
        type=int,
        default=defaults.max_digits,
        help='most digits in an image; those for which there is no place are left out',
    )
    parser.add_argument(
        '--workers', type=int, default=min(available, 8), help='processes to make images with'
    )
    parser.add_argument(
        '--overwrite',
        action='store_true',
        help='replace other or damaged data that an earlier run of this tool made in the folder',
    )
    parser.add_argument(
        '--preview',
        type=Path,
        metavar='PNG',
        help='also write a sheet of validation images beside their labels to this file',
    )
    return parser.parse_args()


def make(args: argparse.Namespace, options) -> 'generator.Result':
    """Run the generator with a progress bar."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn('DigitScenes'), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = None

        def progress(done: int, total: int) -> None:
            nonlocal task
            task = bar.add_task('', total=total) if task is None else task
            bar.update(task, completed=done)

        return generator.generate(args.root, options, args.workers, args.overwrite, progress)


def main() -> int:
    args = parse_args()
    logging.basicConfig(format='%(message)s', stream=sys.stderr)
    start = time.perf_counter()
    try:
        if len(args.size) > 2:
            raise ValueError(
                f'size is {args.size}, expected one or two numbers: --size 64 or --size 96 160.'
            )
        options = DigitScenesOptions(
            train=args.train,
            val=args.val,
            size=(args.size[0], args.size[-1]),
            seed=args.seed,
            min_digits=args.min_digits,
            max_digits=args.max_digits,
        )
        result = make(args, options)
        if args.preview:
            args.preview.parent.mkdir(parents=True, exist_ok=True)
            generator.write_preview(args.root, args.preview)
    except (ValueError, generator.DigitScenesError, OSError) as error:
        print(f'Error: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('Interrupted. The next run starts again from the first image.', file=sys.stderr)
        return 130
    counts = ', '.join(
        f'{split}: {part["images"]} images with {part["instances"]} digits'
        for split, part in result.meta['splits'].items()
    )
    if result.made:
        print(f'Made {args.root} in {time.perf_counter() - start:.1f} s ({counts}).')
    else:
        print(f'{args.root} is already there ({counts}).')
    if args.preview:
        print(f'Preview: {args.preview}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
