"""Naming a feature, recording it, listing features and choosing them."""

from .choosing import (
    FRAMES,
    TWO_KINDS,
    AutoFeatureError,
    Feature,
    detector_alone,
    find_classifier,
    find_features,
    find_memory,
    has_classifier,
    match_features,
    measure_feature,
)
from .dry_run import DryRun, blank_samples, dry_run, run_for_features, run_to_last_feature
from .gradient import learning_parameters
from .groups import single_images
from .listing import ListedFeature, list_features, partners
from .mmrazor_adapter import FeatureRecorder
from .probe import detector_within, image_channels, without_traces
from .recorder import FeatureCapture
from .source import FeatureSource
from .unlabelled import UnlabelledBatch, is_unlabelled

__all__ = [
    'FRAMES',
    'TWO_KINDS',
    'AutoFeatureError',
    'DryRun',
    'Feature',
    'FeatureCapture',
    'FeatureRecorder',
    'FeatureSource',
    'UnlabelledBatch',
    'ListedFeature',
    'blank_samples',
    'detector_alone',
    'detector_within',
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
    'single_images',
    'without_traces',
]
