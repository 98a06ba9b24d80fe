"""What a teacher's features look like over some images, in a few numbers."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ['FeatureSummary', 'ImageSummary', 'channels_first', 'participation_ratio']

# Relative differences below this are those of rounding.
_ROUNDING = 1e-5


def participation_ratio(covariance: Tensor) -> float:
    r"""Compute how many directions a covariance spreads over.

    :math:`(\sum_i \lambda_i)^2 / \sum_i \lambda_i^2` of the eigenvalues: 1 if all variance lies in one
    direction, C if it is the same in all. It is the dimension of Gao et al., "A theory of multineuronal
    dimensionality, dynamics and measurement" (bioRxiv 214262, 2017), and needs no eigenvalues: trace
    and Frobenius norm give it.

    Args:
        covariance (Tensor): Shape (C, C).

    Returns:
        float: 1 to C; 0 without any variance.

    Examples:
        >>> participation_ratio(torch.diag(torch.tensor([2.0, 2.0, 0.0])))
        2.0
    """
    covariance = covariance.double()
    squares = float(covariance.square().sum())
    return float(covariance.trace()) ** 2 / squares if squares > 0 else 0.0


def channels_first(feature: Tensor) -> Tensor:
    """Bring a feature to (B, C, N): maps (B, C, H, W), sequences (B, N, C) and vectors (B, C)."""
    if feature.dim() == 3:
        return feature.transpose(1, 2)
    return feature.flatten(2) if feature.dim() > 2 else feature.unsqueeze(2)


class ImageSummary(NamedTuple):
    """One image's feature.

    Attributes:
        means (Tensor): Of each channel over the positions, shape (C,).
        deviations (Tensor): Standard deviations, likewise.
        positions (int): How many.
        unusable (int): How many values are NaN or infinite.
    """

    means: Tensor
    deviations: Tensor
    positions: int
    unusable: int

    @classmethod
    def of(cls, values: Tensor) -> 'ImageSummary':
        """Summarise values of shape (C, N)."""
        values = values.double()
        return cls(
            values.mean(1).cpu(),
            values.std(1, unbiased=False).cpu(),
            values.shape[1],
            int((~values.isfinite()).sum()),
        )

    @property
    def is_flat(self) -> bool:
        """Whether it is the same at all positions."""
        size = math.hypot(float(self.means.norm()), float(self.deviations.norm()))
        return float(self.deviations.norm()) <= _ROUNDING * size

    def is_like(self, other: 'ImageSummary') -> bool:
        """Whether means and deviations of two images are the same."""
        ours, theirs = (torch.cat([x.means, x.deviations]) for x in (self, other))
        return float((ours - theirs).norm()) <= _ROUNDING * float(ours.norm())


class FeatureSummary:
    """A feature over several images, in float64.

    Attributes:
        images (list[ImageSummary]): One for each.
        positions (int): Of all images.
    """

    def __init__(self) -> None:
        self.images: list[ImageSummary] = []
        self.positions = 0
        self._sum: Tensor | float = 0.0
        self._products: Tensor | float = 0.0
        self._units: Tensor | float = 0.0

    def add(self, feature: Tensor) -> None:
        """Add what a batch gives.

        Args:
            feature (Tensor): (B, C, H, W), (B, N, C) or (B, C).
        """
        for values in channels_first(feature.detach()).double():
            self.images.append(ImageSummary.of(values))
            self.positions += values.shape[1]
            units = values / values.norm(dim=0, keepdim=True).clamp(min=1e-300)
            self._sum = self._sum + values.sum(1).cpu()
            self._products = self._products + (values @ values.T).cpu()
            self._units = self._units + units.sum(1).cpu()

    def merge(self, other: 'FeatureSummary') -> None:
        """Add what another process has seen."""
        self.images += other.images
        self.positions += other.positions
        self._sum = self._sum + other._sum
        self._products = self._products + other._products
        self._units = self._units + other._units

    @property
    def is_finite(self) -> bool:
        """Whether no value was NaN or infinite."""
        return not any(image.unusable for image in self.images)

    @property
    def channels(self) -> int:
        """How many."""
        return len(self.images[0].means)

    @property
    def covariance(self) -> Tensor:
        """Of the channels, over all positions of all images; shape (C, C)."""
        mean = self._sum / self.positions
        return self._products / self.positions - torch.outer(mean, mean)

    @property
    def effective_rank(self) -> float:
        """Directions that the features spread over, see :func:`participation_ratio`."""
        return participation_ratio(self.covariance)

    @property
    def mean_cosine(self) -> float:
        """Mean cosine between the features of any two positions of all images.

        It is close to 1 where a network gives nearly the same vector whatever it sees, as random
        networks with ReLU do the more, the deeper they are: Schoenholz et al., "Deep information
        propagation" (ICLR 2017).
        """
        return float((self._units / self.positions).square().sum())
