"""The global context block of FGD."""

import torch
from mmengine.model import BaseModule, kaiming_init
from torch import Tensor, nn

from ..registry import register_model


@register_model
class GlobalContextConnector(BaseModule):
    r"""Gives a feature, and the output of its global context block, for :class:`FGDLoss`.

    The second is (FGD, arXiv 2111.11837, after GCNet, arXiv 1904.11492)

    .. math::
        R(F) = F + W_2 ReLU(LN(W_1 \sum_j softmax_j(w_k F_j) F_j))

    with the positions j, a trained vector w_k and trained 1x1 convolutions W_1 from C to C/2 and W_2
    back to C channels. w_k begins with Kaiming's values (fan in), W_2 with 0, so that R(F) = F at
    first. Runs in the type of its parameters, float32 under autocast.

    Args:
        in_channels (int): C, at least 2.
        init_cfg (dict, optional): MMEngine's config of other initial values. Defaults to None.

    Raises:
        ValueError: If there are fewer than 2 channels.
    """

    # distillers make contiguous copies for connectors that do not say this
    any_layout = True

    def __init__(self, in_channels: int, init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg)
        if in_channels < 2:
            raise ValueError(f'in_channels must be at least 2, got {in_channels}')
        hidden = in_channels // 2
        self.key = nn.Conv2d(in_channels, 1, 1)
        self.transform = nn.Sequential(
            nn.Conv2d(in_channels, hidden, 1),
            nn.LayerNorm((hidden, 1, 1)),
            nn.ReLU(),
            nn.Conv2d(hidden, in_channels, 1),
        )
        kaiming_init(self.key, mode='fan_in')
        for parameter in self.transform[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Compute R(F).

        Args:
            feature (Tensor): F, shape (B, C, H, W).

        Returns:
            tuple[Tensor, Tensor]: F as it was given, and R(F) of the same shape.
        """
        with torch.autocast(feature.device.type, enabled=False):
            values = feature.to(self.key.weight.dtype)
            attention = self.key(values).flatten(2).softmax(dim=2)
            pooled = values.flatten(2) @ attention.transpose(1, 2)
            return feature, values + self.transform(pooled.unsqueeze(-1))
