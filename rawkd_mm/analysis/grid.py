"""A grid of config options: how a command line gives it, and its points.

This module imports nothing of the package: the command lines load it by its path, and start without
PyTorch.
"""

import ast
import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence

_BRACKETS = {'(': ')', '[': ']', '{': '}'}


class GridError(ValueError):
    """A grid is not written as it should be; the message says what is wrong."""


def parse_grid(texts: Sequence[str]) -> dict[str, list[str]]:
    """Read the arguments of --grid.

    Commas outside of brackets and quotes separate the values.

    Args:
        texts (Sequence[str]): Such as 'optim_wrapper.optimizer.lr=0.01,0.001'.

    Returns:
        dict[str, list[str]]: Key of the config to the texts of its values.

    Raises:
        GridError: If a text is not KEY=V1,V2, or a key or a value is there twice.
    """
    grid = {}
    for text in texts:
        key, separator, values = text.partition('=')
        if not separator or not re.fullmatch(r'[^\s.]+(\.[^\s.]+)*', key):
            raise GridError(
                f'{text!r} is not KEY=V1,V2 with a KEY such as optim_wrapper.optimizer.lr'
            )
        if key in grid:
            raise GridError(f'{key} is there twice. Give all of its values at once: {key}=V1,V2')
        grid[key] = [value.strip() for value in _split(values, text)]
        if '' in grid[key]:
            raise GridError(f'{text!r} has an empty value')
        if len(set(grid[key])) != len(grid[key]):
            raise GridError(f'the values of {key} must differ, got {grid[key]}')
        for value in grid[key]:
            if value.startswith('{'):
                _read_dict(value)
    return grid


def _split(values: str, text: str) -> list[str]:
    parts, closing, quote = [''], [], ''
    for letter in values:
        if quote:
            quote = '' if letter == quote else quote
        elif letter in '\'"':
            quote = letter
        elif letter in _BRACKETS:
            closing.append(_BRACKETS[letter])
        elif letter in _BRACKETS.values():
            if not closing or closing.pop() != letter:
                raise GridError(f'{text!r}: {letter!r} closes no bracket')
        elif letter == ',' and not closing:
            parts.append('')
            continue
        parts[-1] += letter
    if closing or quote:
        raise GridError(f'{text!r}: {(quote or closing[-1])!r} is missing')
    return parts


def grid_points(grid: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """Give the product of all values.

    Args:
        grid (Mapping): See :func:`parse_grid`.

    Returns:
        list[dict[str, str]]: Key to the text of one value; the last key varies first. One empty
        point if there is no key.
    """
    return [dict(zip(grid, values)) for values in itertools.product(*grid.values())]


def point_options(key: str, value: str, replaces: bool) -> list[str]:
    """Write one value for --cfg-options.

    Args:
        key (str): Of the config.
        value (str): Its text; that of a dict, such as "{'type': 'CADLoss'}", becomes an entry for
            each of its keys, as --cfg-options knows no dicts.
        replaces (bool): Whether the config has the key: a dict replaces what is there.

    Returns:
        list[str]: 'KEY=VALUE' entries.

    Raises:
        GridError: If a dict has something that --cfg-options cannot express.
    """
    if not value.startswith('{'):
        return [f'{key}={value}']
    entries = [f'{key}._delete_=True'] if replaces else []
    return entries + _dict_entries(key, _read_dict(value))


def _read_dict(text: str) -> dict:
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError) as error:
        raise GridError(
            f'{text!r} is no dict as Python writes it, such as {{"type": "CADLoss"}}: {error}'
        ) from None
    if not isinstance(value, dict) or not value:
        raise GridError(f'{text!r} should be a dict with at least one key')
    _dict_entries('', value)
    return value


def _dict_entries(key: str, value: dict) -> list[str]:
    entries = []
    for name, item in value.items():
        if not isinstance(name, str):
            raise GridError(f'the keys of a dict must be text, got {name!r}')
        if isinstance(item, dict):
            entries += _dict_entries(f'{key}.{name}', item)
        else:
            entries.append(f'{key}.{name}={_leaf(item)}')
    return entries


def _leaf(value) -> str:
    """Write a value so that MMEngine's DictAction reads the same."""
    if isinstance(value, (list, tuple)):
        left, right = '[]' if isinstance(value, list) else '()'
        return left + ','.join(map(_leaf, value)) + right
    if value is None or isinstance(value, (bool, int, float)):
        return str(value)
    if isinstance(value, str) and re.fullmatch(r'[^\s,()\[\]{}\'"]+', value):
        try:
            ast.literal_eval(value)
        except (SyntaxError, ValueError):
            if value.lower() not in ('true', 'false', 'nan', 'inf', 'infinity'):
                return value
    raise GridError(
        f'{value!r} in a dict cannot be told by --cfg-options. Write a config file that has it'
    )


def slug(text: str, longest: int = 24) -> str:
    """Write a value so that a folder may be called like it.

    Args:
        text (str): A value of a grid.
        longest (int): How many letters may stay. Defaults to 24.

    Returns:
        str: The same text, if it is short and plain; else its end, of a path the file, and a hash.
    """
    if re.fullmatch(r'[\w.+-]+', text) and len(text) <= longest:
        return text
    plain = re.sub(r'[^\w.+-]+', '_', text.rpartition('/')[2] or text).strip('_')[-longest:]
    return f'{plain}~{hashlib.sha256(text.encode()).hexdigest()[:6]}'


def cell_label(method: str, weight: str, point: Mapping[str, str]) -> str:
    """Name what the trainings with several seeds have in common.

    Args:
        method (str): Of the sweep.
        weight (str): Of its loss; '' without one.
        point (Mapping[str, str]): Of the grid, in any order: a CSV has the columns in another one.

    Returns:
        str: Such as 'naive-w10-optim_wrapper.optimizer.lr=0.01'. A training's folder has it, followed
        by '-seed0'.
    """
    parts = [slug(method, 80), *([f'w{weight}'] if weight else [])]
    return '-'.join([*parts, *(f'{key}={slug(value)}' for key, value in sorted(point.items()))])
