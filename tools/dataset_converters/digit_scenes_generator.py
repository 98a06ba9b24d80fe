"""Make DigitScenes: handwritten digits on dimmed photographs, as mmseg folders and as COCO json.

This module needs numpy and Pillow, and scikit-learn and filelock only once scenes are made. Of
``rawkd_mm`` it loads one small module by its path, so that the tool starts without PyTorch.
"""

import contextlib
import hashlib
import json
import logging
import multiprocessing
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _package import load_module
from digit_scenes_drawing import DigitScenesOptions, check_whole, render_scene

layout = load_module('datasets.digit_scenes_folder')
logger = logging.getLogger(__name__)

# Raise it whenever the same options give other files than before.
GENERATOR_VERSION = 1

_CHUNK = 50
_DEFAULTS = DigitScenesOptions()


class DigitScenesError(RuntimeError):
    """A folder holds something else than what is wanted; the text says what to do."""


class Result(NamedTuple):
    """What :func:`generate` did.

    Attributes:
        made: False if the folder already held these very scenes.
        meta: Content of its meta.json.
    """

    made: bool
    meta: dict


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
    options: DigitScenesOptions = _DEFAULTS,
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
    check_whole('workers', workers, 1, 1024, 'give the number of processes')
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
