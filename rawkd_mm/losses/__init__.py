"""Distillation losses, registered in MMRazor's MODELS."""

from .feature_losses import (
    CADLoss,
    KLLoss,
    LADLoss,
    MagnitudeLoss,
    NaiveFeatureLoss,
    NFDLoss,
    PADLoss,
)
from .fgd_loss import FGDLoss

__all__ = [
    'CADLoss',
    'FGDLoss',
    'KLLoss',
    'LADLoss',
    'MagnitudeLoss',
    'NFDLoss',
    'NaiveFeatureLoss',
    'PADLoss',
]
