"""The frozen teacher: how far it runs, its images, what it computes in, and its weights."""

from . import external
from .external import ExternalTeacher, teacher_from_name
from .frozen_teacher import FrozenTeacher, build_teacher
from .images import make_renormalize
from .input_size import TeacherInput
from .speed import PRECISIONS, TeacherCompute
from .weights import LoadedWeights, load_teacher

__all__ = [
    'PRECISIONS',
    'ExternalTeacher',
    'FrozenTeacher',
    'LoadedWeights',
    'TeacherCompute',
    'TeacherInput',
    'build_teacher',
    'external',
    'load_teacher',
    'make_renormalize',
    'teacher_from_name',
]
