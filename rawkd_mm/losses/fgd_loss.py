"""FGD: focal and global knowledge distillation for detectors."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ..registry import register_model
from .feature_losses import check_weight


class FGDTerms(NamedTuple):
    """The four terms of FGD without their weights, scalars.

    Attributes:
        foreground (Tensor): Masked squared difference of the features within the boxes.
        background (Tensor): The same outside of them.
        attention (Tensor): L1 distance of the spatial and the channel attention.
        context (Tensor): Squared difference of what the global context blocks give.
    """

    foreground: Tensor
    background: Tensor
    attention: Tensor
    context: Tensor


def attention_maps(feature: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    r"""Where and in which channels a feature is large.

    .. math::
        A_S = HW \, softmax_{hw}(mean_c |F| / T), \quad A_C = C \, softmax_c(mean_{hw} |F| / T)

    Args:
        feature (Tensor): F, shape (B, C, H, W).
        temperature (float): T.

    Returns:
        tuple[Tensor, Tensor]: Spatial attention, shape (B, H, W), and channel attention, (B, C);
        the mean of each is 1.
    """
    absolute = feature.abs()
    spatial = absolute.mean(1).flatten(1) / temperature
    channel = absolute.mean((2, 3)) / temperature
    return (
        (spatial.softmax(1) * spatial.shape[1]).view_as(feature[:, 0]),
        channel.softmax(1) * channel.shape[1],
    )


def box_masks(
    boxes: Sequence[Tensor],
    image_sizes: Sequence[tuple[int, int]],
    map_size: tuple[int, int],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Masks of foreground and background on a feature map.

    A box becomes the cells from the floor of its left and top edge to the ceiling of its right and
    bottom edge, both included, as in the reference code: one row and one column more than it
    touches, and at least one cell even if it has no area. Cells outside of the
    map count in the size of the box, but not in the mask.

    Args:
        boxes (Sequence[Tensor]): For each image its boxes, shape (n, 4): left, top, right, bottom in
            pixels. n may be 0.
        image_sizes (Sequence[tuple[int, int]]): Height and width in pixels of what became the whole
            feature map of each image: the padded size.
        map_size (tuple[int, int]): H, W of the feature map.
        dtype (torch.dtype): Of the masks.

    Returns:
        tuple[Tensor, Tensor]: Of shape (B, H, W): the foreground mask, the largest 1 / (height *
        width in cells) of the boxes that cover a cell, 0 where none does; the background mask, equal
        values that sum to 1 over the other cells of an image, all 0 if there is no other.
    """
    height, width = map_size
    rows = torch.arange(height, device=boxes[0].device)
    columns = torch.arange(width, device=boxes[0].device)
    masks = []
    for corners, (image_height, image_width) in zip(boxes, image_sizes):
        corners = corners.to(dtype)
        # one factor: for a stride that is a power of 2 it is exact, and so are the edges
        left, right = (corners[:, i] * (width / image_width) for i in (0, 2))
        top, bottom = (corners[:, i] * (height / image_height) for i in (1, 3))
        left, right, top, bottom = left.floor(), right.ceil(), top.floor(), bottom.ceil()
        in_rows = (rows >= top[:, None]) & (rows <= bottom[:, None])
        in_columns = (columns >= left[:, None]) & (columns <= right[:, None])
        covered = in_rows[:, :, None] & in_columns[:, None, :]
        share = 1 / ((bottom + 1 - top) * (right + 1 - left))
        weights = torch.where(covered, share[:, None, None], 0)
        # an image without boxes has nothing to take the maximum of
        masks.append(weights.amax(0) if len(weights) else weights.new_zeros(map_size))
    foreground = torch.stack(masks)
    background = (foreground == 0).to(dtype)
    cells = background.sum((1, 2), keepdim=True)
    return foreground, background / cells.clamp(min=1)


def _boxes_of(samples: Sequence[BaseDataElement]) -> tuple[list[Tensor], list[tuple[int, int]]]:
    """Boxes of each image in pixels, and the padded size of the images."""
    boxes, sizes = [], []
    for i, sample in enumerate(samples):
        bboxes = sample.get('gt_instances', {}).get('bboxes')
        if bboxes is None:
            raise ValueError(
                f'FGDLoss needs the boxes of every image; data sample {i} of the batch has no '
                f'gt_instances.bboxes, only {sorted(sample.keys())}. Use it with a detector and a '
                'pipeline that loads boxes (LoadAnnotations with with_bbox=True).'
            )
        if hasattr(bboxes, 'convert_to'):  # a box type of MMDetection
            bboxes = bboxes.convert_to('hbox').tensor
        if bboxes.dim() != 2 or bboxes.shape[1] != 4:
            raise ValueError(
                'FGDLoss needs boxes of shape (n, 4): left, top, right, bottom; data sample '
                f'{i} of the batch has {tuple(bboxes.shape)}'
            )
        size = sample.metainfo.get('batch_input_shape')
        if size is None:
            raise ValueError(
                "FGDLoss needs metainfo['batch_input_shape'], height and width of the padded batch, "
                f'to place the boxes on the feature map; data sample {i} has only '
                f"{sorted(sample.metainfo)}. MMDetection's DetDataPreprocessor sets it."
            )
        boxes.append(bboxes.detach())
        sizes.append(tuple(size))
    return boxes, sizes


@register_model
class FGDLoss(nn.Module):
    r"""FGD, focal and global knowledge distillation for detectors (arXiv 2111.11837).

    For the features F_s and F_t of B images, with the attention maps of :func:`attention_maps`, the
    masks of :func:`box_masks` and R of :class:`GlobalContextConnector`,

    .. math::
        L = \frac{1}{B} \sum [ (\alpha M_{fg} + \beta M_{bg}) A_S^t A_C^t (F_t - F_s)^2
            + \gamma (|A_S^t - A_S^s| + |A_C^t - A_C^s|) + \lambda (R_t(F_t) - R_s(F_s))^2 ]

    each sum over the channels and positions of all images.

    The reference code scales the boxes by the size of each image before padding, so that in a batch
    of images of different sizes the masks are stretched away from their objects. This one scales
    them by the padded size, ``batch_input_shape``, which is what the feature map covers.

    >>> distiller = dict(
    ...     type='FeatureDistiller',
    ...     loss=dict(type='FGDLoss'),
    ...     student_connector=dict(type='GlobalContextConnector', in_channels='auto'),
    ...     teacher_connector=dict(type='GlobalContextConnector', in_channels='auto'),
    ...     pairs=[dict(student='neck[0]', teacher='neck[0]')])

    Args:
        alpha (float): Weight of the foreground. Defaults to 1e-3; all defaults are those of the
            reference code, meant for one-stage detectors (its RetinaNet config has gamma 5e-4).
        beta (float): Weight of the background. Defaults to 5e-4.
        gamma (float): Weight of the attention. Defaults to 1e-3.
        lambda_ (float): Weight of the global context. Defaults to 5e-6.
        temperature (float): T of the attention, positive. Defaults to 0.5.

    Raises:
        ValueError: If a weight is negative or not finite, or the temperature not positive.
        TypeError: If one of them is not a number.
    """

    # as FeatureLoss
    any_layout = True

    def __init__(
        self,
        alpha: float = 1e-3,
        beta: float = 5e-4,
        gamma: float = 1e-3,
        lambda_: float = 5e-6,
        temperature: float = 0.5,
    ) -> None:
        super().__init__()
        self.weights = FGDTerms(
            check_weight('alpha', alpha),
            check_weight('beta', beta),
            check_weight('gamma', gamma),
            check_weight('lambda_', lambda_),
        )
        if check_weight('temperature', temperature) == 0:
            raise ValueError(f'temperature must be positive, got {temperature}')
        self.temperature = temperature

    def terms(
        self,
        preds_S: tuple[Tensor, Tensor],  # noqa: N803 (MMRazor's names)
        preds_T: tuple[Tensor, Tensor],  # noqa: N803
        data_samples: Sequence[BaseDataElement],
    ) -> FGDTerms:
        """Compute the terms without their weights; arguments and errors as :meth:`forward`."""
        student, student_context = preds_S
        teacher, teacher_context = preds_T
        teacher = teacher.detach()
        shapes = [tuple(x.shape) for x in (student, student_context, teacher, teacher_context)]
        if len(set(shapes)) > 1 or student.dim() != 4 or student.numel() == 0:
            raise ValueError(
                'FGDLoss needs features and contexts of one shape (B, C, H, W), not empty; got '
                f'{shapes[0]} and {shapes[1]} of the student, {shapes[2]} and {shapes[3]} of the '
                'teacher'
            )
        if len(data_samples) != len(student):
            raise ValueError(
                f'FGDLoss needs a data sample for each of the {len(student)} images of the '
                f'features, got {len(data_samples)}'
            )
        dtype = torch.promote_types(
            torch.float32, torch.promote_types(student.dtype, teacher.dtype)
        )
        student, student_context, teacher, teacher_context = (
            x.to(dtype) for x in (student, student_context, teacher, teacher_context)
        )
        boxes, sizes = _boxes_of(data_samples)
        foreground, background = box_masks(
            [b.to(student.device) for b in boxes], sizes, tuple(student.shape[2:]), dtype
        )
        spatial_s, channel_s = attention_maps(student, self.temperature)
        spatial_t, channel_t = attention_maps(teacher, self.temperature)
        difference = (teacher - student).square() * channel_t[:, :, None, None]
        difference = difference.sum(1) * spatial_t
        batch = len(student)
        return FGDTerms(
            foreground=(foreground * difference).sum() / batch,
            background=(background * difference).sum() / batch,
            attention=((spatial_t - spatial_s).abs().sum() + (channel_t - channel_s).abs().sum())
            / batch,
            context=(teacher_context - student_context).square().sum() / batch,
        )

    def forward(
        self,
        preds_S: tuple[Tensor, Tensor],  # noqa: N803 (MMRazor's names)
        preds_T: tuple[Tensor, Tensor],  # noqa: N803
        data_samples: Sequence[BaseDataElement],
    ) -> Tensor:
        """Compute the weighted sum of the terms.

        Args:
            preds_S (tuple[Tensor, Tensor]): F_s and R_s(F_s), both of shape (B, C, H, W): what the
                student's ``GlobalContextConnector`` gives.
            preds_T (tuple[Tensor, Tensor]): F_t, which receives no gradient, and R_t(F_t).
            data_samples (Sequence[BaseDataElement]): Of the B images, each with
                ``gt_instances.bboxes`` in pixels of the padded image and ``batch_input_shape``.

        Returns:
            Tensor: Scalar, float32, or float64 if a feature is.

        Raises:
            ValueError: If the shapes differ or are empty, if there is not one data sample for each
                image, or one has no boxes or does not tell the padded size.
        """
        terms = self.terms(preds_S, preds_T, data_samples)
        return sum(weight * term for weight, term in zip(self.weights, terms))

    def extra_repr(self) -> str:
        """Show the weights where the model is printed."""
        alpha, beta, gamma, lambda_ = self.weights
        return f'{alpha=}, {beta=}, {gamma=}, {lambda_=}, temperature={self.temperature}'
