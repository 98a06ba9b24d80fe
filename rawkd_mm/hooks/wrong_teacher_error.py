"""The error of a teacher that is not what the config says."""

__all__ = ['WrongTeacherError']


class WrongTeacherError(ValueError):
    """The teacher is not what the config says; the message has the numbers."""
