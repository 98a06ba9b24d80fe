"""At which size the teacher sees the images, and which part of its features belongs to them."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch.nn.functional as F
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import Tensor

from ..compat import channel_swap_and_padding
from .external import ExternalTeacher

__all__ = ['TeacherInput']

_FITS = ('resize', 'pad', 'none')


class TeacherInput(NamedTuple):
    """The size at which a teacher sees the student's images.

    First an image is scaled, then its height and width become multiples of ``divisor``.

    Attributes:
        scale (float | None): Height and width are multiplied by it.
        size (int | tuple[int, int] | None): Instead: the shorter side, with the shape of the image kept;
            or height and width.
        divisor (int): The size of the teacher's patches, say.
        fit (str): How a side becomes a multiple of it. 'resize' enlarges the image a little, so that
            the features cover the image and nothing else. 'pad' adds rows below and columns at the
            right, and cuts off the features that lie there; a cell of which more than half lies there is
            left out. 'none' refuses other images.
        pad_value (float): What is added, in the units of the teacher's normalised images.
    """

    scale: float | None = None
    size: int | tuple[int, int] | None = None
    divisor: int = 1
    fit: str = 'resize'
    pad_value: float = 0.0

    @classmethod
    def parse(cls, config: dict | None, teacher: BaseModel) -> 'TeacherInput':
        """Read and check ``teacher_input`` of a config.

        Args:
            config (dict, optional): ``scale`` or ``size``, ``divisor``, ``fit``. None is what the
                teacher needs: images as they are, but for a teacher of another library in multiples of
                its patches, or at the only size that it takes.
            teacher (BaseModel): The teacher.

        Returns:
            TeacherInput: The settings.

        Raises:
            TypeError: If it is no dict, or has a key that does not exist.
            ValueError: If a value is out of range, both scale and size are given, or the size is not a
                multiple of the divisor.
        """
        own = dict(pad_value=float(channel_swap_and_padding(teacher.data_preprocessor)[1]))
        if isinstance(teacher, ExternalTeacher):
            own.update(divisor=teacher.divisor, size=teacher.size)
        if config is None:
            return cls(**own)
        known = ('scale', 'size', 'divisor', 'fit')
        if not isinstance(config, dict) or set(config) - set(known):
            raise TypeError(
                f'teacher_input must be a dict with some of {", ".join(known)}, such as '
                f'dict(scale=1.5) or dict(size=512, divisor=16), got {config!r}'
            )
        if 'scale' in config or 'size' in config:
            own.pop('size', None)
        result = cls(**{**own, **config})
        result._check(config)
        return result

    def _check(self, config: dict) -> None:
        if self.scale is not None and self.size is not None:
            raise ValueError(f'teacher_input takes either scale or size, got both: {config!r}')
        if self.scale is not None and not 0 < self.scale < math.inf:
            raise ValueError(f'teacher_input: scale must be above 0, got {self.scale!r}')
        sides = self.size if isinstance(self.size, Sequence) else [self.size]
        if self.size is not None and (
            len(sides) > 2 or not all(isinstance(side, int) and side > 0 for side in sides)
        ):
            raise ValueError(
                'teacher_input: size must be the shorter side or (height, width), in pixels, got '
                f'{self.size!r}'
            )
        if not isinstance(self.divisor, int) or self.divisor < 1:
            raise ValueError(
                f'teacher_input: divisor must be an integer of at least 1, got {self.divisor!r}'
            )
        if self.fit not in _FITS:
            raise ValueError(f'teacher_input: fit must be one of {_FITS}, got {self.fit!r}')
        if self.fit == 'none' and self.size and any(side % self.divisor for side in sides):
            raise ValueError(
                f'teacher_input: size={self.size!r} is no multiple of divisor={self.divisor}, and '
                "fit='none' allows neither resizing nor padding"
            )

    def sizes(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Give height and width of an image once it is resized, and once it is padded.

        Raises:
            ValueError: If they are no multiples of the divisor and ``fit='none'``.
        """
        if self.scale is not None:
            wanted = height * self.scale, width * self.scale
        elif self.size is None:
            wanted = height, width
        elif isinstance(self.size, int):
            ratio = self.size / min(height, width)
            wanted = height * ratio, width * ratio
        else:
            wanted = self.size
        wanted = tuple(max(1, round(side)) for side in wanted)
        whole = tuple(-(-side // self.divisor) * self.divisor for side in wanted)
        if whole != wanted and self.fit == 'none':
            raise ValueError(
                f'teacher_input: images of {height}x{width} pixels are {wanted[0]}x{wanted[1]} for the '
                f"teacher, no multiples of divisor={self.divisor}, and fit='none' allows neither "
                "resizing nor padding. Choose another crop or scale, fit='resize' or fit='pad'"
            )
        return (whole if self.fit == 'resize' else wanted), whole

    def final_size(self, height: int, width: int) -> tuple[int, int]:
        """Give height and width that the teacher sees of an image of some size."""
        return self.sizes(height, width)[1]

    def apply(self, images: Tensor, data_samples: list | None) -> Tensor:
        """Bring images to the size that the teacher sees.

        Args:
            images (Tensor): As its data_preprocessor makes them, shape (B, C, H, W).
            data_samples (list, optional): Tell what of each is padding (``img_shape``). It is padding
                afterwards too.

        Returns:
            Tensor: Shape (B, C, H', W').
        """
        before = tuple(images.shape[2:])
        resized, padded = self.sizes(*before)
        if resized != before:
            images = F.interpolate(
                images, resized, mode='bilinear', align_corners=False, antialias=True
            )
            for image, sample in zip(images, data_samples or ()):
                shape = sample.metainfo.get('img_shape', before)[:2]
                rows, columns = (math.ceil(a * b / c) for a, b, c in zip(shape, resized, before))
                image[:, rows:] = self.pad_value
                image[:, :, columns:] = self.pad_value
        below, right = padded[0] - resized[0], padded[1] - resized[1]
        return (
            F.pad(images, (0, right, 0, below), value=self.pad_value) if below or right else images
        )

    def samples(self, data_samples: list | None, before: Sequence[int]) -> list | None:
        """Tell the teacher the sizes of its images, without annotations.

        Args:
            data_samples (list, optional): Those of the student.
            before (Sequence[int]): Height and width of the student's images.

        Returns:
            list | None: The same list if the sizes are the same.
        """
        resized, padded = self.sizes(*before)
        if not data_samples or padded == tuple(before):
            return data_samples
        return [_scaled(sample, before, resized, padded) for sample in data_samples]

    def crop(self, feature: Tensor, name: str, before: Sequence[int]) -> Tensor:
        """Cut off what belongs to rows and columns that were added.

        Args:
            feature (Tensor): Shape (B, C, h, w).
            name (str): Its name, for the error.
            before (Sequence[int]): Height and width of the student's images.

        Returns:
            Tensor: What belongs to the image.

        Raises:
            ValueError: If it is no map.
        """
        resized, padded = self.sizes(*before)
        if resized == padded:
            return feature
        if feature.dim() != 4:
            raise ValueError(
                f'teacher: {name!r} has the shape {tuple(feature.shape)}, and only maps can be cut off '
                "where the image was padded. Use teacher_input=dict(fit='resize')"
            )
        rows, columns = (
            max(1, round(cells * a / b)) for cells, a, b in zip(feature.shape[2:], resized, padded)
        )
        return feature[:, :, :rows, :columns]


def _scaled(
    sample: BaseDataElement, before: Sequence[int], resized: Sequence[int], padded: Sequence[int]
) -> BaseDataElement:
    ratios = [b / a for a, b in zip(before, resized)]
    meta: dict[str, Any] = dict(sample.metainfo)
    shape = meta.get('img_shape', before)[:2]
    meta['img_shape'] = tuple(min(round(s * r), b) for s, r, b in zip(shape, ratios, resized))
    for key in ('batch_input_shape', 'pad_shape'):
        if key in meta:
            meta[key] = tuple(padded)
    if 'scale_factor' in meta:  # width first
        meta['scale_factor'] = tuple(
            old * new for old, new in zip(meta['scale_factor'], (ratios[1], ratios[0]))
        )
    return type(sample)(metainfo=meta)
