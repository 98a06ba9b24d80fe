"""What a DigitScenes folder holds, what is wrong with one, and which command makes it.

This module imports nothing but the standard library: tools/dataset_converters/digit_scenes_generator.py,
which makes the folder, loads it by its path, and starts without PyTorch.

What a folder holds::

    digit_scenes/
        images/{train,val}/00000.png         RGB, uint8
        annotations/{train,val}/00000.png    uint8: 0 background, 1..10 digits 0..9, 255 ignore
        coco/{train,val}.json                boxes and masks of what is visible, categories 1..10
        meta.json                            options, counts, checksums; written last
"""

import json
import shlex
from pathlib import Path

SPLITS = ('train', 'val')
CLASSES = ('background',) + tuple(f'digit {digit}' for digit in range(10))
PALETTE = (
    (0, 0, 0),
    (230, 60, 60),
    (240, 150, 40),
    (235, 220, 60),
    (130, 210, 60),
    (40, 160, 90),
    (60, 205, 205),
    (60, 120, 230),
    (130, 80, 220),
    (220, 90, 200),
    (240, 240, 240),
)
IGNORE = 255

ENTRIES = ('images', 'annotations', 'coco')
META = 'meta.json'
PARTIAL = '.partial'  # while it is being made


def command_for(root: str | Path) -> str:
    """The shell command, run in this repository, that makes a folder whole.

    Args:
        root: The folder. If it is damaged, the command has the options it was made with.

    Returns:
        One line.
    """
    words = ['python', 'tools/dataset_converters/digit_scenes.py', '--root', str(root)]
    meta = read_meta(Path(root))
    if meta:
        for name, value in meta.get('options', {}).items():
            values = value if isinstance(value, list) else [value]
            words += ['--' + name.replace('_', '-'), *map(str, values)]
        words.append('--overwrite')
    return shlex.join(words)


def read_meta(root: Path) -> dict | None:
    """Read meta.json of a DigitScenes folder.

    Args:
        root: The folder.

    Returns:
        Its content, None where there is none, an empty dict where it is unreadable.
    """
    try:
        meta = json.loads((root / META).read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return meta if isinstance(meta, dict) and meta.get('dataset') == 'DigitScenes' else {}


def find_problem(root: str | Path) -> str | None:
    """Say what is wrong with a DigitScenes folder, without reading the images.

    Args:
        root: The folder.

    Returns:
        None if it is complete, else one sentence without a full stop.
    """
    root = Path(root)
    if not root.is_dir():
        return f'there is no folder {str(root)!r}'
    meta = read_meta(root)
    if meta is None:
        if (root / PARTIAL).exists():
            return f'{str(root)!r} is incomplete: the run that made it was interrupted'
        return f'{str(root)!r} is no DigitScenes folder: it has no {META}'
    try:
        expected = {split: meta['splits'][split]['images'] for split in SPLITS}
    except (KeyError, TypeError):
        return f'{str(root / META)!r} cannot be understood'
    for split, count in expected.items():
        for entry in ('images', 'annotations'):
            folder = root / entry / split
            found = sum(1 for _ in folder.glob('*.png'))
            if found != count:
                return f'{str(folder)!r} has {found} PNG files, expected {count}'
        if not (root / 'coco' / f'{split}.json').is_file():
            return f'{str(root / "coco" / f"{split}.json")!r} is missing'
    return None
