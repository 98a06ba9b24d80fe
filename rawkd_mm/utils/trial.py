"""One iteration of a training on made-up images: does it run at all?"""

import copy
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from mmengine.device import get_device
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch import Tensor, nn

from ..registry import type_name
from .runner import replace_sync_batchnorm

__all__ = ['TrialError', 'made_up_batch', 'main_head_classes', 'run_one_iteration']


class TrialError(RuntimeError):
    """One iteration of the training failed; the message says at what."""


def main_head_classes(model: BaseModel) -> int | None:
    """Read the number of classes of a segmentor's or a detector's main head.

    Args:
        model (BaseModel): The model.

    Returns:
        int | None: The number; None if no head tells it.
    """
    for path in ('decode_head', 'roi_head.bbox_head', 'bbox_head', 'panoptic_head', 'mask_head'):
        head: object = model
        for name in path.split('.'):
            head = getattr(head, name, None)
        if isinstance(head, nn.ModuleList):
            head = head[-1]
        number = getattr(head, 'num_classes', None)
        if isinstance(number, int):
            return number
    return None


def made_up_batch(
    model: BaseModel, size: Sequence[int], images: int = 2, device: str = 'cpu'
) -> tuple[Tensor, list[BaseDataElement]]:
    """Make normalised random images with annotations for a segmentor or a detector.

    Args:
        model (BaseModel): What is to be trained with them.
        size (Sequence[int]): Height and width of the images in pixels.
        images (int): How many. Defaults to 2, the fewest that BN can do with.
        device (str): Where they shall be. Defaults to 'cpu'.

    Returns:
        tuple[Tensor, list[BaseDataElement]]: The images, shape (images, C, H, W), and their data
        samples: label maps (and edges) for a segmentor, boxes and masks for a detector.
    """
    generator = torch.Generator().manual_seed(0)
    channels = len(getattr(model.data_preprocessor, 'mean', ())) or 3
    inputs = torch.randn(images, channels, *size, generator=generator).to(device)
    classes = max(main_head_classes(model) or 1, 1)
    if hasattr(model, 'decode_head'):
        make = _segmentation_sample
    else:
        # some heads take masks, if there are any, for something else than these
        with_masks = any('mask' in name for name, _ in model.named_modules())
        make = partial(_detection_sample, with_masks=with_masks)
    samples = []
    for index in range(images):
        sample = make(tuple(size), classes, generator)
        shape = tuple(size)
        sample.set_metainfo(
            dict(
                img_id=index,
                img_shape=shape,
                ori_shape=shape,
                pad_shape=shape,
                batch_input_shape=shape,
                scale_factor=(1.0, 1.0),
                flip=False,
                padding_size=[0, 0, 0, 0],
            )
        )
        samples.append(sample.to(device))
    return inputs, samples


def _segmentation_sample(
    size: tuple[int, int], classes: int, generator: torch.Generator
) -> BaseDataElement:
    from mmseg.structures import SegDataSample

    sample = SegDataSample()
    labels = torch.randint(0, max(classes, 2), (1, *size), generator=generator)
    sample.gt_sem_seg = PixelData(data=labels)
    # PIDNet asks for it
    sample.gt_edge_map = PixelData(data=torch.randint(0, 2, (1, *size), generator=generator))
    return sample


def _detection_sample(
    size: tuple[int, int], classes: int, generator: torch.Generator, with_masks: bool
) -> BaseDataElement:
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    height, width = size
    # a large and a small object
    boxes = torch.tensor([[0.1, 0.1, 0.7, 0.8], [0.5, 0.4, 0.8, 0.7]])
    boxes = (boxes * torch.tensor([width, height, width, height])).round()
    sample = DetDataSample()
    sample.gt_instances = InstanceData(
        bboxes=boxes, labels=torch.randint(0, classes, (len(boxes),), generator=generator)
    )
    if with_masks:
        masks = np.zeros((len(boxes), height, width), np.uint8)
        for mask, (left, top, right, bottom) in zip(masks, boxes.long().tolist()):
            mask[top:bottom, left:right] = 1
        sample.gt_instances.masks = BitmapMasks(masks, height, width)
    sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long())
    sample.gt_sem_seg = PixelData(data=torch.zeros(1, height, width, dtype=torch.long))
    return sample


def run_one_iteration(
    algorithm: BaseModel, optim_wrapper: dict, size: Sequence[int]
) -> dict[str, float]:
    """Train a distillation for one iteration: forward, backward, a step of the optimizer.

    Runs on a GPU where there is one. SyncBN runs as BN.

    Args:
        algorithm (BaseModel): A ``FrozenTeacherDistill``; changed.
        optim_wrapper (dict): The config's.
        size (Sequence[int]): Height and width of the images in pixels.

    Returns:
        dict[str, float]: The losses by name.

    Raises:
        TrialError: If it fails, a loss is not finite or the student does not change.
    """
    device = get_device()
    replace_sync_batchnorm(algorithm)
    algorithm = algorithm.to(device).train()
    config = copy.deepcopy(optim_wrapper)
    if device == 'cpu' and type_name(config.get('type')) == 'AmpOptimWrapper':
        config = {k: v for k, v in config.items() if k not in ('loss_scale', 'dtype')}
        config['type'] = 'OptimWrapper'
    before = {k: v.detach().clone() for k, v in algorithm.student.named_parameters()}
    try:
        wrapper = build_optim_wrapper(algorithm, config)
        batch = made_up_batch(algorithm.student, size, device=device)
        with wrapper.optim_context(algorithm):
            losses = algorithm(*batch, mode='loss')
        total, log = algorithm.parse_losses(losses)
        wrapper.update_params(total)
    except Exception as error:
        raise TrialError(
            f'one iteration on 2 made-up images of {size[0]}x{size[1]} failed: '
            f'{type(error).__name__}: {error}'
        ) from error
    log = {name: value.detach().item() for name, value in log.items()}
    wrong = [f'{name}={value}' for name, value in log.items() if not np.isfinite(value)]
    if wrong:
        raise TrialError(f'losses that are not finite after one iteration: {", ".join(wrong)}')
    if all(torch.equal(before[k], v) for k, v in algorithm.student.named_parameters()):
        raise TrialError('the student is the same after one iteration: nothing of it is trained')
    return log
