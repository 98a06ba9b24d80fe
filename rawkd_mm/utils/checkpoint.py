"""Loading weights without gaps."""

import torch
from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn

__all__ = ['CheckpointError', 'RequireAllWeightsHook', 'load_all_weights']


class CheckpointError(ValueError):
    """A checkpoint does not fit the model; the message lists where."""


# What a checkpoint of a distillation has beyond the student.
_BEYOND_STUDENT = ('distiller.', 'teacher.')


class RequireAllWeightsHook(Hook):
    """Stops a run whose checkpoint does not fill the model.

    MMEngine only warns of parameters that are missing or have another shape, and goes on with
    random ones. To be registered with priority 'VERY_HIGH', before hooks that load a copy (EMA).

    What a distillation's checkpoint has beyond the student is dropped, and the prefix
    'architecture.' of MMRazor's checkpoints removed.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Check the checkpoint against the model.

        Args:
            runner (Runner): Has the model.
            checkpoint (dict): As loaded; its state_dict is replaced by what belongs to the model.

        Raises:
            CheckpointError: If a parameter or buffer is missing (num_batches_tracked aside) or has
                another shape; lists all of them.
        """
        weights = load_all_weights(_bare_model(runner.model), checkpoint)
        if 'state_dict' in checkpoint:
            checkpoint['state_dict'] = weights
        else:
            checkpoint.clear()
            checkpoint.update(weights)


def load_all_weights(model: nn.Module, checkpoint: dict) -> dict[str, Tensor]:
    """Load a checkpoint that must fill the model.

    Args:
        model (nn.Module): The model.
        checkpoint (dict): As loaded; of a distillation's or of MMRazor's the student is taken.

    Returns:
        dict[str, Tensor]: What belongs to the model, under the model's names.

    Raises:
        CheckpointError: If a parameter or buffer is missing (num_batches_tracked aside) or has
            another shape; lists all of them.
    """
    weights = _student_weights(checkpoint.get('state_dict', checkpoint), model.state_dict())
    try:
        missing = model.load_state_dict(weights, strict=False).missing_keys
    except RuntimeError as error:  # shapes that differ
        raise CheckpointError(f'the checkpoint does not fit the model: {error}') from error
    missing = [name for name in missing if not name.endswith('num_batches_tracked')]
    if missing:
        raise CheckpointError(
            f'the checkpoint has {len(weights)} entries, but not these {len(missing)} of the '
            f'model {type(model).__name__}, which would stay random: {", ".join(missing)}. '
            'Is it the checkpoint of this config?'
        )
    return weights


def _bare_model(model: nn.Module) -> nn.Module:
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def _student_weights(weights: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Reduce a state dict to a student's entries under the student's own names."""
    weights = {k: v for k, v in weights.items() if isinstance(v, torch.Tensor)}
    for prefix in ('module.', 'architecture.'):
        if any(k.startswith(prefix) for k in weights) and not any(
            k.startswith(prefix) for k in expected
        ):
            weights = {
                k[len(prefix) :] if k.startswith(prefix) else k: v for k, v in weights.items()
            }
    beyond = [p for p in _BEYOND_STUDENT if not any(k.startswith(p) for k in expected)]
    return {k: v for k, v in weights.items() if not k.startswith(tuple(beyond))}
