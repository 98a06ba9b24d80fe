"""MMCV: with or without its compiled operators."""

import importlib.util

__all__ = ['has_mmcv_ops']


def has_mmcv_ops() -> bool:
    """Tell whether the installed MMCV has its compiled operators, which MMDetection needs."""
    mmcv = importlib.util.find_spec('mmcv')
    return mmcv is not None and importlib.util.find_spec('mmcv._ext') is not None
