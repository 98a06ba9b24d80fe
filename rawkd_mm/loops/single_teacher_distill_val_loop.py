"""A validation of the student and of its teacher."""

import mmrazor.engine
import torch
from mmengine.evaluator import Evaluator
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner, ValLoop, autocast
from mmrazor.engine.runner.distill_val_loop import SingleTeacherDistillValLoop as _RazorsLoop
from mmrazor.registry import LOOPS
from torch.utils.data import DataLoader

from ..algorithms import FrozenTeacherDistill
from ..hooks.teacher_sanity_hook import check_evaluation


@LOOPS.register_module(name='SingleTeacherDistillValLoop', force=True)
class SingleTeacherDistillValLoop(_RazorsLoop):
    """MMRazor's loop of this name, in its place: validates the student, then its teacher.

    The teacher's metrics are called ``teacher.mIoU`` and so on. What is different, for a
    ``FrozenTeacherDistill``; with MMRazor's own algorithms the loop is MMRazor's:

    - The teacher gets its own images, made from the student's, and computes in its own precision.
      MMRazor gives it the student's ``data_preprocessor``, so that a teacher that is normalised
      otherwise seems to be bad.
    - Hooks see one epoch of validation. MMRazor begins a second one that never ends, and an EMA hook
      leaves its averages in the student.
    - Hooks do not see the teacher's predictions as if they were the student's: pictures of the
      validation are of the student.
    - The training draws the random numbers that it would draw without the teacher's part.

    Args:
        runner (Runner): Has the model.
        dataloader (DataLoader | dict): Of the validation.
        evaluator (Evaluator | dict | list): Of both models.
        fp16 (bool): Whether the student predicts in mixed precision; the teacher too, unless it has
            a ``teacher_precision``. Defaults to False.

    Raises:
        WrongTeacherError: When it is built, if parts of the teacher are random, it has another
            number of classes than the data set, or it has no head (one of another library).
    """

    def __init__(
        self,
        runner: Runner,
        dataloader: DataLoader | dict,
        evaluator: Evaluator | dict | list,
        fp16: bool = False,
    ) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self._distillation = model if isinstance(model, FrozenTeacherDistill) else None
        if self._distillation is None:
            super().__init__(runner, dataloader, evaluator, fp16)
            return
        # not MMRazor's, which gives the teacher another data_preprocessor
        ValLoop.__init__(self, runner, dataloader, evaluator, fp16)
        check_evaluation(
            model, self.dataloader.dataset, type(self).__name__, "validate with 'ValLoop'"
        )

    def run(self) -> dict[str, float]:
        """Validate both.

        Returns:
            dict[str, float]: The student's metrics, and the teacher's below ``teacher.``.
        """
        if self._distillation is None:
            return super().run()
        self.runner.call_hook('before_val')
        self.runner.call_hook('before_val_epoch')
        self.runner.model.eval()
        for idx, batch in enumerate(self.dataloader):
            self.run_iter(idx, batch)
        metrics = dict(self.evaluator.evaluate(len(self.dataloader.dataset)))
        metrics.update((f'teacher.{name}', value) for name, value in self._teacher().items())
        self.runner.call_hook('after_val_epoch', metrics=metrics)
        self.runner.call_hook('after_val')
        return metrics

    @torch.no_grad()
    def _teacher(self) -> dict[str, float]:
        model = self._distillation
        with torch.random.fork_rng(devices=[]):
            for batch in self.dataloader:
                with autocast(enabled=self.fp16):
                    predictions = model.frozen_teacher.predict(batch, model.data_preprocessor)
                self.evaluator.process(data_samples=predictions, data_batch=batch)
            return self.evaluator.evaluate(len(self.dataloader.dataset))


# Imports from MMRazor must give this class too, as configs do.
mmrazor.engine.SingleTeacherDistillValLoop = SingleTeacherDistillValLoop
mmrazor.engine.runner.SingleTeacherDistillValLoop = SingleTeacherDistillValLoop
