"""What a distillation refuses, or warns of, when it is built."""

import logging

from mmengine.logging import print_log
from mmengine.model import BaseModel

from ..features.mmrazor_adapter import RazorSide
from ..teachers import ExternalTeacher, SpeedOptions
from ..training.build_model import number_of_classes

__all__ = ['check_compile', 'check_input', 'check_speed', 'check_teacher', 'warn_of_classes']


def check_teacher(
    is_trainable: bool, is_norm_eval: bool, filename: str | None, may_be_random: bool
) -> None:
    """Check the arguments of the teacher.

    Args:
        is_trainable (bool): ``teacher_trainable``.
        is_norm_eval (bool): ``teacher_norm_eval``.
        filename (str | None): ``teacher_ckpt``.
        may_be_random (bool): ``allow_random_teacher``.

    Raises:
        ValueError: If the teacher should be trained, or has no weights.
    """
    if is_trainable or not is_norm_eval:
        raise ValueError(
            'FrozenTeacherDistill freezes its teacher: teacher_trainable must be False and '
            f'teacher_norm_eval True, got {is_trainable} and {is_norm_eval}. Use '
            "MMRazor's SingleTeacherDistill to train a teacher."
        )
    if not filename and not may_be_random:
        raise ValueError(
            f'teacher_ckpt={filename!r}: a teacher needs its trained weights. Give the path '
            'or URL of its checkpoint (on the command line: --cfg-options '
            'model.teacher_ckpt=PATH); for a test with a random teacher, '
            'allow_random_teacher=True.'
        )


def warn_of_classes(student: BaseModel, teacher: BaseModel) -> None:
    """Warn if student and teacher have different numbers of classes. This may be intended."""
    if isinstance(teacher, ExternalTeacher):  # it is there for its features
        return
    of_student, of_teacher = number_of_classes(student), number_of_classes(teacher)
    if None not in (of_student, of_teacher) and of_student != of_teacher:
        print_log(
            f'The student has {of_student} classes and the teacher {of_teacher}. Features before '
            'the classifiers can be distilled all the same, if the teacher knows what is in the '
            'images. The outputs of the two models mean different things.',
            'current',
            logging.WARNING,
        )


def check_compile(graphs: bool | dict, razor: RazorSide) -> None:
    """Refuse graphs that would hide what MMRazor's recorders record.

    Args:
        graphs (bool | dict): ``teacher_compile``.
        razor (RazorSide): MMRazor's recorders of the teacher.

    Raises:
        ValueError: If something else than modules is recorded.
    """
    if graphs is not False and razor.needs_whole_forward:
        raise ValueError(
            'teacher_compile needs recorders of the outputs or inputs of modules: what methods '
            'and functions return cannot be recorded from within a graph. Record modules, or '
            'set teacher_compile=False.'
        )


def check_speed(options: SpeedOptions | None, razor: RazorSide) -> None:
    """Refuse to look for settings where the teacher cannot run again for the same student.

    Args:
        options (SpeedOptions | None): ``teacher_speed``.
        razor (RazorSide): MMRazor's recorders of the teacher.

    Raises:
        ValueError: If something else than modules is recorded, or anything is delivered.
    """
    if options is not None and razor.needs_whole_forward:
        raise ValueError(
            'teacher_speed needs recorders of the outputs or inputs of modules: with recorders of '
            'methods and functions, and with deliveries, the teacher cannot run again for the same '
            'student. Record modules, or leave out teacher_speed and set teacher_precision and '
            'teacher_channels_last by hand.'
        )


def check_input(teacher_input: dict | None, razor: RazorSide) -> None:
    """Refuse another size of images where the teacher computes losses with the student's labels.

    Args:
        teacher_input (dict | None): Of the config.
        razor (RazorSide): MMRazor's recorders of the teacher.

    Raises:
        ValueError: If something else than modules is recorded.
    """
    if teacher_input is not None and razor.needs_whole_forward:
        raise ValueError(
            f'teacher_input={teacher_input!r} needs recorders of the outputs or inputs of modules: '
            "for the others the teacher computes its losses, with labels of the student's size. Record "
            'modules, or leave out teacher_input.'
        )
