"""Loads weights, and refuses a checkpoint in which some are missing."""

from collections import OrderedDict
from typing import NamedTuple

from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys

from .checkpoint_names import name_in_checkpoint, student_weights

__all__ = [
    'CheckpointError',
    'Loaded',
    'RequireAllWeightsHook',
    'find_weights',
    'load_all_weights',
    'load_as_modules_do',
]


class CheckpointError(ValueError):
    """A checkpoint does not fit the model, or not all processes have it; the message lists where."""


# Where other programs than MMEngine put the weights, in the order in which they are looked for.
# Trained weights come before their running averages.
_OTHER_KEYS = (
    'model',
    'model_state_dict',
    'model_state',
    'net',
    'network',
    'weights',
    'params',
    'state_dict_ema',
    'ema_state_dict',
    'model_ema',
    'params_ema',
    'ema',
)


def _is_state_dict(value: object) -> bool:
    return isinstance(value, dict) and any(isinstance(v, Tensor) for v in value.values())


def find_weights(checkpoint: object, filename: str) -> tuple[dict, str]:
    """Find the weights in a checkpoint.

    MMEngine's own are below ``state_dict``, which is taken where it is; a dict of tensors is taken as
    it is. Of what other programs write, ``model`` and the like are taken, or, if there is nothing
    else, a running average of the weights (``state_dict_ema``, ``model_ema``).

    Args:
        checkpoint (object): As loaded.
        filename (str): Where from, for errors.

    Returns:
        tuple[dict, str]: The weights by name, and what to say of where they were: nothing of
        MMEngine's ``state_dict`` and of plain weights.

    Raises:
        CheckpointError: If there are none; names the keys that there are.
    """
    if not isinstance(checkpoint, dict):
        raise CheckpointError(
            f'{filename!r} is no checkpoint: expected a dict of tensors, or one under the key '
            f"'state_dict', got {type(checkpoint).__name__}"
        )
    if _is_state_dict(checkpoint.get('state_dict')):
        return checkpoint['state_dict'], ''
    if _is_state_dict(checkpoint):
        return checkpoint, ''
    found = [key for key in _OTHER_KEYS if _is_state_dict(checkpoint.get(key))]
    if found:
        others = f', not from {", ".join(map(repr, found[1:]))}' if found[1:] else ''
        return checkpoint[found[0]], f'from its {found[0]!r}{others}'
    keys = [f'{key!r} ({_kind(value)})' for key, value in list(checkpoint.items())[:10]]
    raise CheckpointError(
        f'{filename!r} is no checkpoint: expected a dict of tensors, or one under the key '
        f"'state_dict', 'model' or 'model_ema'; it has {', '.join(keys) or 'no keys'}. If the "
        'weights are below one of them, keep only these: '
        "torch.save(dict(state_dict=...), 'weights.pth')."
    )


def _kind(value: object) -> str:
    if isinstance(value, dict):
        return f'dict of {", ".join(map(repr, list(value)[:3]))}' if value else 'empty dict'
    return type(value).__name__


class Loaded(NamedTuple):
    """What became of a state dict in a model.

    Attributes:
        found (dict[str, Tensor]): What the state dict had for the model, under the names of
            ``model.state_dict()``: names of older versions are replaced. Loaded where the shape is
            the model's.
        missing (set[str]): Names that the model lacked and could not make up for.
        errors (list[str]): What went wrong besides shapes.
    """

    found: dict[str, Tensor]
    missing: set[str]
    errors: list[str]


def load_as_modules_do(model: nn.Module, weights: dict[str, Tensor]) -> Loaded:
    """Load a state dict as MMEngine does, and tell what became of it.

    Modules rename what older versions of them called otherwise (``_load_from_state_dict``), or
    compute what is not there, while they load. So what a state dict has for a model is known only
    afterwards.

    One thing MMEngine's and PyTorch's ``load_state_dict`` do not do any more: they show a module only
    what begins with the module's name and a dot. A deformable convolution ``conv2`` does not find its
    old ``conv2_offset.weight`` there; its offsets stay 0, with a line in the log. Here it does.

    Args:
        model (nn.Module): The model. Gets every entry that has its name and shape.
        weights (dict[str, Tensor]): With ``_metadata``, the versions of the modules that were saved,
            as ``state_dict()`` gives it, if they are known. Not changed.

    Returns:
        Loaded: What was there and what was not.
    """
    metadata = getattr(weights, '_metadata', None) or {}
    found: dict[str, Tensor] = {}
    missing: list[str] = []
    unexpected: list[str] = []
    errors: list[str] = []

    # As torch's and MMEngine's load_state_dict, which both raise or print instead of telling.
    def load(module: nn.Module, local: dict[str, Tensor], prefix: str) -> None:
        problems: list[str] = []
        module._load_from_state_dict(
            local, prefix, metadata.get(prefix[:-1], {}), True, missing, unexpected, problems
        )
        own = {
            prefix + name: value
            for values in (module._parameters, module._buffers)
            for name, value in values.items()
            if value is not None and name not in module._non_persistent_buffers_set
        }
        there = {name: local[name] for name in own if name in local}
        found.update(there)
        of_shapes = [n for n, value in there.items() if value.shape != own[n].shape]
        errors.extend(p for p in problems if not any(f' {name}: ' in p for name in of_shapes))
        for name, child in module._modules.items():
            if child is not None:
                below = prefix + name
                load(child, {k: v for k, v in local.items() if k.startswith(below)}, f'{below}.')
        for hook in module._load_state_dict_post_hooks.values():
            hook(module, _IncompatibleKeys(missing, unexpected))

    load(model, OrderedDict(weights), '')
    return Loaded(found, set(missing), errors)


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
        if 'state_dict' not in checkpoint:
            checkpoint.clear()
        checkpoint['state_dict'] = weights


def load_all_weights(model: nn.Module, checkpoint: dict) -> dict[str, Tensor]:
    """Load a checkpoint that must fill the model.

    Args:
        model (nn.Module): The model.
        checkpoint (dict): As loaded; of a distillation's or of MMRazor's the student is taken.

    Returns:
        dict[str, Tensor]: What belongs to the model, under the model's names.

    Raises:
        CheckpointError: If a parameter or buffer is missing (num_batches_tracked aside) or has
            another shape; lists all of them. If it has no weights; names its keys.
    """
    given, _ = find_weights(checkpoint, 'the checkpoint')
    expected = model.state_dict()
    weights = student_weights(given, expected)
    found, lacking, errors = load_as_modules_do(model, weights)
    # The modules of a distillation have a prefix that its state dict leaves out.
    found = {name_in_checkpoint(expected, name): value for name, value in found.items()}
    lacking = {name_in_checkpoint(expected, name) for name in lacking}
    errors += [
        f'{name}: {tuple(value.shape)}, the model has {tuple(expected[name].shape)}'
        for name, value in found.items()
        if value.shape != expected[name].shape
    ]
    if errors:
        raise CheckpointError(f'the checkpoint does not fit the model: {"; ".join(errors)}')
    missing = [n for n in expected if n in lacking and not n.endswith('num_batches_tracked')]
    if missing:
        raise CheckpointError(
            f'the checkpoint has {len(weights)} entries, but not these {len(missing)} of the '
            f'model {type(model).__name__}, which would stay random: {", ".join(missing)}. '
            'Is it the checkpoint of this config?'
        )
    result = OrderedDict(found)
    result._metadata = expected._metadata  # nothing is to be renamed again
    return result


def _bare_model(model: nn.Module) -> nn.Module:
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model
