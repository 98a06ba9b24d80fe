"""Registered losses on a pair of features; the mathematics is in :mod:`rawkd_mm.functional`."""

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..functional import (
    angular_distance,
    kl_divergence,
    magnitude_distance,
    naive_distance,
    normalized_distance,
)
from ..registry import register_model


def check_weight(name: str, value: float) -> float:
    """Give a weight as a float.

    Args:
        name (str): What it is called, for errors.
        value (float): Must be finite and not negative.

    Raises:
        ValueError: If the weight is negative, infinite or NaN.
        TypeError: If the weight is not a number.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f'{name} must be a number, got {value!r}')
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f'{name} must be finite and not negative, got {value}')
    return float(value)


@functools.cache
def _compile(function: Callable) -> Callable:
    """Let ``torch.compile`` generate a function's code.

    A function is compiled once for all losses of a class. Otherwise each level of a pyramid compiles
    its own copy, and torch.compile reaches its limit.
    """
    # Functions and modules do not change. Checking them at every call would slow down small features.
    skip = getattr(torch.compiler, 'skip_guard_on_globals_unsafe', None)  # not in torch 2.1
    return torch.compile(function, options=skip and dict(guard_filter_fn=skip))


class FeatureLoss(nn.Module):
    """What the losses on raw features share: a weight, compilation, and MMRazor's argument names.

    Args:
        loss_weight (float): Weight of the loss, finite and not negative.
        compile (bool): Let ``torch.compile`` generate the loss's code, which then reads each feature
            once (docs/performance.md has the gain). It needs what torch.compile needs: a C++
            compiler on a CPU, Triton on a GPU; the first steps take seconds longer. Defaults to
            False.

    Raises:
        ValueError: If the weight is negative, infinite or NaN.
        TypeError: If the weight is not a number or ``compile`` no bool.
    """

    # distillers make contiguous copies for losses that do not say this
    any_layout = True

    def __init__(self, loss_weight: float = 1.0, compile: bool = False) -> None:
        super().__init__()
        self.loss_weight = check_weight('loss_weight', loss_weight)
        if not isinstance(compile, bool):
            raise TypeError(f'compile must be True or False, got {compile!r}')
        self.compiled = compile

    @property
    def options(self) -> tuple[float, ...]:
        """What :meth:`weighted_distance` takes beside the features: the weight, in some losses more."""
        return (self.loss_weight,)

    @staticmethod
    def weighted_distance(student: Tensor, teacher: Tensor, weight: float) -> Tensor:
        """Compute the weighted loss, a scalar: all that is compiled."""
        raise NotImplementedError

    def forward(self, preds_S: Tensor, preds_T: Tensor) -> Tensor:  # noqa: N803 (MMRazor's names)
        """Compute the weighted loss.

        Args:
            preds_S (Tensor): Student feature, shape (B, C, ...). Receives the gradient.
            preds_T (Tensor): Teacher feature of the same shape.

        Returns:
            Tensor: Scalar, float32, or float64 if an input is.

        Raises:
            ValueError: If the shapes differ or are empty.
        """
        function = self.weighted_distance
        if self.compiled:
            function = _compile(function)
        return function(preds_S, preds_T, *self.options)

    def extra_repr(self) -> str:
        """Show the options where the model is printed."""
        return f'loss_weight={self.loss_weight}, compile={self.compiled}'


_LAYOUTS = ('BNC', 'BCN')


class ChannelLoss(FeatureLoss):
    """Base class of the losses that distinguish channels from positions.

    A feature of three dimensions is ambiguous: tokens are (B, N, C), a flattened map is (B, C, N). Set
    ``layout`` for them. Maps (B, C, H, W) and vectors (B, C) need no layout.

    Args:
        loss_weight (float), compile (bool): See :class:`FeatureLoss`.
        layout ('BNC' | 'BCN' | None): Of features of three dimensions: 'BNC' are N tokens of C
            channels each, 'BCN' are C channels of N positions each. None refuses them. Defaults to
            None.

    Raises:
        ValueError: If the layout is unknown.
    """

    def __init__(
        self, loss_weight: float = 1.0, compile: bool = False, layout: str | None = None
    ) -> None:
        super().__init__(loss_weight, compile)
        if layout is not None and layout not in _LAYOUTS:
            raise ValueError(f'layout must be one of {_LAYOUTS} or None, got {layout!r}')
        self.layout = layout

    def forward(self, preds_S: Tensor, preds_T: Tensor) -> Tensor:  # noqa: N803 (MMRazor's names)
        """Compute the weighted loss; as :meth:`FeatureLoss.forward`.

        Raises:
            ValueError: Also if the features have three dimensions and there is no layout.
        """
        self.check_shape(preds_S.shape)
        if self.layout == 'BNC' and preds_S.dim() == preds_T.dim() == 3:
            preds_S, preds_T = preds_S.transpose(1, 2), preds_T.transpose(1, 2)  # noqa: N806
        return super().forward(preds_S, preds_T)

    def check_shape(self, shape: Sequence[int]) -> None:
        """Refuse a feature whose shape does not tell where its channels are.

        Args:
            shape (Sequence[int]): Of the feature.

        Raises:
            ValueError: If it has three dimensions and there is no layout.
        """
        if len(shape) == 3 and self.layout is None:
            name = type(self).__name__
            raise ValueError(
                f'{name}: a feature of shape {tuple(shape)} may be tokens (B, N, C) or channels of '
                f'positions (B, C, N), and {name} distinguishes channels from positions. Set '
                "layout='BNC' or layout='BCN', or use a loss that does not distinguish them: LADLoss, "
                'NaiveFeatureLoss, MagnitudeLoss.'
            )

    def extra_repr(self) -> str:
        """Show the options where the model is printed."""
        return super().extra_repr() + (f', layout={self.layout!r}' if self.layout else '')


@register_model
class LADLoss(FeatureLoss):
    r"""LAD: :math:`w (1 - \cos\theta)` over the whole map of each image, batch mean.

    The angular term of Eq. (10) of the paper (WACV 2024) without its magnitudes. That the L stands
    for the layer is our reading of the name (assumption).

    Args:
        loss_weight (float): w, the method's only hyper-parameter. Defaults to 3.0, the paper's value
            on COCO; on segmentation it is an assumption.
        compile (bool): See :class:`FeatureLoss`.
    """

    def __init__(self, loss_weight: float = 3.0, compile: bool = False) -> None:
        super().__init__(loss_weight, compile)

    @staticmethod
    def weighted_distance(student: Tensor, teacher: Tensor, weight: float) -> Tensor:
        """See :func:`rawkd_mm.functional.angular_distance`, granularity 'layer'."""
        return weight * angular_distance(student, teacher, 'layer')


@register_model
class CADLoss(ChannelLoss):
    r"""CAD: :math:`w (1 - \cos\theta_c)` of each channel c, mean over channels and batch.

    That the C stands for the channel is our reading of the paper's (WACV 2024) name (assumption).

    Args:
        loss_weight (float): w, the method's only hyper-parameter. Defaults to 3.0, the paper's value
            on COCO; on segmentation it is an assumption.
        compile (bool): See :class:`FeatureLoss`.
        layout (str, optional): See :class:`ChannelLoss`.
    """

    def __init__(
        self, loss_weight: float = 3.0, compile: bool = False, layout: str | None = None
    ) -> None:
        super().__init__(loss_weight, compile, layout)

    @staticmethod
    def weighted_distance(student: Tensor, teacher: Tensor, weight: float) -> Tensor:
        """See :func:`rawkd_mm.functional.angular_distance`, granularity 'channel'."""
        return weight * angular_distance(student, teacher, 'channel')


@register_model
class PADLoss(ChannelLoss):
    r"""Pixel-wise angular distillation: :math:`1 - \cos\theta` over the channels at each position.

    Not in the paper; it completes the family for ablations.

    Args:
        loss_weight (float): Weight of the loss. Defaults to 3.0, as LAD and CAD.
        compile (bool): See :class:`FeatureLoss`.
        layout (str, optional): See :class:`ChannelLoss`.
    """

    def __init__(
        self, loss_weight: float = 3.0, compile: bool = False, layout: str | None = None
    ) -> None:
        super().__init__(loss_weight, compile, layout)

    @staticmethod
    def weighted_distance(student: Tensor, teacher: Tensor, weight: float) -> Tensor:
        """See :func:`rawkd_mm.functional.angular_distance`, granularity 'pixel'."""
        return weight * angular_distance(student, teacher, 'pixel')


@register_model
class NaiveFeatureLoss(FeatureLoss):
    """Naive feature distillation (FitNets), Eq. (10) of the paper: MSE of the raw features.

    Args:
        loss_weight (float): Weight of the loss. Defaults to 1.0; the paper's PSPNet pairs need 100
            to 1000, its Swin pair 10 (supplement, section A).
        compile (bool): See :class:`FeatureLoss`.
    """

    @staticmethod
    def weighted_distance(student: Tensor, teacher: Tensor, weight: float) -> Tensor:
        """See :func:`rawkd_mm.functional.naive_distance`."""
        return weight * naive_distance(student, teacher)


@register_model
class MagnitudeLoss(FeatureLoss):
    """Magnitude Distillation (MD), Eq. (4) of the paper: the magnitude term of MSE alone.

    Args:
        loss_weight (float): Weight of the loss. Defaults to 1.0.
        compile (bool): See :class:`FeatureLoss`.
    """

    @staticmethod
    def weighted_distance(student: Tensor, teacher: Tensor, weight: float) -> Tensor:
        """See :func:`rawkd_mm.functional.magnitude_distance`."""
        return weight * magnitude_distance(student, teacher)


@register_model
class NFDLoss(ChannelLoss):
    """Normalized feature distillation (arXiv 2207.05256): MSE of standardised channels.

    Args:
        loss_weight (float): Weight of the loss. Defaults to 1.0.
        compile (bool): See :class:`FeatureLoss`.
        layout (str, optional): See :class:`ChannelLoss`.
    """

    @staticmethod
    def weighted_distance(student: Tensor, teacher: Tensor, weight: float) -> Tensor:
        """See :func:`rawkd_mm.functional.normalized_distance`."""
        return weight * normalized_distance(student, teacher)


@register_model
class KLLoss(ChannelLoss):
    r"""Canonical distillation (Hinton et al., arXiv 1503.02531): KL(teacher || student) of the scores.

    The scores are what the classifier gives: name its output in the pair of features, such as
    ``decode_head.conv_seg``. MMRazor's ``KLDivergence`` is this loss times the number of positions.

    Args:
        loss_weight (float): Weight of the loss. Defaults to 1.0, that of the task's loss (assumption).
        compile (bool): See :class:`FeatureLoss`.
        layout (str, optional): See :class:`ChannelLoss`.
        tau (float): Temperature, positive and finite. Defaults to 1.0, as in the pixel-wise distillation
            of the code that CIRKD (arXiv 2204.06986) released, which divides by the positions too.

    Raises:
        ValueError: If tau is not positive and finite.
        TypeError: If tau is not a number.
    """

    def __init__(
        self,
        loss_weight: float = 1.0,
        compile: bool = False,
        layout: str | None = None,
        tau: float = 1.0,
    ) -> None:
        super().__init__(loss_weight, compile, layout)
        self.tau = check_weight('tau', tau)
        if not self.tau:
            raise ValueError(f'tau must be positive, got {tau}')

    @property
    def options(self) -> tuple[float, ...]:
        """Weight and temperature."""
        return self.loss_weight, self.tau

    @staticmethod
    def weighted_distance(student: Tensor, teacher: Tensor, weight: float, tau: float) -> Tensor:
        """See :func:`rawkd_mm.functional.kl_divergence`."""
        return weight * kl_divergence(student, teacher, tau)

    def extra_repr(self) -> str:
        """Show the options where the model is printed."""
        return f'{super().extra_repr()}, tau={self.tau}'
