"""MMEngine hooks, registered in its root HOOKS."""

from .feature_geometry_hook import FeatureGeometryHook

__all__ = ['FeatureGeometryHook']
