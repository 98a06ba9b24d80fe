"""Registration under every scope that a config may use.

MMRazor's registries find ``mmrazor.CADLoss`` and whatever stands below ``_scope_='mmrazor'``;
MMEngine's root registries are the fallback of every scope, so that a config with
``default_scope='mmseg'`` or ``'mmdet'`` may write plain ``CADLoss``.
"""

import difflib
import functools

from mmengine.config.lazy import LazyAttr, LazyObject
from mmengine.registry import HOOKS, Registry
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import TASK_UTILS as ROOT_TASK_UTILS
from mmrazor.registry import MODELS, TASK_UTILS

__all__ = [
    'HOOKS',
    'MODELS',
    'check_type',
    'find_type',
    'register_model',
    'register_task_util',
    'type_name',
]


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


def type_name(kind: object) -> str:
    """Give the plain name of what a config has as ``type``, in whichever way it is written.

    Args:
        kind (object): A name (``'CADLoss'``), a name with its scope or module
            (``'mmrazor.CADLoss'``, ``'rawkd_mm.losses.CADLoss'``), a class or function, or what
            MMEngine makes of an import in a new-style config (``LazyObject``, ``LazyAttr``).

    Returns:
        str: The last part of the name, ``'CADLoss'``; '' for None.
    """
    if kind is None:
        return ''
    while isinstance(kind, functools.partial):
        kind = kind.func
    name = kind if isinstance(kind, str) else getattr(kind, '__name__', None)
    # a LazyObject gives every attribute that it is asked for, and is printed as its name
    return (name if isinstance(name, str) else str(kind)).rpartition('.')[2]


def find_type(kind: object, registry: Registry, scope: str | None = None) -> object | None:
    """Give the class or function that a config's ``type`` means, in whichever way it is written.

    Args:
        kind (object): As for :func:`type_name`.
        registry (Registry): Where names are looked for.
        scope (str, optional): The scope in which they are; by default the current one.

    Returns:
        object | None: The class or function; None if nothing has that name.
    """
    if isinstance(kind, (LazyAttr, LazyObject)):
        return kind.build()
    if not isinstance(kind, str):
        return kind
    with registry.switch_scope_and_registry(scope) as current:
        try:
            return current.get(kind)
        except RuntimeError:  # how a name that is no module's ends
            return None


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
