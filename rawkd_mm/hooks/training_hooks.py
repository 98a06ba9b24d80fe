"""The hooks that every training of our tools has."""

from mmengine.runner import Runner

from ..training.process_exchange import ProcessExchange
from ..training.runner import AverageLossesHook
from .label_range_hook import LabelRangeHook
from .non_finite_loss_hook import NonFiniteLossHook
from .resumable_checkpoint_hook import ResumableCheckpointHook


def register_training_hooks(runner: Runner) -> None:
    """Register what tools/train.py adds to every training.

    - :class:`NonFiniteLossHook` and :class:`LabelRangeHook`, unless the config has them;
    - :class:`AverageLossesHook`, after them: what each process found itself must be looked at first.

    Together with the config's :class:`ResumableCheckpointHook`, these exchange what they need of the
    other processes in one reduction an iteration.

    Args:
        runner (Runner): Before ``train()``.
    """
    for hook in (NonFiniteLossHook, LabelRangeHook):
        if not any(isinstance(registered, hook) for registered in runner.hooks):
            runner.register_hook(hook())
    checkpoints = [hook for hook in runner.hooks if isinstance(hook, ResumableCheckpointHook)]
    exchange = ProcessExchange(lambda: any(hook.is_told_to_stop for hook in checkpoints))
    for hook in runner.hooks:
        if isinstance(hook, (NonFiniteLossHook, ResumableCheckpointHook)):
            hook.exchange = exchange
    # of hooks of one priority, the one that was registered first runs first
    runner.register_hook(AverageLossesHook(exchange), priority='HIGHEST')
