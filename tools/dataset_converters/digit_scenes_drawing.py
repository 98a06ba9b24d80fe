"""Draw the scenes of DigitScenes: handwritten digits on dimmed photographs.

One scene is a pure function of (options, split, index), so scenes can be made in any order and by any
number of processes, and the first N scenes do not depend on how many there are. Digits and photographs
are those that scikit-learn brings along; it is imported once a scene is drawn.
"""

import functools
import math
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _package import load_module

layout = load_module('datasets.digit_scenes_folder')

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
            check_whole(name, getattr(self, name), 1, _MAX_COUNT, 'give the number of images')
        for side in self.size:
            check_whole('size', side, _MIN_SIDE, 4096, 'digits are unreadable on smaller scenes')
        check_whole('seed', self.seed, 0, 2**32 - 1, 'give another seed')
        check_whole('min_digits', self.min_digits, 1, 20, 'give how many digits a scene has')
        check_whole(
            'max_digits',
            self.max_digits,
            self.min_digits,
            20,
            'give at least as many as min_digits',
        )

    def as_dict(self) -> dict:
        """Return the options as they stand in meta.json."""
        return dict(asdict(self), size=list(self.size))


def check_whole(name: str, value: int, low: int, high: int, advice: str) -> None:
    """Refuse what is not a whole number within a range.

    Args:
        name: Of the option.
        value: What was given.
        low: The smallest number that is allowed.
        high: The largest one.
        advice: What to do, for the error.

    Raises:
        ValueError: If it is not.
    """
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
