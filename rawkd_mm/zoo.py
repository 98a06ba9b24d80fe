"""The names of the configs that come with this package: listing and finding them.

Imports nothing but the standard library, so that tools/configs.py can list them at once.
"""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path, PurePath

__all__ = ['closest', 'config_names', 'maker_of', 'matching']


def config_names(folder: Path) -> list[str]:
    """List the configs that can be trained.

    Args:
        folder (Path): The folder ``configs``.

    Returns:
        list[str]: Their paths below it, such as 'cad/cad_...py', sorted; without ``_base_``.
    """
    found = (path.relative_to(folder) for path in folder.glob('*/*.py'))
    return sorted(path.as_posix() for path in found if path.parts[0] != '_base_')


def matching(names: Sequence[str], texts: Sequence[str]) -> list[str]:
    """Choose configs by name.

    Args:
        names (Sequence[str]): As :func:`config_names` gives them.
        texts (Sequence[str]): One text that is a whole name, with or without its folder and '.py';
            or texts that all have to be in the name, in any order and any case.

    Returns:
        list[str]: Those that fit, in the order of ``names``.

    Example:
        >>> matching(['cad/cad_r18.py', 'lad/lad_r18.py', 'lad/lad_r18_voc.py'], ['r18', 'LAD'])
        ['lad/lad_r18.py', 'lad/lad_r18_voc.py']
        >>> matching(['cad/cad_r18.py', 'lad/lad_r18.py', 'lad/lad_r18_voc.py'], ['lad_r18'])
        ['lad/lad_r18.py']
    """
    if len(texts) == 1:
        whole = [name for name in names if texts[0].removesuffix('.py') in _short_names(name)]
        if whole:
            return whole
    return [name for name in names if all(text.lower() in name.lower() for text in texts)]


def closest(names: Sequence[str], text: str) -> list[str]:
    """Give up to three names that are most like a text, or else have most of its words and their parts.

    Example:
        >>> closest(['cad/cad_r18.py', 'lad/lad_r18.py', 'nfd/nfd_swin.py'], 'lad_r81')
        ['lad/lad_r18.py', 'cad/cad_r18.py']
        >>> closest(['cad/cad_r18_voc12aug.py', 'nfd/nfd_swin_coco.py'], 'swin ade20k')
        ['nfd/nfd_swin_coco.py']
    """
    by_short = {short: name for name in names for short in _short_names(name)}
    close = difflib.get_close_matches(text.removesuffix('.py'), by_short, n=6)
    if close:
        return list(dict.fromkeys(by_short[short] for short in close))[:3]
    parts = [*text.lower().split(), *re.findall(r'[a-z0-9]+', text.lower())]
    found = {name: sum(part in name.lower() for part in parts) for name in names}
    return sorted(filter(found.get, names), key=found.get, reverse=True)[:3]


def maker_of(names: Sequence[str], checkpoint: str) -> str | None:
    """Find the config whose training leaves a checkpoint in its default work dir.

    Args:
        names (Sequence[str]): As :func:`config_names` gives them.
        checkpoint (str): Such as 'work_dirs/pspnet_r18/iter_4000.pth'.

    Returns:
        str | None: The name; None if it is the work dir of none of them.
    """
    parts = PurePath(checkpoint).parts
    if len(parts) != 3 or parts[0] != 'work_dirs':
        return None
    return next((name for name in names if PurePath(name).stem == parts[1]), None)


def _short_names(name: str) -> tuple[str, str]:
    """Give a name without '.py', and that without its folder."""
    path = PurePath(name).with_suffix('')
    return path.as_posix(), path.name
