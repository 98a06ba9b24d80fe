"""Everything that depends on the versions of other packages: a module for each package.

Importing :mod:`rawkd_mm` calls :func:`setup`, which

* says which required package is missing or untested,
* imports MMSegmentation (and MMDetection where its compiled operators are available),
* imports MMRazor on torch >= 2 and any MMCV (:func:`load_mmrazor`),
* lets configs inherit from ``mmseg::...`` where MMSegmentation is installed under another
  distribution name (:func:`mend_mmseg_lookup`), and
* lets a distillation keep its connectors apart from the student's optimizer groups
  (:func:`let_models_split_their_parameters`).
"""

import importlib

from .mmcv import has_mmcv_ops
from .mmengine import let_models_split_their_parameters, take_batches_as_they_come
from .mmrazor import load_mmrazor
from .mmseg import channel_swap_and_padding, mend_mmseg_lookup
from .needless_messages import silence
from .numpy import numpy_globals
from .torch import (
    autocast_dtype,
    begin_graph_step,
    find_is_compiling,
    is_autocast_enabled,
    load_weights_only,
    user_safe_globals,
)
from .versions import TESTED_VERSIONS, check_versions, installed_versions, version_texts

__all__ = [
    'TESTED_VERSIONS',
    'autocast_dtype',
    'begin_graph_step',
    'channel_swap_and_padding',
    'check_versions',
    'find_is_compiling',
    'has_mmcv_ops',
    'installed_versions',
    'is_autocast_enabled',
    'let_models_split_their_parameters',
    'load_mmrazor',
    'load_weights_only',
    'mend_mmseg_lookup',
    'numpy_globals',
    'setup',
    'silence',
    'take_batches_as_they_come',
    'user_safe_globals',
    'version_texts',
]

_is_set_up = False


def setup() -> None:
    """Make MMSegmentation, MMDetection and MMRazor ready for rawkd_mm; once per process.

    Raises:
        ImportError: If a required package is missing or cannot be imported.
    """
    global _is_set_up
    if _is_set_up:
        return
    check_versions()
    silence()
    mend_mmseg_lookup()
    let_models_split_their_parameters()
    importlib.import_module('mmseg.models')
    if installed_versions()['mmdet'] is not None and has_mmcv_ops():
        importlib.import_module('mmdet.models')
    load_mmrazor()
    _is_set_up = True
