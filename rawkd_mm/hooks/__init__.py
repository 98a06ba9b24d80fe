"""MMEngine hooks, registered in its root HOOKS."""

from .feature_geometry_hook import FeatureGeometryHook
from .resumable_checkpoint_hook import ResumableCheckpointHook, TrainingInterrupted

__all__ = ['FeatureGeometryHook', 'ResumableCheckpointHook', 'TrainingInterrupted']
