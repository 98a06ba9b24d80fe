"""Registration under every scope that a config may use.

MMRazor's registries find ``mmrazor.CADLoss`` and whatever stands below ``_scope_='mmrazor'``;
MMEngine's root registries are the fallback of every scope, so that a config with
``default_scope='mmseg'`` or ``'mmdet'`` may write plain ``CADLoss``.
"""

from mmengine.registry import HOOKS
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import TASK_UTILS as ROOT_TASK_UTILS
from mmrazor.registry import MODELS, TASK_UTILS

__all__ = ['HOOKS', 'MODELS', 'register_model', 'register_task_util']


def register_model(cls: type) -> type:
    """Register a class in MMRazor's and in MMEngine's root ``MODELS``, under its own name."""
    MODELS.register_module(module=cls)
    ROOT_MODELS.register_module(module=cls)
    return cls


def register_task_util(cls: type) -> type:
    """Register a class in MMRazor's and in MMEngine's root ``TASK_UTILS``, under its own name."""
    TASK_UTILS.register_module(module=cls)
    ROOT_TASK_UTILS.register_module(module=cls)
    return cls
