"""The frozen teacher: how far it runs, its images, what it computes in, and its weights."""

from . import external
from .external import ExternalTeacher, teacher_from_name
from .feature_summary import FeatureSummary, ImageSummary, participation_ratio
from .frozen_teacher import FrozenTeacher, build_teacher
from .images import make_renormalize
from .input_size import TeacherInput
from .sharing import SharedTeacher
from .speed import PRECISIONS, SpeedSettings, TeacherCompute
from .speed_search import SpeedOptions, SpeedResult, SpeedRow, list_candidates, search_speed
from .untrained import initial_vectors, shuffled_weights
from .weights import LoadedWeights, load_teacher

__all__ = [
    'PRECISIONS',
    'ExternalTeacher',
    'FeatureSummary',
    'FrozenTeacher',
    'ImageSummary',
    'LoadedWeights',
    'SharedTeacher',
    'SpeedOptions',
    'SpeedResult',
    'SpeedRow',
    'SpeedSettings',
    'TeacherCompute',
    'TeacherInput',
    'build_teacher',
    'external',
    'initial_vectors',
    'list_candidates',
    'load_teacher',
    'make_renormalize',
    'participation_ratio',
    'search_speed',
    'shuffled_weights',
    'teacher_from_name',
]
