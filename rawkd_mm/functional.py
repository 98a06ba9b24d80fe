r"""The mathematics of raw feature distillation, as plain functions.

Notation of the paper (Rethinking Knowledge Distillation with Raw Features for Semantic Segmentation,
WACV 2024): the feature maps of one image are :math:`F^s, F^t \in R^{C \times H \times W}` for student
and teacher, :math:`N = CHW`, :math:`n = \|F^s\|`, :math:`m = \|F^t\|` and :math:`\theta` is the angle
between the two as vectors of length N. Mean squared error mixes a magnitude with an angular term
(Eq. 10):

.. math::
    \frac{1}{N} \|F^t - F^s\|^2 = \frac{1}{N} [(m - n)^2 + 2mn (1 - \cos\theta)]

Every function takes ``(student, teacher)`` of one shape ``(B, C, ...)``: the channels are the second
dimension, also of three (tokens (B, N, C) have to be transposed; the registered losses ask which of the
two they are given). It sends gradient to the student only, and reduces in float32 (float64 if an input
is float64), so that half precision maps neither overflow nor lose digits. Sums of squares have to fit
the type they are reduced in: in float32, norms from 1e-19 to 1e19 are exact, shorter ones lose digits
and become 0, all of which is far below the eps under which a vector has no direction. NaN or inf in an
input gives NaN or inf, never a finite number.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .reductions import compute_dtype, norm, norms_and_dot

__all__ = [
    'GRANULARITIES',
    'FeatureGeometry',
    'angular_distance',
    'decompose',
    'kl_divergence',
    'magnitude_distance',
    'naive_distance',
    'normalized_distance',
]

GRANULARITIES = ('layer', 'channel', 'pixel')


def _check(student: Tensor, teacher: Tensor) -> None:
    # size by size: torch.compile of torch 2.1 cannot compare shapes that it made symbolic
    sizes = zip(student.shape, teacher.shape)
    if student.dim() != teacher.dim() or any([s != t for s, t in sizes]):
        raise ValueError(
            f'student and teacher features must have one shape, got {tuple(student.shape)} and '
            f'{tuple(teacher.shape)}; align them first (a 1x1 convolution for the channels, '
            'interpolation for height and width)'
        )
    if student.dim() < 2:
        raise ValueError(
            f'features must have a batch and a channel dimension, (B, C, ...), '
            f'got shape {tuple(student.shape)}'
        )
    if student.numel() == 0:
        raise ValueError(
            f'features must not be empty, got shape {tuple(student.shape)}; check that the batch '
            'and the images have a size'
        )
    for name, feature in (('student', student), ('teacher', teacher)):
        if not feature.is_floating_point():
            raise TypeError(f'the {name} feature must be floating point, got {feature.dtype}')


class _AngularDistance(torch.autograd.Function):
    r"""Mean of :math:`1 - \cos\theta_v` over all vectors v that ``dims`` span.

    With :math:`c = \cos\theta_v`, g the upstream gradient and V the number of vectors,

    .. math:: \partial / \partial s_v = \frac{g}{V} ( \frac{c}{n^2} s_v - \frac{1}{nm} t_v )

    so backward needs the two inputs and two scalars a vector.
    """

    @staticmethod
    def forward(ctx, student: Tensor, teacher: Tensor, dims: tuple, eps: float) -> Tensor:
        n, m, dot = norms_and_dot(student, teacher, dims)
        # A vector shorter than eps has no direction: cosine 0, gradient 0. NaN compares as False
        # and so stays NaN.
        undirected = (n < eps) | (m < eps)
        product = n * m
        inverse = torch.where(undirected, 0.0, 1 / product)
        # An infinite norm must give NaN and not an angle, also where it comes from overflow.
        inverse = torch.where(product.isfinite(), inverse, torch.nan)
        cosine = dot * inverse
        ctx.save_for_backward(
            student, teacher, torch.where(undirected, 0.0, cosine / (n * n)), inverse
        )
        # Rounding must not leave [0, 2]; clamp keeps NaN.
        return (1 - cosine.clamp(-1, 1)).mean()

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        # torch's once_differentiable lets a constant upstream gradient pass and gives wrong numbers
        if torch.is_grad_enabled():
            raise RuntimeError(
                'angular_distance cannot be differentiated twice, its gradient was asked for with '
                'create_graph=True'
            )
        student, teacher, on_student, on_teacher = ctx.saved_tensors
        scale = grad_output / on_student.numel()
        grad = torch.mul(student, on_student * scale)
        grad = grad.addcmul_(teacher.to(grad.dtype), on_teacher * -scale)
        return grad.to(student.dtype), None, None, None


def angular_distance(
    student: Tensor, teacher: Tensor, granularity: str = 'layer', eps: float = 1e-8
) -> Tensor:
    r"""Mean of :math:`1 - \cos\theta` over all vectors of a granularity.

    The angular term of Eq. (10) without its factor :math:`2mn/N`. That LAD is the granularity
    'layer' and CAD 'channel' is our reading of the names (an assumption: the text at hand does not
    expand them); 'pixel' completes the family.

    Args:
        student (Tensor): Shape (B, C, ...), floating point. Receives the gradient, which is
            computed analytically; what is kept for it is the two inputs and two scalars a vector.
        teacher (Tensor): The same shape. Receives no gradient.
        granularity (str): What one vector is: 'layer', the whole map of an image (B vectors);
            'channel', one channel of it (B * C vectors); 'pixel', the C values at one position
            (B * H * W vectors).
        eps (float): A vector whose norm is below this has no direction: its cosine and its gradient
            are 0. Defaults to 1e-8.

    Returns:
        Tensor: Scalar in [0, 2], float32, or float64 if an input is.

    Raises:
        ValueError: If the shapes differ, have fewer than 2 dimensions or are empty, if the
            granularity is unknown or eps is not positive.
        TypeError: If an input is not floating point.

    Examples:
        >>> import torch
        >>> student = torch.tensor([[[1.0, 0.0], [3.0, 0.0]]])  # 1 image, 2 channels, 2 positions
        >>> teacher = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
        >>> angular_distance(student, teacher, 'channel')  # angles of 90 and 0 degrees
        tensor(0.5000)
    """
    _check(student, teacher)
    if not eps > 0:
        raise ValueError(f'eps must be positive, got {eps}')
    if granularity == 'layer':
        dims = tuple(range(1, student.dim()))
    elif granularity == 'channel':
        # without positions, (B, C), a channel is a vector of one value
        if student.dim() == 2:
            student, teacher = student.unsqueeze(-1), teacher.unsqueeze(-1)
        dims = tuple(range(2, student.dim()))
    elif granularity == 'pixel':
        dims = (1,)
    else:
        raise ValueError(f'granularity must be one of {GRANULARITIES}, got {granularity!r}')
    return _AngularDistance.apply(student, teacher.detach(), dims, eps)


def naive_distance(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Naive feature distillation, Eq. (10): :math:`\|F^t - F^s\|^2 / N`, batch mean.

    Args:
        student (Tensor): Shape (B, C, ...), floating point. Receives the gradient.
        teacher (Tensor): The same shape. Receives no gradient.

    Returns:
        Tensor: Scalar, float32, or float64 if an input is.

    Raises:
        ValueError, TypeError: As :func:`angular_distance`.

    Examples:
        >>> import torch
        >>> naive_distance(torch.zeros(1, 2, 2), torch.full((1, 2, 2), 3.0))
        tensor(9.)
    """
    _check(student, teacher)
    dtype = compute_dtype(student, teacher)
    return torch.nn.functional.mse_loss(student.to(dtype), teacher.detach().to(dtype))


def magnitude_distance(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Magnitude Distillation (MD), Eq. (4) of the paper: :math:`(m - n)^2 / N`, batch mean.

    Args:
        student (Tensor): Shape (B, C, ...), floating point. Receives the gradient, which is 0 for
            a feature of norm 0.
        teacher (Tensor): The same shape. Receives no gradient.

    Returns:
        Tensor: Scalar, float32, or float64 if an input is.

    Raises:
        ValueError, TypeError: As :func:`angular_distance`.

    Examples:
        >>> import torch
        >>> student = torch.tensor([[3.0, 4.0]])  # norm 5
        >>> magnitude_distance(student, torch.tensor([[6.0, 8.0]]))  # (10 - 5) ** 2 / 2
        tensor(12.5000)
    """
    _check(student, teacher)
    dtype = compute_dtype(student, teacher)
    dims = tuple(range(1, student.dim()))
    difference = norm(teacher.detach().to(dtype), dims) - norm(student.to(dtype), dims)
    return difference.square().mean() / student[0].numel()


def normalized_distance(student: Tensor, teacher: Tensor, eps: float = 1e-8) -> Tensor:
    r"""NFD: mean squared error of features standardised per channel, batch mean.

    Each channel of each image has its mean over the positions subtracted and is divided by its
    standard deviation (arXiv 2207.05256). This is twice the channel-wise angular distance of the
    *centred* features. That the deviation is the population's, and eps, are assumptions.

    Args:
        student (Tensor): Shape (B, C, ...), floating point. Receives the gradient.
        teacher (Tensor): The same shape. Receives no gradient.
        eps (float): Added to the variance, so that a constant channel becomes 0. Defaults to 1e-8.

    Returns:
        Tensor: Scalar, float32, or float64 if an input is.

    Raises:
        ValueError: As :func:`angular_distance`, and if there are no positions, (B, C).
        TypeError: As :func:`angular_distance`.

    Examples:
        >>> import torch
        >>> student = torch.tensor([[[1.0, 2.0, 3.0]]])
        >>> normalized_distance(student, 10 * student + 5).item() < 1e-6
        True
    """
    _check(student, teacher)
    if student.dim() < 3:
        raise ValueError(
            'normalized_distance standardises over positions and needs (B, C, positions ...), '
            f'got shape {tuple(student.shape)}'
        )
    if not eps > 0:
        raise ValueError(f'eps must be positive, got {eps}')
    dtype = compute_dtype(student, teacher)
    dims = tuple(range(2, student.dim()))

    def standardize(feature: Tensor) -> Tensor:
        feature = feature.to(dtype)
        variance, mean = torch.var_mean(feature, dim=dims, correction=0, keepdim=True)
        return (feature - mean) * (variance + eps).rsqrt()

    return (standardize(teacher.detach()) - standardize(student)).square().mean()


def kl_divergence(student: Tensor, teacher: Tensor, tau: float = 1.0) -> Tensor:
    r"""Canonical distillation (Hinton et al., arXiv 1503.02531): KL divergence of the class scores.

    With :math:`p = \mathrm{softmax}(F / \tau)` over the channels at each position, it is
    :math:`\tau^2 \sum_c p^t_c \log(p^t_c / p^s_c)`, the mean over positions and images. The factor
    :math:`\tau^2` keeps the size of the gradient where tau changes.

    MMRazor's ``KLDivergence`` divides the sum by the number of images alone. It is this value times the
    number of positions, and the same for scores of shape (B, C).

    One channel is the score of the second of two classes whose first one has the score 0, as in
    MMSegmentation's heads with ``out_channels=1``: the softmax is then the sigmoid.

    Args:
        student (Tensor): Scores before the softmax, shape (B, C, ...), floating point. Receives the
            gradient.
        teacher (Tensor): The same shape. Receives no gradient.
        tau (float): Temperature, positive and finite. Defaults to 1.0.

    Returns:
        Tensor: Scalar, not negative but for rounding, float32, or float64 if an input is.

    Raises:
        ValueError: As :func:`angular_distance`, and if tau is not positive and finite.
        TypeError: As :func:`angular_distance`.

    Examples:
        >>> import torch
        >>> student = torch.tensor([[0.0, 0.0]])  # both classes 1/2
        >>> kl_divergence(student, torch.tensor([[1000.0, 0.0]]))  # surely the first: log 2
        tensor(0.6931)
    """
    _check(student, teacher)
    if not (tau > 0 and math.isfinite(tau)):
        raise ValueError(f'tau must be positive and finite, got {tau}')
    dtype = compute_dtype(student, teacher)
    student, teacher = student.to(dtype), teacher.detach().to(dtype)
    if student.shape[1] == 1:
        student = torch.cat([torch.zeros_like(student), student], dim=1)
        teacher = torch.cat([torch.zeros_like(teacher), teacher], dim=1)
    log_s, log_t = (student / tau).log_softmax(dim=1), (teacher / tau).log_softmax(dim=1)
    p_s, p_t = log_s.exp(), log_t.exp()
    # The differences of the probabilities sum to 0. With them each term is 0 or more and has its
    # minimum where both are the same, so that the rounding of the logarithms cancels.
    terms = p_t * (log_t - log_s) + (p_s - p_t)
    return tau**2 * terms.sum(dim=1).mean()


class FeatureGeometry(NamedTuple):
    r"""What :func:`decompose` returns; every entry has shape (B,).

    Attributes:
        student_norm (Tensor): n.
        teacher_norm (Tensor): m.
        cosine (Tensor): :math:`\cos\theta`, 0 where a norm is 0.
        coupling (Tensor): :math:`mn/N`, what scales the angular term (Fig. 8 of the supplement).
        magnitude_term (Tensor): :math:`(m - n)^2 / N`.
        angular_term (Tensor): :math:`2mn (1 - \cos\theta) / N`.
    """

    student_norm: Tensor
    teacher_norm: Tensor
    cosine: Tensor
    coupling: Tensor
    magnitude_term: Tensor
    angular_term: Tensor


def decompose(student: Tensor, teacher: Tensor) -> FeatureGeometry:
    r"""Split naive feature distillation into its terms, Eq. (10), for each image.

    The mean over the batch of ``magnitude_term + angular_term`` is :func:`naive_distance`.

    Args:
        student (Tensor): Shape (B, C, ...), floating point. Receives the gradient of whatever is
            computed from the result.
        teacher (Tensor): The same shape. Receives no gradient.

    Returns:
        FeatureGeometry: Named tuple of tensors of shape (B,), float32, or float64 if an input is.

    Raises:
        ValueError, TypeError: As :func:`angular_distance`.

    Examples:
        >>> import torch
        >>> geometry = decompose(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]]))
        >>> geometry.coupling, geometry.magnitude_term, geometry.angular_term.round(decimals=2)
        (tensor([6.]), tensor([0.5000]), tensor([12.]))
    """
    _check(student, teacher)
    dtype = compute_dtype(student, teacher)
    dims = tuple(range(1, student.dim()))
    s, t = student.to(dtype), teacher.detach().to(dtype)
    n, m = norm(s, dims), norm(t, dims)
    product = m * n
    undirected = (n == 0) | (m == 0)
    unit_s = s / torch.where(undirected, 1, n)
    unit_t = t / torch.where(undirected, 1, m)
    # 1 - cos = |x - y|^2 / 2 for unit vectors keeps its digits where 1 - x.y would cancel
    distance = torch.where(undirected, 1, norm(unit_s - unit_t, dims).square() / 2)
    # NaN and infinity must reach the result: only zero vectors have no direction.
    distance = torch.where(product.isfinite(), distance, torch.nan).flatten()
    n, m, product = n.flatten(), m.flatten(), product.flatten()
    size = student[0].numel()
    coupling = product / size
    return FeatureGeometry(
        student_norm=n,
        teacher_norm=m,
        cosine=1 - distance,
        coupling=coupling,
        magnitude_term=(m - n).square() / size,
        angular_term=2 * coupling * distance,
    )
