"""Ends a distillation before the training ends."""

import mmrazor.engine
from mmengine.model import is_model_wrapper
from mmengine.runner import EpochBasedTrainLoop, Runner
from mmrazor.engine.hooks.stop_distillation_hook import StopDistillHook as _RazorsHook
from mmrazor.registry import HOOKS


@HOOKS.register_module(name='StopDistillHook', force=True)
class StopDistillHook(_RazorsHook):
    """MMRazor's hook of this name, in its place: also for trainings that count iterations.

    From then on the student learns from its own losses alone, and the teacher does not run. MMRazor's
    hook counts epochs. A training that counts iterations, as all of MMSegmentation's do, has one
    epoch, so that hook never stops the distillation and does not say so.

    Args:
        stop_epoch (int, optional): The first epoch, counted from 0, without distillation.
        stop_iter (int, optional): The first iteration, counted from 0, without distillation.

    Raises:
        ValueError: If not exactly one of them is given, or it is negative.
    """

    needs_distillation = True

    def __init__(self, stop_epoch: int | None = None, stop_iter: int | None = None) -> None:
        given = {'stop_epoch': stop_epoch, 'stop_iter': stop_iter}
        given = {name: value for name, value in given.items() if value is not None}
        if len(given) != 1 or not all(value >= 0 for value in given.values()):
            raise ValueError(
                'StopDistillHook needs either stop_epoch or stop_iter, not negative, got '
                f'{stop_epoch=}, {stop_iter=}'
            )
        super().__init__(stop_epoch)
        self.stop_iter = stop_iter

    def before_run(self, runner: Runner) -> None:
        """See whether the training counts what the hook counts.

        Raises:
            ValueError: If it does not; says what to use instead.
            TypeError: If the model is no distillation.
        """
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if not hasattr(model, 'distillation_stopped'):
            raise TypeError(f'StopDistillHook needs a distillation, got {type(model).__name__}')
        if self.stop_epoch and not isinstance(runner.train_loop, EpochBasedTrainLoop):
            raise ValueError(
                f'StopDistillHook(stop_epoch={self.stop_epoch}) would never stop this distillation: '
                f'{type(runner.train_loop).__name__} counts iterations. Use '
                'StopDistillHook(stop_iter=...).'
            )

    def before_train_epoch(self, runner: Runner) -> None:
        """Stop in an epoch."""
        if self.stop_epoch is not None:
            super().before_train_epoch(runner)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        """Stop in an iteration."""
        if self.stop_iter is None or runner.iter < self.stop_iter:
            return
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if not model.distillation_stopped:
            runner.logger.info('Distillation has been stopped!')
            model.distillation_stopped = True


# Imports from MMRazor must give this class too, as configs do.
mmrazor.engine.StopDistillHook = mmrazor.engine.hooks.StopDistillHook = StopDistillHook
