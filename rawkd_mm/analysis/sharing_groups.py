"""Which trainings of a sweep can share a teacher in one process."""

import json
from collections.abc import Sequence
from typing import NamedTuple

from .one_training import Training

# Keys of the settings that decide what the teacher is, what it sees, and how the process is set up.
_SAME = (
    'gpus',
    'teacher_sha256',
    'runner_type',
    'default_scope',
    'custom_imports',
    'env_cfg',
    'randomness',
    'train_cfg.type',
    'train_cfg.by_epoch',
    'train_dataloader',
    'data_preprocessor',
    'model.type',
    'model.data_preprocessor',
    'model.architecture.data_preprocessor',
    'model.allow_random_teacher',
    'model.teacher',
    'model.teacher_ckpt',
    'model.teacher_input',
    'model.teacher_speed',
    'model.teacher_precision',
    'model.teacher_channels_last',
    'model.teacher_compile',
    'model.teacher_module_inplace',
)


class Group(NamedTuple):
    """Trainings of one process.

    Attributes:
        trainings: One or more; those of a group have the same teacher and see the same batches.
        reason: Why they are not in the first group of the sweep; '' for that itself.
    """

    trainings: list[Training]
    reason: str

    @property
    def text(self) -> str:
        """A line for the log."""
        labels = ', '.join(training.label for training in self.trainings)
        line = f'share a teacher: {labels}' if len(self.trainings) > 1 else f'by itself: {labels}'
        return f'{line} ({self.reason})' if self.reason else line


def sharing_groups(trainings: Sequence[Training]) -> list[Group]:
    """Put the trainings together that can share a teacher.

    The weights of losses, losses, features, students, optimizers and schedules may differ.

    Args:
        trainings (Sequence[Training]): Of a sweep.

    Returns:
        list[Group]: In the order of their first trainings. The student alone is by itself, and so is a
        training that looks for the teacher's fastest settings.
    """
    groups: dict[str, list[Training]] = {}
    reasons, first = {}, None
    for training in trainings:
        # an option that is None is one that is not there
        same = {k: v for k, v in training.settings.items() if _decides(k) and v != 'None'}
        key = json.dumps(same, sort_keys=True)
        reason = _obstacle(training)
        if reason:
            key = training.label
        elif first is None:
            first = same
        elif same != first:
            reason = _difference(same, first)
        groups.setdefault(key, []).append(training)
        reasons.setdefault(key, reason)
    return [Group(group, reasons[key]) for key, group in groups.items()]


def _decides(key: str) -> bool:
    return any(f'{key}.'.startswith(f'{same}.') for same in _SAME)


def _obstacle(training: Training) -> str:
    settings = training.settings
    if not any(f'{key}.'.startswith('model.teacher.') for key in settings):
        return 'it has no teacher'
    speed = [k for k in settings if f'{k}.'.startswith('model.teacher_speed.')]
    if speed and settings[speed[0]] != 'None':
        return (
            'teacher_speed looks for the settings of each training on its own: give '
            'model.teacher_speed=None with --cfg-options to share'
        )
    return ''


def _difference(own: dict, first: dict) -> str:
    key = min(k for k in own.keys() | first.keys() if own.get(k) != first.get(k))
    return f'{key} is {own.get(key)}, and {first.get(key)} of those above'
