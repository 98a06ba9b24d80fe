"""Writing a config as its difference to another one."""

import os
from pathlib import Path

from mmengine.config import Config

__all__ = ['difference', 'leaf_text']

# The longest line of a file.
_WIDTH = 100


def difference(base: dict, target: dict) -> dict:
    """Give what a config that inherits from another has to say.

    Args:
        base (dict): The other's content.
        target (dict): What it is to become. It has all keys of the base; within a value that is a dict
            keys may be missing.

    Returns:
        dict: Entries for the config's file; with ``_delete_=True`` where a dict replaces the base's.

    Example:
        >>> difference({'a': 1, 'b': {'c': 2, 'd': 3}}, {'a': 1, 'b': {'c': 2, 'd': 4}})
        {'b': {'d': 4}}
        >>> difference({'b': {'c': 2, 'd': 3}}, {'b': {'d': 3}})
        {'b': {'_delete_': True, 'd': 3}}
    """
    result = {}
    for key, value in target.items():
        other = base.get(key)
        if key in base and _same(value, other):
            continue
        if key in base and isinstance(value, dict):
            if isinstance(other, dict) and other.keys() <= value.keys():
                result[key] = difference(other, value)
            else:
                result[key] = {'_delete_': True, **value}
        else:
            result[key] = value
    return result


def _same(value: object, other: object) -> bool:
    """Tell whether two values are equal, and would be written alike: 1, 1.0 and True differ."""
    return value == other and repr(_plain(value)) == repr(_plain(other))


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {key: _plain(value[key]) for key in sorted(value, key=str)}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item) for item in value)
    return value


def leaf_text(base: Path, base_config: Config, target: Config, folder: Path) -> str:
    """Write a config that inherits from another.

    Args:
        base (Path): File of the other.
        base_config (Config): Its content.
        target (Config): What the text is to give.
        folder (Path): Where the file is to be; it names the base by a relative path.

    Returns:
        str: The text, which a formatter may lay out.
    """
    old, new = base_config.to_dict(), target.to_dict()
    relative = Path(os.path.relpath(base, folder)).as_posix()
    lines = [f'_base_ = {relative!r}', '']
    if len(lines[0]) > _WIDTH:  # a formatter does not divide a text
        folders, _, name = relative.rpartition('/')
        lines[0] = f"_base_ = (\n    '{folders}/'\n    {name!r}\n)"
    lines += [f'_base_.pop({key!r})' for key in old if key not in new]
    lines += [f'{key} = {_text(value)}' for key, value in difference(old, new).items()]
    return '\n'.join(lines).rstrip('\n') + '\n'


def _text(value: object) -> str:
    if isinstance(value, dict):
        if all(isinstance(key, str) and key.isidentifier() for key in value):
            return f'dict({", ".join(f"{key}={_text(item)}" for key, item in value.items())})'
        return '{' + ', '.join(f'{key!r}: {_text(item)}' for key, item in value.items()) + '}'
    if isinstance(value, list):
        return f'[{", ".join(map(_text, value))}]'
    if isinstance(value, tuple):
        return f'({", ".join(map(_text, value))}{"," if len(value) == 1 else ""})'
    return repr(value)
