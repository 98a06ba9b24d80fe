"""Which images a network of another library takes."""

from collections.abc import Sequence
from typing import Any, NamedTuple

__all__ = ['ImageSettings']


class ImageSettings(NamedTuple):
    """What a network expects of the values of its images.

    Attributes:
        mean (tuple[float, ...]): Is subtracted, one value a channel in the network's order.
        std (tuple[float, ...]): What the difference is divided by, likewise.
        max_value (float): What white is before that: 1 where images are scaled to 0..1, 255 where they
            are not.
        channel_order (str): 'rgb' or 'bgr'.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    max_value: float = 1.0
    channel_order: str = 'rgb'

    @classmethod
    def parse(cls, settings: 'ImageSettings | dict') -> 'ImageSettings':
        """Read and check settings of a config.

        Raises:
            TypeError: If they are no dict, or have a key that does not exist or lack one.
            ValueError: If a value is out of range.
        """
        if not isinstance(settings, (dict, cls)):
            raise TypeError(
                'images must be a dict such as dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, '
                f"0.225), max_value=1, channel_order='rgb'), got {settings!r}"
            )
        given = settings if isinstance(settings, dict) else settings._asdict()
        unknown, missing = set(given) - set(cls._fields), {'mean', 'std'} - set(given)
        if unknown or missing:
            raise TypeError(
                f'images={given!r}: expected the keys mean, std, and optionally max_value and '
                f'channel_order; unknown are {sorted(unknown)}, missing {sorted(missing)}'
            )
        result = cls(**{**given, 'mean': _floats(given['mean']), 'std': _floats(given['std'])})
        if len(result.mean) != len(result.std) or not result.mean:
            raise ValueError(
                f'images: mean and std must have one value a channel, got {result.mean} and {result.std}'
            )
        if not all(value > 0 for value in (*result.std, result.max_value)):
            raise ValueError(
                f'images: std and max_value must be above 0, got {result.std} and {result.max_value}'
            )
        if result.channel_order not in ('rgb', 'bgr'):
            raise ValueError(
                f"images: channel_order must be 'rgb' or 'bgr', got {result.channel_order!r}"
            )
        return result

    def preprocessor(self) -> dict[str, Any]:
        """Give the config of MMEngine's data_preprocessor that makes such images.

        It takes images as MMCV loads them: values of 0 to 255, channels in the order BGR.

        Raises:
            ValueError: If the images have another number of channels than 1 or 3 and not one mean and
                std for all; MMEngine's data_preprocessor takes no others.
        """
        mean, std = self.mean, self.std
        if len(set(mean)) == len(set(std)) == 1:
            mean, std = mean[:1], std[:1]
        if len(mean) not in (1, 3):
            raise ValueError(
                f'the teacher takes images of {len(mean)} channels with a mean of their own each '
                f'({mean}); the images of MMSegmentation and MMDetection have 3 channels, or one mean '
                'for all. Take a teacher of colour images'
            )
        scale = 255 / self.max_value
        return dict(
            type='mmengine.ImgDataPreprocessor',
            mean=[value * scale for value in mean],
            std=[value * scale for value in std],
            bgr_to_rgb=self.channel_order == 'rgb' and len(self.mean) == 3,
        )


def _floats(values: Sequence[float]) -> tuple[float, ...]:
    values = values if isinstance(values, Sequence) else (values,)
    return tuple(float(value) for value in values)
