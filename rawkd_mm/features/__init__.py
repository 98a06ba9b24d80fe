"""Naming a feature, recording it, listing features and choosing them."""

from .choosing import (
    AutoFeatureError,
    Feature,
    find_classifier,
    find_features,
    match_features,
    measure_feature,
)
from .dry_run import image_channels, run_for_features, without_traces
from .listing import ListedFeature, list_features, partners
from .recorder import FeatureRecorder, FeatureSource

__all__ = [
    'AutoFeatureError',
    'Feature',
    'FeatureRecorder',
    'FeatureSource',
    'ListedFeature',
    'find_classifier',
    'find_features',
    'image_channels',
    'list_features',
    'match_features',
    'measure_feature',
    'partners',
    'run_for_features',
    'without_traces',
]
