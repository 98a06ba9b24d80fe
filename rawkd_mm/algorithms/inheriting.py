"""What a student inherits of its teacher: ``init_student``."""

from collections.abc import Sequence

from torch import nn

from ..training.errors import listing

__all__ = ['check_init_student', 'inherited_names']


def check_init_student(init_student: Sequence[str] | None, teacher_ckpt: str | None) -> None:
    """Check what a config says of the parts that the student inherits.

    Args:
        init_student (Sequence[str], optional): Paths of modules.
        teacher_ckpt (str, optional): Of the teacher.

    Raises:
        TypeError: If ``init_student`` is no list of paths.
        ValueError: If there is no checkpoint to inherit from.
    """
    if init_student is None:
        return
    is_list = isinstance(init_student, Sequence) and not isinstance(init_student, str)
    if not is_list or not all(isinstance(x, str) for x in init_student):
        raise TypeError(
            "init_student must be a list of paths of modules, such as ['neck', 'bbox_head'], "
            f'got {init_student!r}'
        )
    if init_student and not teacher_ckpt:
        raise ValueError(
            f'init_student={list(init_student)!r} copies the trained weights of the teacher to '
            f'the student, but teacher_ckpt={teacher_ckpt!r} gives none. Set teacher_ckpt, or '
            'init_student=None for a test with a random teacher.'
        )


def inherited_names(paths: Sequence[str], student: nn.Module, teacher: nn.Module) -> list[str]:
    """List the parameters and buffers of some modules; both models need the same names and shapes.

    Raises:
        ValueError: If there are none, or they differ; lists all that do, with both shapes.
    """
    names, different = [], []
    shapes = [{n: tuple(v.shape) for n, v in m.state_dict().items()} for m in (student, teacher)]
    for path in paths:
        below = [{n: s for n, s in x.items() if f'{n}.'.startswith(f'{path}.')} for x in shapes]
        for role, model, found in zip(('student', 'teacher'), (student, teacher), below):
            if not found:
                raise ValueError(
                    f'init_student: the {role} {type(model).__name__} has no parameters below '
                    f'{path!r}; it has {", ".join(n for n, _ in model.named_children())}'
                )
        names += below[0]
        for name in dict.fromkeys([*below[0], *below[1]]):
            of_student, of_teacher = (str(x.get(name, 'missing')) for x in below)
            if of_student != of_teacher:
                different.append(f'{name}: student {of_student}, teacher {of_teacher}')
    if different:
        raise ValueError(
            f'init_student={list(paths)!r}: the student cannot begin with the weights of the '
            f'teacher, {len(different)} of them differ{listing(different)}. Leave out the modules '
            'that the two models do not share.'
        )
    return list(dict.fromkeys(names))
