"""Images without labels, as a training hands them on."""

from typing import NamedTuple

from torch import Tensor

__all__ = ['UnlabelledBatch', 'is_unlabelled']


def is_unlabelled(sample: object) -> bool:
    """Whether a data sample comes from ``UnlabelledImages``.

    Its annotation is unknown, which is something else than an image with nothing in it.
    """
    return bool(getattr(sample, 'is_unlabelled', False))


class UnlabelledBatch(NamedTuple):
    """The images without labels of one iteration.

    Attributes:
        inputs (Tensor): As the data_preprocessor gives them, shape (B, C, H, W).
        data_samples (list, optional): What belongs to them: sizes and paths, no labels.
        keeps_statistics (bool): Whether the running statistics of the student's norms stay those of
            the labelled images.
    """

    inputs: Tensor
    data_samples: list | None = None
    keeps_statistics: bool = False
