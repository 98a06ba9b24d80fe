"""What a report is about: a training, the same student alone, and their models."""

import copy
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from ..registry import type_name
from ..training import (
    is_distillation,
    is_external_teacher,
    load_config,
    package_of,
    student_config,
    teacher_config,
)
from .work_dir import WorkDir

TEACHER, ALONE, DISTILLED = 'teacher', 'student alone', 'distilled'
NO_BASELINE = (
    'There is no student alone to compare with. Train one with tools/train.py CONFIG --student-alone, '
    'and add it with --baseline WORK_DIR.'
)


class ReportError(Exception):
    """The report cannot be written; the message says why and what to do."""


class Model(NamedTuple):
    """A model to evaluate.

    Attributes:
        cfg: Config with its model, and the data and evaluators of the report.
        checkpoint: Path or URL.
    """

    cfg: object
    checkpoint: str


class ReportSubject:
    """A training, the same student alone, and the models that they are made of.

    Args:
        work_dir (Path): Of the training.
        baseline (Path | None): Work dir of the same student trained alone. Defaults to None.
        teacher_ckpt (str | None): Path or URL of the teacher's weights. Defaults to None, the
            config's.
        cfg_options (dict | None): Entries that override those of the config. Defaults to None.

    Raises:
        ReportError: If the work dirs do not belong together.
        WorkDirError: If a work dir is none.
        UsageError: If a config names a model that does not exist.
    """

    def __init__(
        self,
        work_dir: Path,
        baseline: Path | None = None,
        teacher_ckpt: str | None = None,
        cfg_options: dict | None = None,
    ) -> None:
        self.run = WorkDir.find(work_dir)
        self.baseline = baseline and WorkDir.find(baseline)
        self.cfg = load_config(str(self.run.config_file), cfg_options)
        self.is_distillation = is_distillation(self.cfg)
        self.label = DISTILLED if self.is_distillation else 'this training'
        if teacher_ckpt:
            if not self.is_distillation:
                raise ReportError(f'--teacher-ckpt: {work_dir} is no distillation')
            self.cfg.model.teacher_ckpt = teacher_ckpt
        if self.baseline is not None:
            self.baseline_cfg = load_config(str(self.baseline.config_file))
            if is_distillation(self.baseline_cfg):
                raise ReportError(
                    f'--baseline: {baseline} is a distillation, too. Give the work dir of the '
                    'student alone; tools/train.py CONFIG --student-alone trains one.'
                )
        self.is_detection = package_of(self.cfg) == 'mmdet'
        self.percent = 100 if self.is_detection else 1
        self.notes = []
        self.has_no_losses = (
            self.is_distillation and self.cfg.model.get('calculate_student_loss') is False
        )
        self.can_validate = bool(self.cfg.get('val_dataloader') and self.cfg.get('val_evaluator'))
        if self.has_no_losses:
            self.notes.append(
                'The student learned from features alone (calculate_student_loss=False): what lies '
                'behind its last compared feature is as it was initialised, and so is what it predicts.'
            )
        if not self.can_validate:
            self.notes.append(
                'The config has no validation (val_dataloader, val_evaluator): no model is evaluated.'
            )
        self._note_progress()
        if baseline is None:
            self.notes.append(NO_BASELINE)

    def _note_progress(self) -> None:
        trainings = [(self.run, self.cfg)]
        if self.baseline is not None:
            trainings.append((self.baseline, self.baseline_cfg))
        for work_dir, cfg in trainings:
            done, length, unit = work_dir.progress(cfg)
            if length is not None and done < length:
                self.notes.append(
                    f'The training in {work_dir.folder} is not finished: {unit} {done} of {length}. '
                    'What follows is what it has logged and saved so far.'
                )

    @cached_property
    def models(self) -> dict[str, Model]:
        """The models to evaluate, by their column of the table.

        Raises:
            WorkDirError: If a work dir has no checkpoint.
            ReportError: If the teacher's weights are not there.
        """
        result = {}
        if self.is_distillation:
            checkpoint = self._teacher_checkpoint()
            if checkpoint is not None:
                result[TEACHER] = Model(teacher_config(self.cfg), checkpoint)
        if self.baseline is not None:
            cfg = copy.deepcopy(self.cfg)  # its data and evaluators
            cfg.model = student_config(self.baseline_cfg).model
            result[ALONE] = Model(cfg, str(self.baseline.find_checkpoint()))
        result[self.label] = Model(student_config(self.cfg), str(self.run.find_checkpoint()))
        return result

    def _teacher_checkpoint(self) -> str | None:
        checkpoint = self.cfg.model.get('teacher_ckpt')
        if not checkpoint:
            self.notes.append(
                'The config names no weights of the teacher (model.teacher_ckpt): it is left out.'
            )
            return None
        is_external = is_external_teacher(self.cfg)
        is_file = '://' not in checkpoint and not (is_external and checkpoint == 'pretrained')
        if is_file and not Path(checkpoint).is_file():
            raise ReportError(
                f"the teacher's weights are not there: {checkpoint!r} is no file (current folder: "
                f'{Path.cwd()}). Give them with --teacher-ckpt PATH, or leave out what needs them '
                'with --logs-only.'
            )
        if is_external:
            self.notes.append(
                f'The teacher, {type_name(self.cfg.model.teacher.type)}, gives features and has no '
                'head: it has no predictions and no metrics.'
            )
            return None
        student, teacher = (
            numbers_of_classes(make(self.cfg).model) for make in (student_config, teacher_config)
        )
        if student and teacher and not student & teacher:
            self.notes.append(
                f'The teacher tells {sorted(teacher)} classes apart, the student {sorted(student)}: '
                'it is not evaluated.'
            )
            return None
        return checkpoint


def numbers_of_classes(model) -> set[int]:
    """Find every num_classes in a model's config.

    Args:
        model: A config, or a part of it.

    Returns:
        set[int]: Empty if it tells none.
    """
    found = set()
    if isinstance(model, dict):
        if isinstance(model.get('num_classes'), int):
            found.add(model['num_classes'])
        model = list(model.values())
    if isinstance(model, (list, tuple)):
        for item in model:
            found |= numbers_of_classes(item)
    return found
