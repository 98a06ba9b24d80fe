"""Distillers, registered in MMRazor's MODELS: pairs of features become losses."""

from .comparison import Comparison, PairFeatures
from .feature_distiller import FeatureDistiller
from .pairs import FeaturePair

__all__ = ['Comparison', 'FeatureDistiller', 'FeaturePair', 'PairFeatures']
