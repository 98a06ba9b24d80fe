"""New-style configs as text configs: classes and functions by their names.

MMEngine's new-style configs import what they use: ``type=ResNet`` with the class instead of
``type='ResNet'``. What looks at a config, changes it or writes it as a file needs names.
"""

import contextlib
import math
from collections.abc import Iterator
from types import FunctionType, MethodType, ModuleType

from mmengine import registry as roots
from mmengine.config import Config
from mmengine.config.lazy import LazyAttr, LazyObject
from mmengine.registry import Registry
from mmengine.utils import get_object_from_string

from .errors import UsageError

__all__ = ['add_imports', 'join_imports', 'name_types', 'refuse_what_is_no_text']

# The entries that MMEngine takes a class for or its name.
_TYPE_KEYS = ('type', 'constructor', 'runner_type')
# What these register is found without its module being named.
_KNOWN_PACKAGES = ('mmengine', 'mmcv', 'torch', 'rawkd_mm')
_LITERALS = (type(None), bool, int, str, bytes)


def name_types(cfg: Config) -> Config:
    """Replace the classes and functions that a config has as types by names that mean the same.

    The names are those of text configs where there are such (``'BN'``, ``'mmseg.PSPHead'``), else
    the path of the object (``'my_package.MyResNet'``). What has no name stays as it is.

    Args:
        cfg (Config): A config; a new-style one is not changed.

    Returns:
        Config: A copy with names, without the imports; a config that has none of these as it is.
    """
    content = _without_lazy(cfg._cfg_dict)
    if not any(_is_code(value) for _, value in _leaves(content)):
        return cfg
    imported = getattr(cfg, '_imported_names', ())
    content = {
        key: value
        for key, value in content.items()
        # MMEngine reads no other class at the top: it is there to be used further down
        if key not in imported and (key in _TYPE_KEYS or not _is_code(value))
    }
    namer = _Namer()
    named = namer.visit(content)
    if namer.needs_us:
        add_imports(named, dict(imports=['rawkd_mm'], allow_failed_imports=False))
    return Config(
        named, cfg_text=cfg.text or None, filename=cfg.filename, env_variables=cfg.env_variables
    )


def refuse_what_is_no_text(config: dict, what: str) -> None:
    """Check that a config can be written as a text config, and read back.

    Args:
        config (dict): A config or a part of one.
        what (str): What it is, for the error.

    Raises:
        UsageError: If it has a value that cannot; names the first such entries.
    """
    content = _without_lazy(getattr(config, '_cfg_dict', config))
    wrong = [
        f'{key} = {_describe(value)}' for key, value in _leaves(content) if not _is_text(value)
    ]
    if wrong:
        more = f' and {len(wrong) - 5} more' if len(wrong) > 5 else ''
        raise UsageError(
            f'{what} cannot be written as a text config: {"; ".join(wrong[:5])}{more}. A text config '
            'has numbers, strings, lists, tuples, dicts, True, False and None, and classes or '
            'functions by name as type=. Give the entry such a value'
        )


def join_imports(*imports: dict | None) -> dict:
    """Join the ``custom_imports`` of several configs.

    Args:
        imports (dict | None): Of each config, as MMEngine takes it: ``imports`` is a list, a
            string or None.

    Returns:
        dict: All modules in order, each once. A failed import is allowed if one of the configs
        allows it: MMEngine has one such setting for all modules. It warns of a module that is not
        there, and a name that would have come from it is an error where it is used.
    """
    modules, lenient = [], False
    for given in imports:
        found = (given or {}).get('imports') or []
        modules += [found] if isinstance(found, str) else list(found)
        lenient |= bool((given or {}).get('allow_failed_imports', False))
    return dict(imports=list(dict.fromkeys(modules)), allow_failed_imports=lenient)


def add_imports(cfg: Config | dict, *imports: dict | None) -> None:
    """Let a config import what other configs import, too.

    Args:
        cfg (Config | dict): Changed in place, if there is anything to add.
        imports (dict | None): The ``custom_imports`` of the others.
    """
    if any(join_imports(more)['imports'] for more in imports):
        cfg['custom_imports'] = join_imports(cfg.get('custom_imports'), *imports)


def _without_lazy(value: object) -> object:
    """Give a copy of containers as plain ones; what is imported is built."""
    if isinstance(value, dict):
        # ConfigDict's own items() would build what it has at each call
        return {key: _without_lazy(item) for key, item in dict.items(value)}
    if type(value) in (list, tuple):
        return type(value)(_without_lazy(item) for item in value)
    return value.build() if isinstance(value, (LazyAttr, LazyObject)) else value


def _leaves(value: object, key: str = '') -> Iterator[tuple[str, object]]:
    """Yield the values that are no containers, with their keys such as 'model.losses[0].type'."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _leaves(item, f'{key}.{name}' if key else str(name))
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):
            yield from _leaves(item, f'{key}[{index}]')
    else:
        yield key, value


def _is_code(value: object) -> bool:
    return isinstance(value, (type, FunctionType, MethodType, ModuleType)) or (
        callable(value) and not isinstance(value, dict)
    )


def _is_text(value: object) -> bool:
    if type(value) is float:
        return math.isfinite(value)
    if type(value) in (set, frozenset):
        return all(map(_is_text, value))
    return type(value) in _LITERALS


def _describe(value: object) -> str:
    if isinstance(value, type):
        return f'the class {value.__module__}.{value.__qualname__}'
    if isinstance(value, ModuleType):
        return f'the module {value.__name__}'
    if hasattr(value, '__qualname__'):
        return f'the function {value.__module__}.{value.__qualname__}'
    return f'{value!r} ({type(value).__name__})'


class _Namer:
    """Finds the names of classes and functions.

    Attributes:
        needs_us: Whether one of them is found only after this package is imported.
    """

    def __init__(self) -> None:
        self.needs_us = False
        self._registered = {}
        for root in {id(x): x for x in vars(roots).values() if isinstance(x, Registry)}.values():
            for registry in _family(root):
                # What is not imported yet may have the name of something else. A package that
                # cannot be imported has nothing that a config could use.
                with contextlib.suppress(Exception):
                    registry.import_from_location()
                for name, value in registry.module_dict.items():
                    self._registered.setdefault(id(value), []).append((root, registry, name))

    def visit(self, value: object, is_type: bool = False) -> object:
        if isinstance(value, dict):
            return {key: self.visit(item, key in _TYPE_KEYS) for key, item in value.items()}
        if type(value) in (list, tuple):
            return type(value)(self.visit(item) for item in value)
        return self.name(value) if is_type and _is_code(value) else value

    def name(self, value: object) -> object:
        package = str(getattr(value, '__module__', '')).partition('.')[0]
        for root, registry, name in self._registered.get(id(value), ()):
            # that of another package is registered once its module is imported, which the path does
            if package not in (*_KNOWN_PACKAGES, registry.scope) or _is_operator(value):
                continue
            names = [f'{registry.scope}.{name}']
            if registry is root and not any(
                child.module_dict.get(name, value) is not value for child in _family(root)
            ):
                names.insert(0, name)  # means the same in every scope
            for candidate in names:
                if root.get(candidate) is value:
                    self.needs_us |= package in ('rawkd_mm', 'mmrazor')
                    return candidate
        path = f'{getattr(value, "__module__", "")}.{getattr(value, "__qualname__", "")}'
        try:
            found = get_object_from_string(path)
        except Exception:  # whatever the import of a wrong path raises
            found = None
        # two bound methods of one class are equal, not the same
        return path if found is not None and found == value else value


def _is_operator(value: object) -> bool:
    """Tell those of MMCV's operators, which register themselves when they are imported."""
    return str(getattr(value, '__module__', '')).startswith('mmcv.ops')


def _family(registry: Registry) -> Iterator[Registry]:
    """Yield a registry and all below it."""
    yield registry
    for child in registry.children.values():
        yield from _family(child)
