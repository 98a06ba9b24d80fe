"""MMEngine hooks, registered in its root HOOKS."""

from .feature_geometry_hook import FeatureGeometryHook
from .label_range_hook import LabelRangeHook
from .non_finite_loss_hook import NonFiniteLossError, NonFiniteLossHook
from .razor_visualization_hook import RazorVisualizationHook
from .resumable_checkpoint_hook import ResumableCheckpointHook, TrainingInterrupted
from .stop_distill_hook import StopDistillHook
from .teacher_sanity_hook import TeacherSanityHook, WrongTeacherError
from .training_hooks import register_training_hooks
from .unlabelled_images_hook import UnlabelledImagesHook

__all__ = [
    'FeatureGeometryHook',
    'LabelRangeHook',
    'NonFiniteLossError',
    'NonFiniteLossHook',
    'RazorVisualizationHook',
    'ResumableCheckpointHook',
    'StopDistillHook',
    'TeacherSanityHook',
    'TrainingInterrupted',
    'UnlabelledImagesHook',
    'WrongTeacherError',
    'register_training_hooks',
]
