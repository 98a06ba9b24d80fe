"""The images of the teacher, made from those of the student."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from mmengine.logging import print_log
from mmengine.model import BaseDataPreprocessor
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ..compat import channel_swap_and_padding

__all__ = ['Renormalize', 'make_renormalize']


class Renormalize:
    """Turns the student's images into what the teacher's data_preprocessor would make."""

    def __init__(self, student: '_Normalization', teacher: '_Normalization') -> None:
        self.swap = student.swap != teacher.swap
        mean, std = student.mean, student.std
        if self.swap:  # in the teacher's channel order
            mean, std = mean.flip(0), std.flip(0)
        self.scale = std / teacher.std
        self.shift = (mean - teacher.mean) / teacher.std
        self.pad_value = teacher.pad_value

    def __call__(self, inputs: Tensor, data_samples: Sequence[BaseDataElement] | None) -> Tensor:
        self.scale = self.scale.to(inputs.device)
        self.shift = self.shift.to(inputs.device)
        if self.swap:
            inputs = inputs.flip(1)
        outputs = (inputs * self.scale + self.shift).to(inputs.dtype)
        # Both data_preprocessors pad after they have normalised.
        for image, sample in zip(outputs, data_samples or ()):
            height, width = sample.metainfo.get('img_shape', image.shape[1:])[:2]
            image[:, height:] = self.pad_value
            image[:, :, width:] = self.pad_value
        return outputs


class _Normalization(NamedTuple):
    """What a data_preprocessor does to the values of images."""

    mean: Tensor  # (C, 1, 1)
    std: Tensor  # (C, 1, 1)
    swap: bool  # whether the order of the channels is reversed
    pad_value: float

    def same_values(self, other: '_Normalization') -> bool:
        return all(
            torch.equal(*torch.broadcast_tensors(a, b))
            for a, b in ((self.mean, other.mean), (self.std, other.std))
        )


_RAW = _Normalization(torch.zeros(1, 1, 1), torch.ones(1, 1, 1), False, 0.0)


def _normalization(preprocessor: nn.Module, role: str) -> _Normalization | None:
    """Read a data_preprocessor; None if it only moves images to the device."""
    # a semi-supervised detector's has one for each kind of images
    preprocessor = getattr(preprocessor, 'data_preprocessor', preprocessor)
    if type(preprocessor) is BaseDataPreprocessor:
        return None
    enabled = getattr(preprocessor, '_enable_normalize', None)
    swap, pad_value = channel_swap_and_padding(preprocessor)
    if enabled is None or swap is None:
        raise ValueError(
            f"the {role}'s data_preprocessor {type(preprocessor).__name__} does not tell its mean, "
            'std and channel order, so that the images of the two models cannot be compared. Use '
            "one that derives from MMEngine's ImgDataPreprocessor."
        )
    result = _RAW._replace(swap=swap, pad_value=float(pad_value))
    if enabled:
        # a tracker's are (1, C, 1, 1)
        mean, std = (x.float().view(-1, 1, 1) for x in (preprocessor.mean, preprocessor.std))
        result = result._replace(mean=mean, std=std)
    return result


def _are_alike(student: nn.Module, teacher: nn.Module) -> bool:
    """Whether two data_preprocessors have the same class, settings and buffers."""

    def settings(module: nn.Module) -> dict:
        plain = (bool, int, float, str, list, tuple, type(None))
        return {k: v for k, v in vars(module).items() if isinstance(v, plain) and k != 'training'}

    buffers = [dict(module.named_buffers()) for module in (student, teacher)]
    return (
        type(student) is type(teacher)
        and settings(student) == settings(teacher)
        and buffers[0].keys() == buffers[1].keys()
        and all(torch.equal(value, buffers[1][name]) for name, value in buffers[0].items())
    )


def make_renormalize(student: nn.Module, teacher: nn.Module) -> Renormalize | None:
    """Compare the images that two models expect.

    Args:
        student (nn.Module): The data_preprocessor that makes the images.
        teacher (nn.Module): The data_preprocessor of the teacher's config.

    Returns:
        A callable ``(inputs, data_samples) -> inputs`` from the student's images, shape
        (B, C, H, W), to the teacher's; None if they are the same or the teacher's config does not
        tell.

    Raises:
        ValueError: If the one cannot be computed from the other.
    """
    of_teacher = None if _are_alike(student, teacher) else _normalization(teacher, 'teacher')
    if of_teacher is None:
        return None
    of_student = _normalization(student, 'student') or _RAW
    channels = {
        len(x) for x in (of_student.mean, of_student.std, of_teacher.mean, of_teacher.std)
    } - {1}
    if len(channels) > 1:
        raise ValueError(
            f"the student's images have {len(of_student.mean)} channels (mean "
            f"{of_student.mean.flatten().tolist()}), the teacher's {len(of_teacher.mean)} (mean "
            f'{of_teacher.mean.flatten().tolist()}): they cannot be converted into each other. Give '
            'both models the same kind of image.'
        )
    if (
        of_student.swap == of_teacher.swap
        and of_student.pad_value == of_teacher.pad_value
        and of_student.same_values(of_teacher)
    ):
        return None
    if not (of_teacher.std != 0).all():
        raise ValueError(
            f"the teacher's std {of_teacher.std.flatten().tolist()} must not contain 0"
        )
    swap = of_student.swap != of_teacher.swap
    print_log(
        "The teacher's images are made otherwise than the student's; they are converted: "
        f'mean {of_student.mean.flatten().tolist()} -> {of_teacher.mean.flatten().tolist()}, '
        f'std {of_student.std.flatten().tolist()} -> {of_teacher.std.flatten().tolist()}, '
        f'padding {of_student.pad_value} -> {of_teacher.pad_value}, '
        f'channels {"reversed" if swap else "in the same order"}.',
        'current',
    )
    return Renormalize(of_student, of_teacher)
