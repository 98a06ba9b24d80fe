"""Hooks and tools read and set attributes on the model; a distillation forwards them to its student."""

from typing import Any

from torch import nn

__all__ = ['StudentAttributes']


class StudentAttributes:
    """Gives an algorithm the attributes of its student; a mixin of an ``nn.Module``.

    What the algorithm has itself is its own. It has to set ``_is_built`` at the end of its
    constructor: from then on, new public attributes that are no modules or parameters go to the
    student.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            student = self.__dict__.get('_modules', {}).get('architecture')
            if student is None or name.startswith('__'):
                raise
        try:
            return getattr(student, name)
        except AttributeError:
            raise AttributeError(
                f'neither {type(self).__name__} nor its student {type(student).__name__} has an '
                f'attribute {name!r}'
            ) from None

    def __setattr__(self, name: str, value: Any) -> None:
        if self._is_of_student(name) and not isinstance(value, (nn.Module, nn.Parameter)):
            setattr(self.student, name, value)
        else:
            super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if self._is_of_student(name):
            delattr(self.student, name)
        else:
            super().__delattr__(name)

    def _is_of_student(self, name: str) -> bool:
        """Whether a public attribute belongs to the student and not to the algorithm."""
        own = self.__dict__
        if '_is_built' not in own or name.startswith('_') or name in own:
            return False
        kinds = ('_modules', '_parameters', '_buffers')
        return not hasattr(type(self), name) and all(name not in own[kind] for kind in kinds)
