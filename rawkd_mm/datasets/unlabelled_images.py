"""Images without labels, for a student that learns from its teacher's features alone."""

import logging
import os
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmengine.dataset import BaseDataset
from mmengine.logging import print_log
from mmengine.registry import DATASETS

__all__ = ['SUFFIXES', 'UnlabelledImages', 'UnreadableImageError']

# What OpenCV or Pillow decodes, with which MMCV reads images.
SUFFIXES = tuple(
    '.avif .bmp .dib .exr .gif .hdr .jfif .jp2 .jpe .jpeg .jpg .pbm .pfm .pgm .pic .png .pnm .ppm '
    '.pxm .ras .sr .tga .tif .tiff .webp'.split()
)
# What a transform asks for that needs labels.
_LABELS = ('gt_', 'instances', 'seg_map_path', 'proposals', 'segments_info', 'reduce_zero_label')
_INSTEAD = (
    'Images without labels have none. Leave it out of the pipeline of the unlabelled images; '
    'RandomCrop needs cat_max_ratio=1 there'
)


class UnreadableImageError(OSError):
    """An image could not be read; the message names it."""


@DATASETS.register_module()
class UnlabelledImages(BaseDataset):
    """Images of a folder, or of a list, without labels; for segmentors and detectors.

    Their data samples have ``is_unlabelled=True`` in their meta information, so that nobody takes
    the missing annotation for an image with nothing in it.

    Args:
        data_root (str): The folder. It is searched with all folders below it, in the order of the
            paths. Files that begin with a dot are left out.
        pipeline (Sequence[dict | Callable]): Transforms that need no labels, from loading to
            packing: ``[dict(type='LoadImageFromFile'), ..., dict(type='PackSegInputs')]``.
        ann_file (str): A file with the path of one image a line, relative to ``data_root``. Empty
            lines are left out. Defaults to '': all images of the folder.
        skip_unreadable (bool): Take the next image in place of one that cannot be read, with a
            warning (one for each image and data worker). Defaults to False.
        indices (int | Sequence[int], optional): As for MMEngine's ``BaseDataset``: only these.
        metainfo (dict, optional): As for ``BaseDataset``.

    Raises:
        FileNotFoundError: If there is no such folder or list, no image in the folder, or the list
            names files that are not there.
        ValueError: If a transform needs labels; at once where its name says so, else with the first
            image.
        UnreadableImageError: If an image cannot be read; with ``skip_unreadable``, if none can.
    """

    def __init__(
        self,
        data_root: str,
        pipeline: Sequence[dict | Callable] = (),
        ann_file: str = '',
        skip_unreadable: bool = False,
        indices: int | Sequence[int] | None = None,
        metainfo: dict | None = None,
    ) -> None:
        self.skip_unreadable = skip_unreadable
        self._unreadable: set[str] = set()
        super().__init__(
            ann_file=ann_file,
            metainfo=metainfo,
            data_root=str(data_root),
            data_prefix={},
            indices=indices,
            pipeline=list(pipeline),
        )
        for transform in self.pipeline.transforms:
            _check_transform(transform)

    def load_data_list(self) -> list[dict]:
        """Give what the transforms are given of each image."""
        if not os.path.isdir(self.data_root):
            raise FileNotFoundError(
                f'UnlabelledImages: data_root={self.data_root!r} is no folder (current folder '
                f'{os.getcwd()!r}). Give the folder that has the images'
            )
        paths = _listed(self.ann_file, self.data_root) if self.ann_file else _found(self.data_root)
        return [
            dict(img_path=path, img_id=number, seg_fields=[], is_unlabelled=True)
            for number, path in enumerate(paths)
        ]

    def __getitem__(self, index: int) -> dict:
        """Give an image as the pipeline packs it.

        Args:
            index (int): Its number.

        Returns:
            dict: What the last transform gives: ``inputs`` and ``data_samples``.
        """
        if not self.skip_unreadable:
            return super().__getitem__(index)
        for number in range(len(self)):
            try:
                return super().__getitem__((index + number) % len(self))
            except UnreadableImageError as error:
                if str(error) not in self._unreadable:
                    self._unreadable.add(str(error))
                    print_log(
                        f'{error}. Skipped (skip_unreadable=True).', 'current', logging.WARNING
                    )
        raise UnreadableImageError(
            f'none of the {len(self)} images in {self.ann_file or self.data_root!r} can be read'
        )

    def prepare_data(self, idx: int) -> Any:
        """Send an image through the pipeline; mark its data sample.

        Args:
            idx (int): Number of the image.

        Returns:
            Any: What the pipeline gives; None if a transform refused the image.
        """
        results = self.get_data_info(idx)
        path = results['img_path']
        for transform in self.pipeline.transforms:
            is_loaded = 'img' in results
            try:
                results = transform(results)
            except Exception as error:
                if _asks_for_labels(error):
                    raise ValueError(
                        f'UnlabelledImages: the transform {_name(transform)} needs labels ({error!r} '
                        f'with {path!r}). {_INSTEAD}'
                    ) from error
                if not is_loaded:
                    raise UnreadableImageError(_unreadable(path, repr(error))) from error
                raise
            if results is None:
                if not is_loaded:
                    raise UnreadableImageError(_unreadable(path, 'nothing was read'))
                return None
        sample = results.get('data_samples') if isinstance(results, dict) else None
        if hasattr(sample, 'set_metainfo'):
            sample.set_metainfo(dict(is_unlabelled=True))
        return results


def _unreadable(path: str, reason: str) -> str:
    return f'UnlabelledImages: {path!r} cannot be read as an image ({reason})'


def _name(transform: object) -> str:
    return getattr(transform, '__name__', type(transform).__name__)


def _check_transform(transform: object) -> None:
    """Refuse what needs labels, where that can be told without an image."""
    name = _name(transform)
    ratio = getattr(transform, 'cat_max_ratio', 1.0)
    if name.startswith('Load') and ('Annotation' in name or 'Proposals' in name):
        raise ValueError(f'UnlabelledImages: the transform {name} loads labels. {_INSTEAD}')
    if ratio < 1.0:
        raise ValueError(
            f'UnlabelledImages: {name}(cat_max_ratio={ratio}) looks at the labels of a crop, and '
            'there are none. Use cat_max_ratio=1'
        )
    for inner in getattr(transform, 'transforms', None) or ():
        for step in getattr(inner, 'transforms', [inner]):  # RandomChoice has Composes
            _check_transform(step)


def _asks_for_labels(error: Exception) -> bool:
    """Whether a transform failed as there are no labels: by the key, or the line that failed."""
    if isinstance(error, KeyError):
        return str(error.args[0] if error.args else '').startswith(_LABELS)
    if not isinstance(error, (AttributeError, AssertionError)):
        return False
    line = traceback.extract_tb(error.__traceback__)[-1].line or ''
    return any(word in f'{line} {error}' for word in _LABELS)


def _found(folder: str) -> list[str]:
    """Give the paths of all images below a folder, sorted; links to folders are followed."""
    found, seen, others = [], set(), set()
    for where, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(where)
        if real in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith('.'))
        for name in files:
            suffix = os.path.splitext(name)[1].lower()
            if suffix in SUFFIXES and not name.startswith('.'):
                found.append(os.path.join(where, name))
            else:
                others.add(suffix or name)
    if not found:
        there = f'only {", ".join(sorted(others)[:8])}' if others else 'nothing at all'
        raise FileNotFoundError(
            f'UnlabelledImages: no image in {folder!r} and below, {there}. An image ends in one of '
            f'{" ".join(SUFFIXES)}; ann_file=... can name others'
        )
    return sorted(found)


def _listed(file: str, folder: str) -> list[str]:
    """Give the paths that a list has."""
    if not os.path.isfile(file):
        raise FileNotFoundError(
            f'UnlabelledImages: ann_file={file!r} is no file. Give a list with the path of one image '
            f'a line, relative to data_root={folder!r}'
        )
    lines = [line.strip() for line in Path(file).read_text(encoding='utf-8').splitlines()]
    paths = [os.path.join(folder, line) for line in lines if line]
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing or not paths:
        what = f'names {len(missing)} files that are not there' if paths else 'is empty'
        few = (
            f': {", ".join(map(repr, missing[:3]))}{", ..." if missing[3:] else ""}'
            if paths
            else ''
        )
        raise FileNotFoundError(
            f'UnlabelledImages: the list {file!r} {what}{few}. Paths are relative to '
            f'data_root={folder!r}, one a line'
        )
    return paths
