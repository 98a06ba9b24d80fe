"""Naming a feature, recording it, listing features and choosing them."""

from .choosing import (
    AutoFeatureError,
    Feature,
    find_classifier,
    find_features,
    find_memory,
    has_classifier,
    match_features,
    measure_feature,
)
from .dry_run import DryRun, blank_samples, dry_run, run_for_features, run_to_last_feature
from .gradient import learning_parameters
from .listing import ListedFeature, list_features, partners
from .mmrazor_adapter import FeatureRecorder
from .probe import NO_SINGLE_IMAGES, image_channels, without_traces
from .recorder import FeatureCapture
from .source import FeatureSource
from .unlabelled import UnlabelledBatch, is_unlabelled

__all__ = [
    'AutoFeatureError',
    'DryRun',
    'Feature',
    'FeatureCapture',
    'FeatureRecorder',
    'FeatureSource',
    'UnlabelledBatch',
    'blank_samples',
    'ListedFeature',
    'NO_SINGLE_IMAGES',
    'dry_run',
    'find_classifier',
    'find_features',
    'find_memory',
    'has_classifier',
    'image_channels',
    'is_unlabelled',
    'learning_parameters',
    'list_features',
    'match_features',
    'measure_feature',
    'partners',
    'run_for_features',
    'run_to_last_feature',
    'without_traces',
]
