"""The frozen teacher of a distillation."""

from .frozen_teacher import FrozenTeacher, build_model, build_teacher, number_of_classes

__all__ = ['FrozenTeacher', 'build_model', 'build_teacher', 'number_of_classes']
