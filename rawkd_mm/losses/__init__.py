"""Distillation losses, registered in MMRazor's MODELS."""

from .feature_losses import CADLoss, LADLoss, MagnitudeLoss, NaiveFeatureLoss, NFDLoss, PADLoss
from .fgd_loss import FGDLoss

__all__ = [
    'CADLoss',
    'FGDLoss',
    'LADLoss',
    'MagnitudeLoss',
    'NFDLoss',
    'NaiveFeatureLoss',
    'PADLoss',
]
