"""MMEngine hooks, registered in its root HOOKS."""

from .feature_geometry_hook import FeatureGeometryHook
from .label_range_hook import LabelRangeHook
from .non_finite_loss_hook import NonFiniteLossError, NonFiniteLossHook
from .resumable_checkpoint_hook import ResumableCheckpointHook, TrainingInterrupted
from .teacher_sanity_hook import TeacherSanityHook, WrongTeacherError

__all__ = [
    'FeatureGeometryHook',
    'LabelRangeHook',
    'NonFiniteLossError',
    'NonFiniteLossHook',
    'ResumableCheckpointHook',
    'TeacherSanityHook',
    'TrainingInterrupted',
    'WrongTeacherError',
]
