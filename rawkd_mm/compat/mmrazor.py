"""MMRazor 1.0.0 on any torch and MMCV."""

import importlib
import sys
import warnings
from contextlib import contextmanager

from .versions import installed_versions, tested_text

__all__ = ['load_mmrazor']

# What MMRazor 1.0.0 has to see: with a torch before 1.13 its quantization package, which uses names
# that torch 2.0 removed, takes its own "not available" path; newer MMCV it refuses by an assertion.
_MASKED_VERSIONS = {'torch': '1.12.1', 'mmcv': '2.1.0'}


@contextmanager
def _masked_versions():
    """Show the versions that MMRazor accepts within the context."""
    modules = {name: importlib.import_module(name) for name in _MASKED_VERSIONS}
    originals = {name: module.__version__ for name, module in modules.items()}
    for name, module in modules.items():
        module.__version__ = _MASKED_VERSIONS[name]
    try:
        yield
    finally:
        for name, module in modules.items():
            module.__version__ = originals[name]


_mmrazor_error: ImportError | None = None


def load_mmrazor() -> None:
    """Import MMRazor's models and hooks, registering them, whatever torch and MMCV are installed.

    Raises:
        ImportError: If MMRazor cannot be imported all the same; no half-imported module stays.
    """
    global _mmrazor_error
    # MMRazor is imported already: there is nothing to do.
    if 'mmrazor.models' in sys.modules and 'mmrazor.engine' in sys.modules:
        return
    if _mmrazor_error is not None:
        # Its registries exist already: a second import would fail for that and hide the reason.
        raise _mmrazor_error
    # These read the versions when they are imported, and must see the true ones.
    for name in (
        'mmseg.models',
        'mmcv.cnn',
        'mmcv.transforms',
        'mmengine.hub',
        'mmengine.runner',
        'torch.ao.quantization',
        'torch.fx',
        'torch.utils.data',
        'torchvision',
        'joblib',
    ):
        importlib.import_module(name)
    try:
        with _masked_versions(), warnings.catch_warnings():
            # its own advice about packages that distillation does not use
            warnings.simplefilter('ignore')
            importlib.import_module('mmrazor.models')
            importlib.import_module('mmrazor.engine')
    except Exception as error:
        for name in [n for n in sys.modules if n.split('.')[0] == 'mmrazor']:
            del sys.modules[name]
        _mmrazor_error = ImportError(
            f'MMRazor could not be imported with {installed_versions()}: {error!r}. '
            f'rawkd_mm is tested with {tested_text("mmrazor")}.'
        )
        raise _mmrazor_error from error
