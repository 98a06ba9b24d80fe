"""What models see, as pictures: validation images, ground truth and predictions.

Of segmentors (mmseg) label maps, of detectors (mmdet) boxes; what the demo and the report draw.
"""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

MIN_SCORE = 0.3  # of a box that is drawn
_NO_LABEL = 255
_GREY = (128, 128, 128)


class Box(NamedTuple):
    """A box in pixels, the name of its class, and its colour as RGB from 0 to 1."""

    corners: tuple[float, float, float, float]
    name: str
    colour: tuple


class Picture(NamedTuple):
    """Pixels, uint8 of shape (H, W, 3), and the boxes on them."""

    pixels: np.ndarray
    boxes: Sequence[Box] = ()


def build_dataset(cfg):
    """Build the validation data set of a config.

    Args:
        cfg (Config): With val_dataloader.

    Returns:
        BaseDataset: The data set.

    Raises:
        FileNotFoundError: If its files are not there.
    """
    from mmengine.registry import DATASETS, init_default_scope

    init_default_scope(cfg.get('default_scope') or 'mmengine')
    return DATASETS.build(cfg.val_dataloader.dataset)


def build_model(cfg):
    """Build a config's model, with the data_preprocessor that MMEngine's Runner gives it.

    Args:
        cfg (Config): With model, and perhaps data_preprocessor.

    Returns:
        BaseModel: The model, with random weights.
    """
    from mmengine.registry import MODELS, init_default_scope

    init_default_scope(cfg.get('default_scope') or 'mmengine')
    model = copy.deepcopy(cfg.model)
    if cfg.get('data_preprocessor') is not None:
        model.setdefault('data_preprocessor', cfg.data_preprocessor)
    return MODELS.build(model)


def read_checkpoint(checkpoint: str):
    """Read a checkpoint as data, without running what it may carry.

    Args:
        checkpoint (str): Path or URL.

    Returns:
        dict: Its content, on the CPU.

    Raises:
        CheckpointError: If it is none, or would run code.
    """
    from mmengine.runner.checkpoint import _load_checkpoint

    from ..training.checkpoint_loading import weights_only

    with weights_only():
        return _load_checkpoint(checkpoint, map_location='cpu')


def load_model(cfg, checkpoint: str, device: str = 'cpu'):
    """Build a config's model with all of its weights, in eval mode.

    Args:
        cfg (Config): Config of a segmentor or detector.
        checkpoint (str): Path or URL; one of a distillation gives its student.
        device (str): Where it runs. Defaults to 'cpu'.

    Returns:
        BaseModel: The model.

    Raises:
        CheckpointError: If weights are missing or do not fit, or would run code.
    """
    from ..training import load_all_weights, replace_sync_batchnorm

    model = build_model(cfg)
    load_all_weights(model, read_checkpoint(checkpoint))
    replace_sync_batchnorm(model)
    return model.to(device).eval()


def predict(model, dataset, indices: Sequence[int]) -> list:
    """Give the data samples that a model makes of images of a data set.

    Args:
        model (BaseModel): In eval mode.
        dataset (BaseDataset): Of images.
        indices (Sequence[int]): Which of them.

    Returns:
        list: One data sample for each.
    """
    import torch
    from mmengine.dataset import pseudo_collate

    with torch.no_grad():
        return [model.test_step(pseudo_collate([dataset[i]]))[0] for i in indices]


def images_of(dataset, indices: Sequence[int]) -> list[Picture]:
    """Give the images themselves, as far as they can be shown.

    Photographs are read from their files. Of others (several bands, 16 bits, no image file) the
    picture is what the pipeline loads, stretched over the range of grey values: the first three
    bands as red, green and blue, or the first alone.

    Args:
        dataset (BaseDataset): Of images.
        indices (Sequence[int]): Which of them.

    Returns:
        list[Picture]: Without boxes.
    """
    return [Picture(_pixels(dataset[i])) for i in indices]


def _pixels(item: dict) -> np.ndarray:
    """Give an item of a data set as pixels of shape (H, W, 3)."""
    import cv2
    import mmcv

    inputs, sample = item['inputs'], item['data_samples']
    path = sample.metainfo.get('img_path')
    if path is not None and str(inputs.dtype) == 'torch.uint8' and len(inputs) in (1, 3):
        try:
            pixels = mmcv.imread(path, channel_order='rgb')
            if pixels is not None:
                return pixels
        except cv2.error:
            pass  # a file of another kind, which the pipeline reads in a way of its own
    bands = inputs[:3] if len(inputs) >= 3 else inputs[:1]
    pixels = _stretch(bands.float().permute(1, 2, 0).numpy())
    # the pipeline may have resized it; boxes are where the file has them
    height, width = sample.metainfo.get('ori_shape', pixels.shape[:2])[:2]
    if pixels.shape[:2] != (height, width):
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_NEAREST)
    return np.repeat(pixels.reshape(height, width, -1), 3 // bands.shape[0], axis=2)


def _stretch(bands: np.ndarray) -> np.ndarray:
    """Stretch each band over 0 to 255, but for the lowest and the highest of 100 values."""
    low, high = np.nanpercentile(bands, (1, 99), axis=(0, 1))
    scaled = (bands - low) / np.maximum(high - low, 1e-6)
    return (255 * np.nan_to_num(scaled.clip(0, 1))).round().astype(np.uint8)


def truth_of(dataset, indices: Sequence[int]) -> list[Picture]:
    """Draw the ground truth of images.

    Args:
        dataset (BaseDataset): Of images with annotations.
        indices (Sequence[int]): Which of them.

    Returns:
        list[Picture]: Coloured label maps, or images with boxes.
    """
    return [_draw(dataset, i, _truth(dataset, i)) for i in indices]


def predictions_of(model, dataset, indices: Sequence[int]) -> list[Picture]:
    """Draw what a model predicts; of boxes those with a score of at least ``MIN_SCORE``.

    Args:
        model (BaseModel): In eval mode.
        dataset (BaseDataset): Of images.
        indices (Sequence[int]): Which of them.

    Returns:
        list[Picture]: Coloured label maps, or images with boxes.
    """
    result = []
    for i, sample in zip(indices, predict(model, dataset, [*indices])):
        if 'pred_sem_seg' in sample:
            found = sample.pred_sem_seg.data[0].cpu().numpy()
        else:
            boxes = sample.pred_instances
            boxes = boxes[boxes.scores >= MIN_SCORE].cpu()
            found = list(zip(boxes.bboxes.tolist(), boxes.labels.tolist()))
        result.append(_draw(dataset, i, found))
    return result


def _truth(dataset, index: int):
    sample = dataset[index]['data_samples']
    if 'gt_sem_seg' in sample:
        return sample.gt_sem_seg.data[0].numpy()
    # not from the sample, whose boxes are where the pipeline has moved them
    given = dataset.get_data_info(index)['instances']
    return [(b['bbox'], b['bbox_label']) for b in given if not b.get('ignore_flag')]


def _draw(dataset, index: int, found) -> Picture:
    """Draw a label map of shape (H, W), or [(corners, class)] on the image."""
    if isinstance(found, np.ndarray):
        palette = np.full((256, 3), _GREY, np.uint8)
        colours = dataset.metainfo['palette'][:_NO_LABEL]
        palette[: len(colours)] = colours
        return Picture(palette[found])
    import matplotlib

    names, colours = dataset.metainfo['classes'], matplotlib.colormaps['tab10']
    boxes = [Box(tuple(at), names[label], colours(label % 10)) for at, label in found]
    return images_of(dataset, [index])[0]._replace(boxes=boxes)


def show(axis, picture: Picture) -> None:
    """Draw a picture into an axis of matplotlib.

    Args:
        axis (matplotlib.axes.Axes): Which then shows no frame.
        picture (Picture): Pixels and boxes.
    """
    import matplotlib.pyplot as plt

    axis.imshow(picture.pixels, interpolation='nearest')
    for (left, top, right, bottom), name, colour in picture.boxes:
        axis.add_patch(
            plt.Rectangle((left, top), right - left, bottom - top, fill=False, ec=colour)
        )
        label = dict(boxstyle='square,pad=0.1', fc=colour, lw=0)
        axis.text(left, top, name, fontsize=6, va='top', bbox=label, clip_on=True, parse_math=False)
    axis.set_axis_off()
