"""Make DigitScenes: handwritten digits on dimmed photographs, as mmseg folders and as COCO json.

Nothing is downloaded: digits and photographs are those that scikit-learn brings along. One scene is
a pure function of (options, split, index), so scenes can be made in any order and by any number of
processes, and the first N scenes do not depend on how many there are.

This module needs numpy and Pillow, and scikit-learn and filelock only once scenes are made. Of
``rawkd_mm`` it loads one small module by its path, so that the tool starts without PyTorch.
"""

import contextlib
import functools
import hashlib
import json
import logging
import math
import multiprocessing
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _package import load_module

layout = load_module('datasets.digit_scenes_folder')
logger = logging.getLogger(__name__)

# Raise it whenever the same options give other files than before.
GENERATOR_VERSION = 1

# Every sequence of random numbers has its own stream: numpy seeds it with (seed, stream, index).
_STREAMS = {'sources': 0, 'train': 1, 'val': 2}

_VAL_SHARE_OF_DIGITS = 0.2
_VAL_SHARE_OF_PHOTO = 0.35

_PHOTO_BRIGHTNESS = 55  # percent
_PHOTO_ZOOM = (1.0, 2.0)  # photo pixels per scene pixel
_DIGIT_GREY = (170, 255)
_DIGIT_TINT = 0.6  # the weakest a colour channel can be beside the strongest
_DIGIT_SIZE = (26.0, 48.0)  # pixels, where the shorter side of the scene has 64
_DIGIT_ANGLE = 20.0  # degrees to either side
_MIN_SIDE = 32
_MAX_COUNT = 100000

# Ink is 0..255. Between the two thresholds nobody can say whether a pixel belongs to the digit.
_INK_BACKGROUND = 51
_INK_DIGIT = 77

_MIN_VISIBLE = 0.7
_PLACEMENT_ATTEMPTS = 50

_SOURCE_SIDE = 8
_SOURCE_MARGIN = 2

_CHUNK = 50


class DigitScenesError(RuntimeError):
    """A folder holds something else than what is wanted; the text says what to do."""


@dataclass(frozen=True)
class DigitScenesOptions:
    """All that the content of a DigitScenes folder depends on.

    Args:
        train: Number of training scenes. Defaults to 4000.
        val: Number of validation scenes. Defaults to 300.
        size: Height and width of a scene in pixels, each at least 32. Digits scale with the shorter
            side: 26 to 48 pixels where it has 64. Defaults to (64, 64).
        seed: Seed of everything random, 0 to 2**32 - 1. Defaults to 0.
        min_digits: Smallest number of digits put into a scene. Defaults to 1.
        max_digits: Largest number of digits put into a scene, at most 20. Defaults to 3.

    Raises:
        ValueError: If a value is not a whole number in its range.
    """

    train: int = 4000
    val: int = 300
    size: tuple[int, int] = (64, 64)
    seed: int = 0
    min_digits: int = 1
    max_digits: int = 3

    def __post_init__(self) -> None:
        if not isinstance(self.size, (tuple, list)) or len(self.size) != 2:
            raise ValueError(f'size is {self.size!r}, expected two numbers: give height and width.')
        object.__setattr__(self, 'size', tuple(self.size))
        for name in layout.SPLITS:
            _check_whole(name, getattr(self, name), 1, _MAX_COUNT, 'give the number of images')
        for side in self.size:
            _check_whole('size', side, _MIN_SIDE, 4096, 'digits are unreadable on smaller scenes')
        _check_whole('seed', self.seed, 0, 2**32 - 1, 'give another seed')
        _check_whole('min_digits', self.min_digits, 1, 20, 'give how many digits a scene has')
        _check_whole(
            'max_digits',
            self.max_digits,
            self.min_digits,
            20,
            'give at least as many as min_digits',
        )

    def as_dict(self) -> dict:
        """Return the options as they stand in meta.json."""
        return dict(asdict(self), size=list(self.size))


def _check_whole(name: str, value: int, low: int, high: int, advice: str) -> None:
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or not low <= value <= high:
        raise ValueError(
            f'{name} is {value!r}, expected a whole number from {low} to {high}: {advice}.'
        )


class Instance(NamedTuple):
    """One digit of a scene.

    Attributes:
        digit: 0 to 9.
        source: Index of the handwritten digit in ``sklearn.datasets.load_digits``.
        mask: Pixels in which it is visible, (H, W), bool; never empty.
    """

    digit: int
    source: int
    mask: np.ndarray


class Scene(NamedTuple):
    """One image with all that is known about it.

    Attributes:
        image: (H, W, 3), uint8, RGB.
        label: (H, W), uint8: 0 background, 1..10 digits 0..9, 255 ignore.
        instances: Its digits, from the lowest to the topmost. Their masks are disjoint and together
            cover exactly the pixels with a label of 1..10.
        photo: Which of scikit-learn's photographs lies behind.
        window: The part of the photograph that was used: left, top, right, bottom in its pixels,
            right and bottom exclusive.
        left_out: Number of digits for which there was no place.
    """

    image: np.ndarray
    label: np.ndarray
    instances: list[Instance]
    photo: int
    window: tuple[int, int, int, int]
    left_out: int


class Result(NamedTuple):
    """What :func:`generate` did.

    Attributes:
        made: False if the folder already held these very scenes.
        meta: Content of its meta.json.
    """

    made: bool
    meta: dict


# --------------------------------------------------------------------------------------------------
# Sources
# --------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Ink (1797, 8, 8) as uint8 and the digit shown (1797,) as int."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    ink = (bunch.images.astype(np.int64) * 255 + 8) // 16
    return ink.astype(np.uint8), bunch.target.astype(np.int64)


@functools.lru_cache(maxsize=1)
def _photos() -> tuple[np.ndarray, ...]:
    """Photographs, each (H, W, 3), uint8, RGB, dimmed."""
    from sklearn.datasets import load_sample_images

    photos = load_sample_images().images
    return tuple(
        ((photo.astype(np.uint16) * _PHOTO_BRIGHTNESS + 50) // 100).astype(np.uint8)
        for photo in photos
    )


def _rng(seed: int, stream: str, index: int) -> np.random.Generator:
    return np.random.default_rng([seed, _STREAMS[stream], index])


@functools.lru_cache(maxsize=8)
def digit_sources(seed: int) -> dict[str, tuple[np.ndarray, ...]]:
    """Which handwritten digits each split may use.

    Every class is shuffled and split on its own: a fifth goes to 'val'. The two splits share no
    handwritten digit; they may share writers, whom scikit-learn does not name.

    Args:
        seed: Seed of the data set.

    Returns:
        For 'train' and for 'val' ten arrays, one for each digit 0 to 9, of ascending indices into
        ``sklearn.datasets.load_digits``.
    """
    _, targets = _digits()
    sources: dict[str, list] = {split: [] for split in layout.SPLITS}
    for digit in range(10):
        indices = np.flatnonzero(targets == digit)
        order = indices[
            np.argsort(_rng(seed, 'sources', digit).random(len(indices)), kind='stable')
        ]
        num_val = round(len(order) * _VAL_SHARE_OF_DIGITS)
        sources['val'].append(np.sort(order[:num_val]))
        sources['train'].append(np.sort(order[num_val:]))
    return {split: tuple(arrays) for split, arrays in sources.items()}


def photo_region(split: str, photo_size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The part of every photograph from which a split cuts its backgrounds.

    'val' has the lowest 35 percent of the rows and 'train' the others.

    Args:
        split: 'train' or 'val'.
        photo_size: Height and width of the photograph in pixels.

    Returns:
        Left, top, right, bottom in pixels, right and bottom exclusive.
    """
    height, width = photo_size
    border = height - round(height * _VAL_SHARE_OF_PHOTO)
    return (0, 0, width, border) if split == 'train' else (0, border, width, height)


# --------------------------------------------------------------------------------------------------
# One scene
# --------------------------------------------------------------------------------------------------


def _uniform(rng: np.random.Generator, low: float, high: float) -> float:
    # Generator.random is the one method whose stream is least likely to change between numpy's
    # versions, so everything random is derived from it.
    return low + (high - low) * float(rng.random())


def _integer(rng: np.random.Generator, low: int, high: int) -> int:
    """From low to high, both included."""
    return min(low + int((high - low + 1) * float(rng.random())), high)


def _background(
    rng: np.random.Generator, split: str, size: tuple[int, int]
) -> tuple[np.ndarray, int, tuple[int, int, int, int]]:
    """A piece of a photograph: (H, W, 3) uint8, the number of the photograph, the window in it."""
    photos = _photos()
    number = _integer(rng, 0, len(photos) - 1)
    photo = photos[number]
    left, top, right, bottom = photo_region(split, photo.shape[:2])
    height, width = size
    # Scenes larger than the region are enlarged from the largest window of their shape.
    largest = min((right - left) / width, (bottom - top) / height)
    zoom = min(_uniform(rng, *_PHOTO_ZOOM), largest)
    window_h, window_w = max(round(height * zoom), 1), max(round(width * zoom), 1)
    window_h, window_w = min(window_h, bottom - top), min(window_w, right - left)
    x = _integer(rng, left, right - window_w)
    y = _integer(rng, top, bottom - window_h)
    mirrored = rng.random() < 0.5
    # Cut first: Pillow's resize(box=...) also looks at pixels just outside of the box.
    piece = Image.fromarray(photo[y : y + window_h, x : x + window_w])
    piece = np.asarray(piece.resize((width, height), Image.Resampling.BILINEAR))
    if mirrored:
        piece = piece[:, ::-1]
    return piece.copy(), number, (x, y, x + window_w, y + window_h)


def _draw_ink(
    source: np.ndarray,
    size: tuple[int, int],
    centre: tuple[float, float],
    side: float,
    angle: float,
) -> np.ndarray:
    """Ink of one digit on an otherwise empty scene.

    Args:
        source: (8, 8), uint8.
        size: Height and width of the scene.
        centre: x and y of the digit's centre in the scene, pixels.
        side: Side of the digit's square in the scene, pixels.
        angle: Clockwise rotation, degrees.

    Returns:
        (H, W), uint8.
    """
    padded = np.pad(source, _SOURCE_MARGIN)
    step = _SOURCE_SIDE / side
    cos, sin = step * math.cos(math.radians(angle)), step * math.sin(math.radians(angle))
    middle = padded.shape[0] / 2
    x, y = centre
    # Pillow wants the way back, from the scene's coordinates to the source's.
    back = (cos, sin, middle - cos * x - sin * y, -sin, cos, middle + sin * x - cos * y)
    drawn = Image.fromarray(padded).transform(
        (size[1], size[0]), Image.Transform.AFFINE, back, Image.Resampling.BICUBIC
    )
    return np.asarray(drawn)


def _blend(image: np.ndarray, colour: np.ndarray, ink: np.ndarray) -> np.ndarray:
    # Half opaque in the middle of the uncertain band, so that the eye sees the edge where the label
    # has it. In whole numbers, so that no machine rounds otherwise.
    middle = (_INK_BACKGROUND + _INK_DIGIT) // 2
    opacity = np.clip((ink.astype(np.int32) - middle) * 3 + 128, 0, 255)[..., None]
    return ((image * (255 - opacity) + colour * opacity + 127) // 255).astype(np.uint8)


def render_scene(options: DigitScenesOptions, split: str, index: int) -> Scene:
    """Make one scene.

    A later digit lies above the earlier ones. It is placed anew (at most 50 times, each time with
    another size, position and angle) where it would leave less than 70 percent of an earlier
    digit's pixels visible, and left out of the scene if no place is found.

    Where a digit's ink is between 20 and 30 percent the label is 255, be it on the photograph or on
    a digit below.

    Args:
        options: Sizes, seed and number of digits. The numbers of scenes do not matter.
        split: 'train' or 'val'.
        index: Number of the scene in its split, from 0.

    Returns:
        The scene.
    """
    all_ink, _ = _digits()
    sources = digit_sources(options.seed)[split]
    rng = _rng(options.seed, split, index)
    image, photo, window = _background(rng, split, options.size)
    height, width = options.size
    scale = min(height, width) / 64

    # Number of the instance that is on top in each pixel; 0 is none, -1 is unsure.
    top = np.zeros(options.size, np.int16)
    chosen: list[tuple[int, int]] = []
    drawn_pixels: list[int] = []
    left_out = 0
    for _ in range(_integer(rng, options.min_digits, options.max_digits)):
        digit = _integer(rng, 0, 9)
        source = int(sources[digit][_integer(rng, 0, len(sources[digit]) - 1)])
        grey = _uniform(rng, *_DIGIT_GREY)
        tint = np.array([_uniform(rng, _DIGIT_TINT, 1) for _ in range(3)])
        colour = np.floor(grey * tint / tint.max() + 0.5).astype(np.int32)
        for _ in range(_PLACEMENT_ATTEMPTS):
            side = scale * _uniform(rng, *_DIGIT_SIZE)
            x = _uniform(rng, side / 2, width - side / 2)
            y = _uniform(rng, side / 2, height - side / 2)
            ink = _draw_ink(
                all_ink[source],
                options.size,
                (x, y),
                side,
                _uniform(rng, -_DIGIT_ANGLE, _DIGIT_ANGLE),
            )
            body = ink >= _INK_DIGIT
            candidate = np.where(ink >= _INK_BACKGROUND, -1, top).astype(top.dtype)
            candidate[body] = len(chosen) + 1
            if body.any() and all(
                (candidate == number).sum() >= _MIN_VISIBLE * pixels
                for number, pixels in enumerate(drawn_pixels, start=1)
            ):
                break
        else:
            left_out += 1
            continue
        top = candidate
        chosen.append((digit, source))
        drawn_pixels.append(int(body.sum()))
        image = _blend(image, colour, ink)

    # Entry 0 is the background, the last one (index -1) what is unsure.
    label = np.array([0] + [digit + 1 for digit, _ in chosen] + [layout.IGNORE], np.uint8)[top]
    instances = [
        Instance(digit, source, top == number)
        for number, (digit, source) in enumerate(chosen, start=1)
    ]
    return Scene(image, label, instances, photo, window, left_out)


# --------------------------------------------------------------------------------------------------
# Writing
# --------------------------------------------------------------------------------------------------


def encode_rle(mask: np.ndarray) -> dict:
    """COCO's uncompressed run lengths of a mask.

    Args:
        mask: (H, W), bool.

    Returns:
        ``size`` is [H, W]; ``counts`` are the lengths of the runs down the columns, the first one
        of zeros (and so perhaps of length 0).
    """
    flat = mask.ravel(order='F')
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.concatenate(([0], changes, [flat.size]))
    counts = np.diff(edges).tolist()
    if flat[0]:
        counts.insert(0, 0)
    return dict(size=list(mask.shape), counts=counts)


def tight_box(mask: np.ndarray) -> list[int]:
    """The smallest box around a mask that is not empty.

    Args:
        mask: (H, W), bool.

    Returns:
        COCO's x, y, width, height in pixels.
    """
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return [
        int(columns[0]),
        int(rows[0]),
        int(columns[-1] - columns[0] + 1),
        int(rows[-1] - rows[0] + 1),
    ]


def _to_json(value: dict | list) -> str:
    return json.dumps(value, separators=(',', ':'))


def _write_scene(folder: Path, options: DigitScenesOptions, split: str, index: int) -> dict:
    """Write the two PNG files of a scene and return what has to be known of it afterwards."""
    scene = render_scene(options, split, index)
    name = f'{index:05d}.png'
    Image.fromarray(scene.image).save(folder / 'images' / split / name)
    Image.fromarray(scene.label).save(folder / 'annotations' / split / name)
    image = dict(
        id=index + 1,
        file_name=name,
        height=options.size[0],
        width=options.size[1],
        photo=scene.photo,
        photo_window=list(scene.window),
    )
    annotations = [
        dict(
            image_id=index + 1,
            category_id=instance.digit + 1,
            bbox=tight_box(instance.mask),
            area=int(instance.mask.sum()),
            iscrowd=0,
            segmentation=encode_rle(instance.mask),
            digit_source=instance.source,
        )
        for instance in scene.instances
    ]
    digest = hashlib.sha256(scene.image.tobytes())
    digest.update(scene.label.tobytes())
    digest.update(_to_json(annotations).encode())
    pixels = np.bincount(scene.label.ravel(), minlength=256)
    return dict(
        image=image,
        annotations=annotations,
        digest=digest.digest(),
        left_out=scene.left_out,
        pixels=pixels[: len(layout.CLASSES)].tolist() + [int(pixels[layout.IGNORE])],
    )


def _write_chunk(task: tuple[str, DigitScenesOptions, str, int, int]) -> list[dict]:
    folder, options, split, start, stop = task
    return [_write_scene(Path(folder), options, split, index) for index in range(start, stop)]


@contextlib.contextmanager
def _chunk_results(tasks: list[tuple], workers: int) -> Iterator[Iterator[list[dict]]]:
    if workers == 1:
        yield map(_write_chunk, tasks)
        return
    # A forked copy of a process that has loaded PyTorch can hang; a fresh one cannot.
    context = multiprocessing.get_context('spawn')
    pool = ProcessPoolExecutor(min(workers, len(tasks)), mp_context=context)
    try:
        yield pool.map(_write_chunk, tasks)
    finally:
        pool.shutdown(cancel_futures=True)


def _write_all(
    folder: Path,
    options: DigitScenesOptions,
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> dict:
    """Write a whole data set into an empty folder; return the content of meta.json."""
    (folder / 'coco').mkdir()
    tasks, num_scenes = [], {split: getattr(options, split) for split in layout.SPLITS}
    for split, count in num_scenes.items():
        for entry in ('images', 'annotations'):
            (folder / entry / split).mkdir(parents=True)
        tasks += [
            (str(folder), options, split, start, min(start + _CHUNK, count))
            for start in range(0, count, _CHUNK)
        ]
    records: dict[str, list[dict]] = {split: [] for split in layout.SPLITS}
    done, total = 0, sum(num_scenes.values())
    if progress:
        progress(done, total)
    with _chunk_results(tasks, workers) as results:
        for task, chunk in zip(tasks, results):
            records[task[2]] += chunk
            done += len(chunk)
            if progress:
                progress(done, total)

    meta = dict(
        dataset='DigitScenes',
        generator_version=GENERATOR_VERSION,
        options=options.as_dict(),
        classes=list(layout.CLASSES),
        splits={},
    )
    for split in layout.SPLITS:
        meta['splits'][split] = _finish_split(folder, split, records[split])
    # With a line break at the end, for people who print it.
    (folder / layout.META).write_text(json.dumps(meta, indent=2) + '\n')
    return meta


def _finish_split(folder: Path, split: str, records: list[dict]) -> dict:
    """Write the COCO json of a split; return its part of meta.json."""
    annotations = [annotation for record in records for annotation in record['annotations']]
    coco = dict(
        info=dict(description=f'DigitScenes {split}', version=str(GENERATOR_VERSION)),
        images=[record['image'] for record in records],
        # The first id is 1: pycocotools takes a match with annotation 0 for no match.
        annotations=[
            dict(id=number, **annotation) for number, annotation in enumerate(annotations, start=1)
        ],
        categories=[
            dict(id=category, name=layout.CLASSES[category], supercategory='digit')
            for category in range(1, len(layout.CLASSES))
        ],
    )
    (folder / 'coco' / f'{split}.json').write_text(_to_json(coco))
    pixels = np.sum([record['pixels'] for record in records], axis=0)
    checksum = hashlib.sha256(b''.join(record['digest'] for record in records)).hexdigest()
    return dict(
        images=len(records),
        instances=len(annotations),
        left_out=sum(record['left_out'] for record in records),
        pixel_percent={
            name: round(100 * float(count / pixels.sum()), 3)
            for name, count in zip(layout.CLASSES + ('ignore',), pixels)
        },
        # Of pixels and annotations, not of files: other versions of zlib pack the same differently.
        checksum=checksum,
    )


@contextlib.contextmanager
def _lock(root: Path) -> Iterator[None]:
    """Keep two processes from writing one folder; the lock goes with the process that holds it."""
    from filelock import FileLock, Timeout

    # Beside the folder, which holds nothing but the data.
    path = root.resolve()
    lock = FileLock(path.parent / f'.{path.name}.lock')
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.warning('Another process is writing %s; waiting for it.', root)
            lock.acquire()
    except OSError as error:
        logger.warning('%s cannot be locked (%s): do not write it from two processes.', root, error)
    try:
        yield
    finally:
        lock.release()


def _check_same(root: Path, options: DigitScenesOptions, meta: dict) -> None:
    """Raise DigitScenesError unless the folder is complete and has what is asked for."""
    problem = layout.find_problem(root)
    if problem:
        raise DigitScenesError(
            f'{problem[0].upper()}{problem[1:]}. Make it again with --overwrite '
            '(overwrite=True), which replaces it.'
        )
    found, wanted = meta.get('options', {}), options.as_dict()
    differing = [
        f'{name} is {found.get(name)!r} there and {value!r} was asked for'
        for name, value in wanted.items()
        if found.get(name) != value
    ]
    if meta.get('generator_version') != GENERATOR_VERSION:
        differing.append(
            f'it was made by version {meta.get("generator_version")!r} of the '
            f'generator and this is version {GENERATOR_VERSION}'
        )
    if differing:
        raise DigitScenesError(
            f'{str(root)!r} already holds other scenes: {"; ".join(differing)}. Choose another '
            'folder with --root, or replace it with --overwrite (overwrite=True).'
        )


def generate(
    root: str | Path,
    options: DigitScenesOptions = DigitScenesOptions(),
    workers: int = 1,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Result:
    """Make a DigitScenes folder, or find that it is already there.

    Everything is first written into a subfolder ``.partial`` and moved at the end, meta.json last;
    what an interrupted run left is replaced by the next one. Two processes may call this for one
    folder at the same time: the second one waits.

    Args:
        root: The folder; it and the ones above it are made if need be.
        options: What to make.
        workers: Number of processes. More than 1 starts fresh ones, so that the calling script
            needs the usual ``if __name__ == '__main__'``; they import this module by its name.
            Defaults to 1.
        overwrite: Replace other or damaged scenes in the folder. A folder that was not made by this
            function is never touched. Defaults to False.
        progress: Called with the numbers of scenes done and to do. Defaults to None.

    Returns:
        Whether the scenes were made now, and the content of meta.json.

    Raises:
        ValueError: If ``workers`` is below 1.
        DigitScenesError: If the folder holds something else.
    """
    _check_whole('workers', workers, 1, 1024, 'give the number of processes')
    root = Path(root)
    if root.exists() and not root.is_dir():
        raise DigitScenesError(
            f'{str(root)!r} is a file, expected a folder: choose another --root.'
        )
    root.mkdir(parents=True, exist_ok=True)
    partial = root / layout.PARTIAL
    with _lock(root):
        meta = layout.read_meta(root)
        interrupted = partial.exists()
        content = sorted(path.name for path in root.iterdir())
        if content and not meta and not interrupted:
            what = ', '.join(content[:3]) + (', ...' if len(content) > 3 else '')
            raise DigitScenesError(
                f'{str(root)!r} has content that is not from DigitScenes ({what}), expected a new '
                'or an empty folder: choose another --root, or move that away.'
            )
        if interrupted:
            logger.warning('An earlier run was interrupted; what it left in %s is removed.', root)
            # Not .partial itself: it marks the folder as ours.
            for path in partial.iterdir():
                path.unlink() if path.is_file() else shutil.rmtree(path)
        if meta and not overwrite:
            _check_same(root, options, meta)
            if interrupted:
                partial.rmdir()
            return Result(False, meta)
        partial.mkdir(exist_ok=True)
        # A folder of its own, as workers of a killed run may go on writing for a moment.
        folder = Path(tempfile.mkdtemp(dir=partial))
        meta = _write_all(folder, options, workers, progress)
        # From here to the end the folder has no meta.json, so nobody takes it for complete.
        (root / layout.META).unlink(missing_ok=True)
        for entry in layout.ENTRIES:
            if (root / entry).exists():
                shutil.rmtree(root / entry)
            (folder / entry).rename(root / entry)
        (folder / layout.META).rename(root / layout.META)
        shutil.rmtree(partial)
    return Result(True, meta)


# --------------------------------------------------------------------------------------------------
# Looking at it
# --------------------------------------------------------------------------------------------------


def write_preview(
    root: str | Path,
    path: str | Path,
    split: str = 'val',
    rows: int = 4,
    columns: int = 8,
    enlarge: int = 2,
) -> None:
    """Write a sheet with the first scenes of a folder, each beside its labels in colour.

    Args:
        root: A complete folder.
        path: Image file to write.
        split: 'train' or 'val'. Defaults to 'val'.
        rows: Scenes down. Defaults to 4.
        columns: Scenes across. Defaults to 8.
        enlarge: Pixels of the sheet for one of the scene. Defaults to 2.
    """
    root, colours = Path(root), np.full((256, 3), 128, np.uint8)
    colours[: len(layout.PALETTE)] = layout.PALETTE
    files = sorted((root / 'images' / split).glob('*.png'))[: rows * columns]
    cells = []
    for file in files:
        with Image.open(file) as image, Image.open(root / 'annotations' / split / file.name) as ann:
            cells.append(np.concatenate((np.asarray(image), colours[np.asarray(ann)]), axis=1))
    height, width = (enlarge * side for side in cells[0].shape[:2])
    legend = 16
    sheet = Image.new('RGB', (columns * (width + 4), legend + rows * (height + 4)), (40, 40, 40))
    for number, cell in enumerate(cells):
        corner = (number % columns * (width + 4), legend + number // columns * (height + 4))
        sheet.paste(Image.fromarray(cell).resize((width, height), Image.Resampling.NEAREST), corner)
    draw, x = ImageDraw.Draw(sheet), 4
    for name, colour in zip(
        layout.CLASSES[1:] + ('ignore',), layout.PALETTE[1:] + ((128, 128, 128),)
    ):
        draw.text((x, 2), name, fill=colour)
        x += round(draw.textlength(name)) + 14
    sheet.save(path)
