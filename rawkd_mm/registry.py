"""Registration under every scope that a config may use.

MMRazor's registries find ``mmrazor.CADLoss`` and whatever stands below ``_scope_='mmrazor'``;
MMEngine's root registries are the fallback of every scope, so that a config with
``default_scope='mmseg'`` or ``'mmdet'`` may write plain ``CADLoss``.
"""

import difflib

from mmengine.registry import HOOKS
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import TASK_UTILS as ROOT_TASK_UTILS
from mmrazor.registry import MODELS, TASK_UTILS

__all__ = ['HOOKS', 'MODELS', 'check_type', 'register_model', 'register_task_util']


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


def check_type(config: dict, what: str) -> None:
    """Check that what a config names is registered, as seen from MMRazor's scope.

    Args:
        config (dict): With ``type``, and maybe ``_scope_``.
        what (str): What it is, for the error.

    Raises:
        ValueError: If it is not; names the closest ones.
    """
    kind = config.get('type')
    if not isinstance(kind, str):
        return
    with MODELS.switch_scope_and_registry(config.get('_scope_', 'mmrazor')) as registry:
        if registry.get(kind) is not None:
            return
        names = {*MODELS.module_dict, *ROOT_MODELS.module_dict, *registry.module_dict}
    by_small = {name.lower(): name for name in names}
    close = difflib.get_close_matches(
        kind.rpartition('.')[2].lower(), list(by_small), n=4, cutoff=0.5
    )
    hint = (
        f'the closest are {", ".join(by_small[name] for name in close)}'
        if close
        else 'nothing has a similar name'
    )
    raise ValueError(
        f'{what}: there is no {kind!r} among the registered models and losses; {hint}. If it is '
        "yours, name its module in custom_imports = dict(imports=['rawkd_mm', ...])"
    )
