"""Distillers and recorders, registered in MMRazor's MODELS and TASK_UTILS."""

from .feature_distiller import FeatureDistiller, FeaturePair, PairFeatures, run_for_features
from .feature_recorder import FeatureRecorder, FeatureSource

__all__ = [
    'FeatureDistiller',
    'FeaturePair',
    'FeatureRecorder',
    'FeatureSource',
    'PairFeatures',
    'run_for_features',
]
