"""Distillers and recorders, registered in MMRazor's MODELS and TASK_UTILS."""

from .feature_distiller import FeatureDistiller, FeaturePair, run_for_features
from .feature_recorder import FeatureRecorder, FeatureSource

__all__ = [
    'FeatureDistiller',
    'FeaturePair',
    'FeatureRecorder',
    'FeatureSource',
    'run_for_features',
]
