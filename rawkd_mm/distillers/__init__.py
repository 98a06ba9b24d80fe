"""Distillers, registered in MMRazor's MODELS: pairs of features become losses."""

from .feature_distiller import FeatureDistiller, FeaturePair, PairFeatures

__all__ = ['FeatureDistiller', 'FeaturePair', 'PairFeatures']
