"""Distillation of raw features (LAD, CAD) for OpenMMLab.

Importing this package registers everything it has. A config needs no more than
``custom_imports = dict(imports=['rawkd_mm'])``.
"""

from . import compat
from .version import __version__

compat.setup()

from . import (  # noqa: E402
    algorithms,
    connectors,
    datasets,
    distillers,
    hooks,
    loops,
    losses,
    training,
)

__all__ = [
    '__version__',
    'algorithms',
    'compat',
    'connectors',
    'datasets',
    'distillers',
    'hooks',
    'loops',
    'losses',
    'training',
]
