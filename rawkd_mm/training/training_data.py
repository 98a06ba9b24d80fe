"""What a config says about the images that a training sees: their size and their classes.

Nothing is built. What the config does not tell, or tells in a way that is not understood, is None.
"""

import os
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.fileio import list_from_file
from mmengine.registry import DATASETS, DefaultScope

from ..registry import type_name

__all__ = ['TrainingImages', 'class_names', 'training_images']


class TrainingImages(NamedTuple):
    """The size of the images of a training.

    Attributes:
        height (int): In pixels; of images that keep their proportions, of one in landscape format
            at its largest.
        width (int): Likewise.
        how (str): What gives them this size: 'crops of', 'images resized to' or 'images padded to'.
    """

    height: int
    width: int
    how: str

    def __str__(self) -> str:
        return f'{self.how} {self.height}x{self.width}'


_CROPS, _RESIZED, _PADDED = 'crops of', 'images resized to', 'images padded to'


def training_images(cfg: Config) -> TrainingImages | None:
    """Find out which size the images of a training have, from its pipelines and data_preprocessor.

    Args:
        cfg (Config): A config of mmseg or mmdet; the data of its training may be missing.

    Returns:
        TrainingImages | None: None if the config does not tell: there are no training data, the
        images have any size (the shortest edge is given, crops are relative), or the data sets have
        different sizes.

    Example:
        >>> steps = [dict(type='Resize', scale=96), dict(type='RandomCrop', crop_size=(32, 64))]
        >>> cfg = Config(dict(model=dict(), train_dataloader=dict(dataset=dict(pipeline=steps))))
        >>> print(training_images(cfg))
        crops of 32x64
    """
    scope = cfg.get('default_scope')
    found = _of_dataset((cfg.get('train_dataloader') or {}).get('dataset'), None, scope)
    model = cfg.get('model') or {}
    preprocessor = model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    sizes = [preprocessor.get('size')]
    for augment in preprocessor.get('batch_augments') or ():
        if isinstance(augment, dict) and _name(augment) == 'BatchFixedSizePad':
            sizes.append(augment.get('size'))
    for size in filter(None, map(_pair, sizes)):
        found = _padded(found, size)
    divisor = preprocessor.get('size_divisor')
    if found is not None and isinstance(divisor, int) and divisor > 1:
        # mmseg's. mmdet's pad_size_divisor adds only some rows, and is ignored.
        found = _padded(found, tuple(-(-x // divisor) * divisor for x in found[:2]))
    return found


def _of_dataset(dataset: Any, found: TrainingImages | None, scope: str | None):
    """Follow a data set's pipelines, the inner before the outer one's."""
    if isinstance(dataset, (list, tuple)):
        return _if_agreed(_of_dataset(item, found, scope) for item in dataset)
    if not isinstance(dataset, dict):
        return found
    for key in ('dataset', 'datasets'):
        if dataset.get(key):
            found = _of_dataset(dataset[key], found, scope)
    return _after_all(dataset.get('pipeline'), found, scope)


def _if_agreed(results: Iterable[TrainingImages | None]) -> TrainingImages | None:
    results = set(results)
    return results.pop() if len(results) == 1 else None


def _after_all(steps: Any, found: TrainingImages | None, scope: str | None):
    for step in steps if isinstance(steps, (list, tuple)) else ():
        if isinstance(step, dict) and 'type' in step:
            found = _after(step, found, scope)
    return found


def _after(step: dict, found: TrainingImages | None, scope: str | None):
    """Give the size of images behind a transform."""
    name = _name(step)
    if name in ('Compose', 'KeyMapper', 'TransformBroadcaster', 'ProposalBroadcaster'):
        return _after_all(step.get('transforms'), found, scope)
    if name == 'RandomChoice':
        branches = step.get('transforms') or ()
        return _if_agreed(_after_all(_as_list(b), found, scope) for b in branches)
    if name == 'RandomApply':
        return _if_agreed((found, _after_all(_as_list(step.get('transforms')), found, scope)))
    if name in _SIZES:
        return _SIZES[name](step, found, scope)
    if 'Crop' in name:  # anybody's own
        return _cropped(step, found, scope)
    return found


def _as_list(steps: Any) -> Any:
    return [steps] if isinstance(steps, dict) else steps


def _resized(step: dict, found: TrainingImages | None, scope: str | None):
    if step.get('resize_type') is not None:
        inner = {k: v for k, v in step.items() if k not in ('resize_type', 'scales')}
        if type_name(step['resize_type']) not in ('Resize', 'FixScaleResize'):
            # by the shortest edge, say: the other one is whatever the image has
            return None
        step = {**inner, 'scales': step.get('scales')}
    scales = step.get('scales') or step.get('scale')
    if scales is None and step.get('scale_factor') and found is not None:
        factor = step['scale_factor']
        x, y = factor if isinstance(factor, (list, tuple)) else (factor, factor)
        return TrainingImages(int(found.height * y + 0.5), int(found.width * x + 0.5), _RESIZED)
    pairs = [_pair(scales)]
    if pairs == [None] and isinstance(scales, (list, tuple)):
        pairs = [_pair(scale) for scale in scales]
    elif 'scales' in step and isinstance(scales, list):
        pairs = [_pair(scale) for scale in scales]  # two scales of one edge each
    if not pairs or None in pairs:
        return None
    width, height = max(pairs)
    if step.get('keep_ratio') and height > width:
        width, height = height, width  # the longer and the shorter side
    return TrainingImages(height, width, _RESIZED)


def _of_fixed_shape(step: dict, found: TrainingImages | None, scope: str | None):
    size = _pair((step.get('height'), step.get('width')))
    return TrainingImages(*size, _RESIZED) if size else None


def _unknown(step: dict, found: TrainingImages | None, scope: str | None):
    return None


def _cropped(step: dict, found: TrainingImages | None, scope: str | None):
    size = _pair(step.get('crop_size'))
    if size is None or step.get('crop_type', 'absolute') != 'absolute':
        return None
    # mmseg's crops are (height, width); mmdet's and mmcv's are (width, height).
    name = _name(step)
    package = _package(step, scope)
    if name in ('CenterCrop', 'RandomCenterCropPad') or package == 'mmdet':
        size = size[::-1]
    return TrainingImages(*size, _CROPS)


def _padded_by(step: dict, found: TrainingImages | None, scope: str | None):
    size = _pair(step.get('size'))
    if size is not None:
        return _padded(found, size[::-1])
    if step.get('pad_to_square') and found is not None:
        return _padded(found, (max(found[:2]),) * 2)
    return found


def _padded(found: TrainingImages | None, size: tuple[int, int]) -> TrainingImages:
    if found is not None and found[:2] == size:
        return found
    return TrainingImages(*size, _PADDED)


def _mosaic(step: dict, found: TrainingImages | None, scope: str | None):
    """Four images side by side."""
    size = _pair(step.get('img_scale', (640, 640)))
    if size is None:
        return None
    height, width = size if _name(step) == 'RandomMosaic' else size[::-1]
    return TrainingImages(2 * height, 2 * width, _PADDED)


def _moved(step: dict, found: TrainingImages | None, scope: str | None):
    """RandomAffine, whose border is added on each side, or cut off where it is negative."""
    border = step.get('border') or (0, 0)
    if found is None or not isinstance(border, (list, tuple)) or not any(border):
        return found
    how = _CROPS if max(border) < 0 else _PADDED
    return TrainingImages(found.height + 2 * border[1], found.width + 2 * border[0], how)


_SIZES: dict[str, Callable] = {
    'Resize': _resized,
    'RandomResize': _resized,
    'RandomChoiceResize': _resized,
    'FixScaleResize': _resized,
    'FixShapeResize': _of_fixed_shape,
    'ResizeShortestEdge': _unknown,
    'MinIoURandomCrop': _unknown,
    'Expand': _unknown,
    'Pad': _padded_by,
    'Mosaic': _mosaic,
    'CachedMosaic': _mosaic,
    'RandomMosaic': _mosaic,
    'RandomAffine': _moved,
}


def _pair(value: Any) -> tuple[int, int] | None:
    """Give a size as two numbers of pixels; None if it is none (a share of the image, say)."""
    if isinstance(value, int):
        value = (value, value)
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return None
    if not all(isinstance(x, int) and x > 0 for x in value):
        return None
    return tuple(value)


def _name(config: dict) -> str:
    return type_name(config.get('type'))


def _package(config: dict, scope: str | None) -> str | None:
    kind = config['type']
    if not isinstance(kind, str):
        return getattr(kind, '__module__', '').partition('.')[0]
    return kind.partition('.')[0] if '.' in kind else scope


def class_names(cfg: Config) -> tuple[str, ...] | None:
    """Find the names of the classes that a config trains.

    Args:
        cfg (Config): A config of mmseg or mmdet; the data of its training may be missing.

    Returns:
        tuple[str, ...] | None: The names; None if neither the config nor the class of the (first)
        data set tells them.
    """
    dataset = (cfg.get('train_dataloader') or {}).get('dataset')
    while True:
        if isinstance(dataset, (list, tuple)):
            dataset = dataset[0] if dataset else None
        if not isinstance(dataset, dict):
            return None
        names = (dataset.get('metainfo') or {}).get('classes')
        inner = dataset.get('dataset') or dataset.get('datasets')
        if names or not inner:
            break
        dataset = inner
    if not names:
        kind = dataset.get('type')
        if isinstance(kind, str):
            scope = DefaultScope.overwrite_default_scope(cfg.get('default_scope'))
            with scope, DATASETS.switch_scope_and_registry(None) as registry:
                kind = registry.get(kind)
        names = (getattr(kind, 'METAINFO', None) or {}).get('classes')
    if isinstance(names, str):  # a file with a name in each line
        names = list_from_file(names) if os.path.isfile(names) else None
    return tuple(names) if names else None
