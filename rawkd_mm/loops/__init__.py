"""Loops of MMEngine's Runner that stand in the place of MMRazor's."""

from .single_teacher_distill_val_loop import SingleTeacherDistillValLoop

__all__ = ['SingleTeacherDistillValLoop']
