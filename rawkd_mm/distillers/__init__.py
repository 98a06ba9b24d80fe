"""Distillers and recorders, registered in MMRazor's MODELS and TASK_UTILS."""

from .auto_features import (
    AutoFeatureError,
    Feature,
    find_classifier,
    find_features,
    match_features,
    measure_feature,
)
from .feature_distiller import FeatureDistiller, FeaturePair, PairFeatures, run_for_features
from .feature_listing import ListedFeature, list_features, partners
from .feature_recorder import FeatureRecorder, FeatureSource

__all__ = [
    'AutoFeatureError',
    'Feature',
    'FeatureDistiller',
    'FeaturePair',
    'FeatureRecorder',
    'FeatureSource',
    'PairFeatures',
    'ListedFeature',
    'find_classifier',
    'find_features',
    'list_features',
    'match_features',
    'measure_feature',
    'partners',
    'run_for_features',
]
