"""One iteration of a training on made-up images: does it run at all?"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from mmengine.device import get_device
from mmengine.logging import MessageHub
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.optim import build_optim_wrapper
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch import Tensor, nn

from ..features import TWO_KINDS, detector_within, image_channels
from ..registry import type_name
from .runner import replace_sync_batchnorm

__all__ = ['TrialError', 'made_up_batch', 'main_head_classes', 'run_one_iteration']


# Of a detector that is asked in words.
_MOST_PHRASES = 20
# Images of a person, and persons, in a batch of re-identification.
_IDENTITIES, _IMAGES_EACH = 2, 2


class TrialError(RuntimeError):
    """The trial iteration failed; the message has the cause."""


def main_head_classes(model: BaseModel) -> int | None:
    """Read the number of classes of a segmentor's or a detector's main head.

    Args:
        model (BaseModel): The model.

    Returns:
        int | None: The number; None if no head tells it.
    """
    paths = ('decode_head', 'roi_head.bbox_head', 'bbox_head', 'panoptic_head', 'mask_head')
    for path in (*paths, 'track_head'):
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
    model: BaseModel,
    size: Sequence[int],
    images: int = 2,
    device: str = 'cpu',
    preprocessor: nn.Module | None = None,
) -> tuple[Tensor, list[BaseDataElement]]:
    """Make random images with annotations for a segmentor or a detector, as a training step gets them.

    Args:
        model (BaseModel): What is to be trained with them.
        size (Sequence[int]): Height and width of the images in pixels.
        images (int): How many. Defaults to 2, the fewest that BN can do with.
        device (str): Where they shall be. Defaults to 'cpu'.
        preprocessor (nn.Module, optional): The data_preprocessor that makes them; its fixed size, if
            it has one, becomes this size, and it augments nothing. Defaults to the model's own.

    Returns:
        tuple[Tensor, list[BaseDataElement]]: The images, shape (images, C, H, W), of as many channels
        as the model takes, and their data samples. Of a model of videos they are as many clips, shape
        (images, T, C, H, W), and of person re-identification one group of 4 images,
        (1, 4, C, H, W).

    Raises:
        TrialError: If the model takes labelled and unlabelled images at once.
    """
    preprocessor = model.data_preprocessor if preprocessor is None else preprocessor
    kind = type(preprocessor).__name__
    if kind == 'MultiBranchDataPreprocessor':
        raise TrialError(
            f'{type(model).__name__} takes {TWO_KINDS} ({kind}), of which none are made up. '
            'make_distill_config.py --no-check writes the config without trying it'
        )
    if kind == 'ReIDDataPreprocessor':
        inputs, samples = _made_up_persons(model, size)
    elif kind == 'TrackDataPreprocessor' and not preprocessor.use_det_processor:
        inputs, samples = _made_up_clips(model, size, images)
    else:
        inputs, samples = made_up_images(model, size, images)
    if type(preprocessor) is BaseDataPreprocessor:
        # one that only moves the images to the device
        normalised = (torch.stack(inputs).float() - 127.5) / 73.9
        return normalised.to(device), [sample.to(device) for sample in samples]
    preprocessor = copy.deepcopy(preprocessor).to(device)
    # a divisor that is larger than the images is a fixed size, too (SAN)
    divisor = getattr(preprocessor, 'size_divisor', None)
    if divisor is not None and divisor > max(size):
        preprocessor.size, preprocessor.size_divisor = tuple(size), None
    if getattr(preprocessor, 'size', None) is not None:
        preprocessor.size = tuple(size)
    if getattr(preprocessor, 'batch_augments', None):
        preprocessor.batch_augments = None
    data = preprocessor(dict(inputs=inputs, data_samples=samples), training=True)
    return data['inputs'], [sample.to(device) for sample in data['data_samples']]


def made_up_images(
    model: BaseModel, size: Sequence[int], images: int = 2
) -> tuple[list[Tensor], list[BaseDataElement]]:
    """Make random images with annotations as the data set of a training gives them.

    Args:
        model (BaseModel): What is to be trained with them.
        size (Sequence[int]): Height and width of the images in pixels.
        images (int): How many. Defaults to 2.

    Returns:
        tuple[list[Tensor], list[BaseDataElement]]: The images, uint8 of shape (C, H, W), of as many
        channels as the model takes; and their data samples: label maps, edges and depth for a
        segmentor, boxes, masks, proposals, a map of things and stuff, and phrases where a detector is
        asked in words.
    """
    generator = torch.Generator().manual_seed(0)
    within = detector_within(model)
    model = model if within is None else getattr(model, within)
    shape, channels = tuple(size), image_channels(model)
    make = _segmentation_sample if hasattr(model, 'decode_head') else _detection_sample
    inputs, samples = [], []
    for index in range(images):
        image = torch.randint(0, 256, (channels, *shape), generator=generator)
        inputs.append(image.to(torch.uint8))
        sample = make(model, shape, generator)
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
        samples.append(sample)
    return inputs, samples


def _made_up_clips(
    model: BaseModel, size: Sequence[int], clips: int
) -> tuple[list[Tensor], list[BaseDataElement]]:
    """Make clips of random images in which the same objects are seen: each (T, C, H, W)."""
    from mmdet.structures import TrackDataSample

    frames = getattr(model.track_head, 'num_frames', 2)
    images, samples = made_up_images(model, size, clips * frames)
    for sample in samples:
        sample.gt_instances.instances_ids = torch.arange(len(sample.gt_instances))
    parts = [slice(i * frames, (i + 1) * frames) for i in range(clips)]
    tracks = [TrackDataSample(video_data_samples=samples[part]) for part in parts]
    return [torch.stack(images[part]) for part in parts], tracks


def _made_up_persons(
    model: BaseModel, size: Sequence[int]
) -> tuple[list[Tensor], list[BaseDataElement]]:
    """Make one group of random images of persons, (N, C, H, W), as re-identification takes them."""
    from mmdet.structures import ReIDDataSample

    images, _ = made_up_images(model, size, _IDENTITIES * _IMAGES_EACH)
    labels = torch.arange(_IDENTITIES).repeat_interleave(_IMAGES_EACH)
    return [torch.stack(images)], [ReIDDataSample().set_gt_label(labels)]


def _segmentation_sample(
    model: BaseModel, size: tuple[int, int], generator: torch.Generator
) -> BaseDataElement:
    from mmseg.structures import SegDataSample

    sample = SegDataSample()
    classes = max(main_head_classes(model) or 1, 2)
    labels = torch.randint(0, classes, (1, *size), generator=generator)
    sample.gt_sem_seg = PixelData(data=labels)
    # PIDNet asks for edges, VPD for depth
    sample.gt_edge_map = PixelData(data=torch.randint(0, 2, (1, *size), generator=generator))
    sample.gt_depth_map = PixelData(data=1 + torch.rand(1, *size, generator=generator))
    return sample


def _detection_sample(
    model: BaseModel, size: tuple[int, int], generator: torch.Generator
) -> BaseDataElement:
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    height, width = size
    things, _ = _things_and_stuff(model)
    is_asked = getattr(model, 'language_model', None) is not None
    # the sentence of all phrases must not be too long
    things = min(things, _MOST_PHRASES) if is_asked else things
    # a large and a small object
    boxes = torch.tensor([[0.1, 0.1, 0.7, 0.8], [0.5, 0.4, 0.8, 0.7]])
    boxes = (boxes * torch.tensor([width, height, width, height])).round()
    sample = DetDataSample()
    sample.gt_instances = InstanceData(
        bboxes=boxes, labels=torch.randint(0, things, (len(boxes),), generator=generator)
    )
    if is_asked:
        phrases = tuple(f'object {number}' for number in range(things))
        sample.set_metainfo(dict(text=phrases, custom_entities=False))
    # some heads take masks, if there are any, for something else than these
    if any('mask' in name for name, _ in model.named_modules()):
        masks = np.zeros((len(boxes), height, width), np.uint8)
        for mask, (left, top, right, bottom) in zip(masks, boxes.long().tolist()):
            mask[top:bottom, left:right] = 1
        sample.gt_instances.masks = BitmapMasks(masks, height, width)
    sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long())
    # what Fast R-CNN, which has no RPN, reads from a file: around the objects, and beside them
    near = torch.cat(
        [boxes, boxes + 0.05 * height, boxes.new_tensor([[0, 0, width / 4, height / 4]])]
    )
    near = torch.minimum(near, near.new_tensor([width, height, width, height]))
    sample.proposals = InstanceData(bboxes=near, scores=torch.ones(len(near)))
    sample.gt_sem_seg = PixelData(sem_seg=_semantic_map(model, size, generator))
    return sample


def _things_and_stuff(model: BaseModel) -> tuple[int, int]:
    """Give the numbers of classes of objects, and of regions of a panoptic model."""
    for name in ('panoptic_head', 'semantic_head', 'panoptic_fusion_head'):
        head = getattr(model, name, None)
        things = getattr(head, 'num_things_classes', None)
        if isinstance(things, int):
            return max(things, 1), getattr(head, 'num_stuff_classes', 0)
    return max(main_head_classes(model) or 1, 1), 0


def _semantic_map(model: BaseModel, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Give each position a class, shape (1, H, W); of the size that the model's semantic head takes."""
    branch = getattr(getattr(model, 'roi_head', None), 'semantic_head', None)
    if branch is not None:
        # HTC and its like learn from a smaller map, as large as the neck's level that they fuse into
        level = getattr(branch, 'fusion_level', 0)
        extractor = model.roi_head.bbox_roi_extractor
        extractor = extractor[0] if isinstance(extractor, nn.ModuleList) else extractor
        stride = extractor.featmap_strides[level]
        size = [-(-length // stride) for length in size]
        return torch.randint(0, branch.num_classes, (1, *size), generator=generator)
    return torch.randint(0, sum(_things_and_stuff(model)), (1, *size), generator=generator)


@contextmanager
def _first_iteration() -> Iterator[None]:
    """Tell the model what a Runner tells it: which iteration this is (BoxInst, YOLOX ask for it)."""
    hub = MessageHub.get_current_instance()
    told = dict(iter=0, epoch=0, max_iters=1, max_epochs=1)
    told = {k: v for k, v in told.items() if k not in hub.runtime_info}
    hub.update_info_dict(told)
    try:
        yield
    finally:
        for key in told:
            hub.pop_info(key)


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
    algorithm.to(device)
    algorithm.train()  # MMRazor's gives None
    config = copy.deepcopy(optim_wrapper)
    if device == 'cpu' and type_name(config.get('type')) == 'AmpOptimWrapper':
        config = {k: v for k, v in config.items() if k not in ('loss_scale', 'dtype')}
        config['type'] = 'OptimWrapper'
    before = {k: v.detach().clone() for k, v in algorithm.student.named_parameters()}
    try:
        wrapper = build_optim_wrapper(algorithm, config)
        batch = made_up_batch(
            algorithm.student, size, device=device, preprocessor=algorithm.data_preprocessor
        )
        with wrapper.optim_context(algorithm), _first_iteration():
            losses = algorithm(*batch, mode='loss')
        total, log = algorithm.parse_losses(losses)
        wrapper.update_params(total)
    except TrialError:
        raise
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
