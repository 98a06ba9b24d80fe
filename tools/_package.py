"""Finds the package that these tools belong to.

Importing it makes ``import rawkd_mm`` give the package of the same checkout, installed or not.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

_ABOVE = Path(__file__).resolve().parents
PACKAGE = _ABOVE[1] / 'rawkd_mm'
if (PACKAGE / '__init__.py').is_file():
    sys.path.insert(0, str(_ABOVE[1]))
else:  # installed: this file is rawkd_mm/.mim/tools/_package.py
    PACKAGE = _ABOVE[2]


def program() -> str | None:
    """Give what a tool calls itself in its help: 'rawkd train' if that command (rawkd.py) runs it.

    Returns:
        str | None: None where the script was started itself: the parser takes the script's name.
    """
    return getattr(sys.modules['__main__'], 'RAWKD_PROGRAM', None)


def load_module(name: str) -> ModuleType:
    """Load one module of the package by its path.

    Importing it as a part of ``rawkd_mm`` would import PyTorch and all of OpenMMLab first, which
    takes seconds. So the module may import nothing but the standard library.

    Args:
        name (str): Such as 'datasets.digit_scenes_folder', without 'rawkd_mm'.

    Returns:
        ModuleType: The module, which ``sys.modules`` does not know.

    Raises:
        FileNotFoundError: If the package has no such module.
    """
    path = PACKAGE.joinpath(*name.split('.')).with_suffix('.py')
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
