"""Distillation algorithms, registered in MMRazor's MODELS."""

from ..teachers import FrozenTeacher
from .frozen_teacher_distill import FrozenTeacherDistill

__all__ = ['FrozenTeacher', 'FrozenTeacherDistill']
