"""Clips of videos and groups of images, as the single images that they are made of."""

from mmengine.structures import BaseDataElement
from torch import Tensor

__all__ = ['single_images']


def single_images(
    inputs: Tensor, data_samples: list[BaseDataElement] | None
) -> tuple[Tensor, list[BaseDataElement] | None]:
    """Give the images of a batch one by one.

    Mask2Former for videos takes clips, and person re-identification a group of images. Both run their
    backbone on all of them in this order.

    Args:
        inputs (Tensor): Images, shape (B, C, H, W); or B clips or groups of T images,
            (B, T, C, H, W).
        data_samples (list, optional): What belongs to them: one for each image, clip or group.

    Returns:
        tuple[Tensor, list | None]: Images, shape (B * T, C, H, W), and the data sample of each; None
        if a group has one sample for all.
    """
    if inputs.dim() != 5:
        return inputs, data_samples
    frames = [
        frame
        for sample in data_samples or ()
        for frame in getattr(sample, 'video_data_samples', ())
    ]
    images = inputs.flatten(0, 1)
    return images, frames if len(frames) == len(images) else None
