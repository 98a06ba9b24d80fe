"""The hooks that every training of our tools has."""

from mmengine.runner import Runner

from ..training.runner import AverageLossesHook
from .label_range_hook import LabelRangeHook
from .non_finite_loss_hook import NonFiniteLossHook


def register_training_hooks(runner: Runner) -> None:
    """Register what tools/train.py adds to every training.

    - :class:`NonFiniteLossHook` and :class:`LabelRangeHook`, unless the config has them;
    - :class:`AverageLossesHook`, after them: what each process found itself must be looked at first.

    Args:
        runner (Runner): Before ``train()``.
    """
    for hook in (NonFiniteLossHook, LabelRangeHook):
        if not any(isinstance(registered, hook) for registered in runner.hooks):
            runner.register_hook(hook())
    # of hooks of one priority, the one that was registered first runs first
    runner.register_hook(AverageLossesHook(), priority='HIGHEST')
