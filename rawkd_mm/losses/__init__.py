"""Distillation losses, registered in MMRazor's MODELS."""

from .feature_losses import CADLoss, LADLoss, MagnitudeLoss, NaiveFeatureLoss, NFDLoss, PADLoss

__all__ = ['CADLoss', 'LADLoss', 'MagnitudeLoss', 'NFDLoss', 'NaiveFeatureLoss', 'PADLoss']
