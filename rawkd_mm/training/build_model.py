"""Building a model from its config, and what its heads tell."""

from mmengine.model import BaseModel
from torch import nn

from ..registry import MODELS
from .model_config import resolve_model

__all__ = ['build_model', 'knows_classes', 'number_of_classes']


def build_model(config: dict | BaseModel) -> BaseModel:
    """Build a model from its config, from a config file, or take it as it is.

    Args:
        config (dict | BaseModel): A model's config; or ``dict(cfg_path=...)`` with the path of a
            config file or a name such as ``'mmseg::pspnet/pspnet_r18-d8_...py'``; or a model.

    Returns:
        BaseModel: The model; its pretrained weights, if any, are not loaded yet.

    Raises:
        UsageError: If the config file does not exist or has no model.
        TypeError: If it is none of these.
    """
    if isinstance(config, BaseModel):
        return config
    if not isinstance(config, dict):
        raise TypeError(f'a model must be a config dict or a BaseModel, got {type(config)}')
    return MODELS.build(resolve_model(config))


def number_of_classes(model: nn.Module) -> int | None:
    """Find out how many classes a model tells apart; None if none of its heads says so.

    That is the largest ``num_classes`` of its heads: an RPN, for example, has 1.
    """
    counts = [
        module.num_classes
        for name, module in model.named_modules()
        if isinstance(getattr(module, 'num_classes', None), int)
        and not f'{name}.'.startswith('backbone.')
    ]
    return max(counts, default=None)


def knows_classes(model: nn.Module, name: str) -> bool:
    """Whether a parameter belongs to a head that tells classes apart, by its name in the model."""
    parts = name.split('.')[:-1]
    above = [model.get_submodule('.'.join(parts[: i + 1])) for i in range(len(parts))]
    return any(isinstance(getattr(module, 'num_classes', None), int) for module in above)
