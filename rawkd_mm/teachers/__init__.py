"""The frozen teacher: how far it runs, its images, what it computes in, and its weights."""

from .frozen_teacher import FrozenTeacher, build_teacher
from .images import make_renormalize
from .speed import PRECISIONS, TeacherCompute
from .weights import LoadedWeights, load_teacher

__all__ = [
    'PRECISIONS',
    'FrozenTeacher',
    'LoadedWeights',
    'TeacherCompute',
    'build_teacher',
    'load_teacher',
    'make_renormalize',
]
