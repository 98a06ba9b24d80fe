"""Stops a training whose loss is NaN or infinite."""

from typing import NamedTuple

from mmengine.dist import all_gather_object, is_distributed
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor

from ..distillers import FeatureDistiller
from ..registry import HOOKS
from ..training.process_exchange import ProcessExchange


class NonFiniteLossError(FloatingPointError):
    """A loss is NaN or infinite; the message says in which iteration, which one and why."""


@HOOKS.register_module()
class NonFiniteLossHook(Hook):
    """Stops a training in the iteration whose loss is NaN or infinite, before it is saved.

    - Checks the total loss after each iteration. This needs no extra synchronisation with a GPU:
      MMEngine reads the same losses for its log right after. If the total is not finite, the hook
      checks each loss and each compared feature, to name the pair and whether the student's or the
      teacher's feature had NaN or infinite values.
    - Without loss scaling (float32, bfloat16) the training stops at once.
    - With a loss scaler (float16, MMEngine's ``AmpOptimWrapper``) infinite gradients stay what they
      are, steps that the scaler skips; they are not looked at. A loss that is not finite makes such
      gradients, so that the weights are not touched either; it stops the training only when it is
      so for ``patience`` iterations in a row.
    - With several processes all of them stop in the same iteration, whichever found it, with the
      same message, which names the processes (ranks) that it was.
    - It looks at the losses before anything averages them over the processes
      (``AverageLossesHook``): afterwards those of every process are not finite.

    Args:
        patience (int): With a loss scaler, after how many iterations in a row to stop. Defaults
            to 10.

    Attributes:
        exchange (ProcessExchange): How it finds out about the other processes; hooks that need them,
            too, may have the same one.

    Raises:
        ValueError: If patience is not positive.
    """

    # before the losses are averaged, logged or saved
    priority = 'HIGHEST'

    def __init__(self, patience: int = 10) -> None:
        if patience < 1:
            raise ValueError(f'patience must be at least 1 iteration, got {patience}')
        self.patience = patience
        self.exchange = ProcessExchange()
        self._in_a_row = 0

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: dict | None = None,
    ) -> None:
        """Look at the losses.

        Args:
            runner (Runner): Has the model, and the number of the iteration.
            batch_idx (int): Not used.
            data_batch (dict, optional): Not used.
            outputs (dict, optional): What the model's train_step gave: the losses by name.

        Raises:
            NonFiniteLossError: If the training cannot go on.
        """
        losses = {k: v for k, v in (outputs or {}).items() if 'loss' in k and isinstance(v, Tensor)}
        if not losses:
            return
        exchanged = self.exchange.after(runner.iter, outputs)
        if exchanged.is_finite:
            self._in_a_row = 0
            return
        self._in_a_row += 1
        if _has_scaler(runner) and self._in_a_row < self.patience:
            runner.logger.warning(
                f'Iteration {runner.iter + 1}: the loss is not finite. Nothing was learned from it '
                f'(loss scaling); the training stops after {self.patience} of these in a row.'
            )
            return
        found = None if exchanged.is_own_finite else _describe(runner, losses)
        if is_distributed():
            found = _of_ranks(all_gather_object(found))
        else:
            found = found.text
        in_a_row = f', {self._in_a_row} times in a row' if self._in_a_row > 1 else ''
        raise NonFiniteLossError(
            f'iteration {runner.iter + 1}: the loss is not finite{in_a_row}. {found} The last '
            'checkpoint is from before. Lower the learning rate or the weight of the loss, clip '
            'gradients, or look at the data of this iteration.'
        )


def _has_scaler(runner: Runner) -> bool:
    scaler = getattr(runner.optim_wrapper, 'loss_scaler', None)
    return scaler is not None and scaler.is_enabled()


class _Finding(NamedTuple):
    """What a process found: the text, and whether a feature of its own was not finite."""

    text: str
    in_features: bool


def _of_ranks(found: list[_Finding | None]) -> str:
    """Put together what the processes found, for those that it was."""
    ranks = {rank: x for rank, x in enumerate(found) if x is not None}
    # Another hook may have averaged the losses. Nothing averages features: they tell the process.
    chosen = {rank: x for rank, x in ranks.items() if x.in_features} or ranks
    texts = [f'Process (rank) {rank} of {len(found)}: {x.text}' for rank, x in chosen.items()]
    more = f' {len(texts) - 4} more processes found the like.' if len(texts) > 4 else ''
    return ' '.join(texts[:4]) + more


def _describe(runner: Runner, losses: dict[str, Tensor]) -> _Finding:
    """Say which losses are not finite, and whose features."""
    values = {k: float(v.detach().float().mean()) for k, v in losses.items() if k != 'loss'}
    bad = [k for k, v in values.items() if v - v != 0]
    lines = [f'{k} is {values[k]}' for k in bad] or ['the total is not, though each of them is']
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    distiller = getattr(model, 'distiller', None)
    comparison = distiller.last_comparison if isinstance(distiller, FeatureDistiller) else None
    pairs = comparison.pairs if comparison else {}
    in_features = False
    for name, (_, *features) in pairs.items():
        counts = [int((~feature.isfinite()).sum()) for feature in features]
        whose = [
            f"{count} of {feature.numel()} values of the {role}'s feature are NaN or infinite"
            for role, feature, count in zip(('student', 'teacher'), features, counts)
            if count
        ]
        if whose:
            in_features = True
            lines.append(f'pair {name}: {" and ".join(whose)}')
        elif f'distill.{name}' in bad:
            lines.append(f'pair {name}: both features are finite, so that it is the loss itself')
    return _Finding('; '.join(lines) + '.', in_features)
