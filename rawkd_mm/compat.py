"""Everything that depends on the versions of other packages, and nothing else.

Importing :mod:`rawkd_mm` calls :func:`setup`, which

* says which required package is missing or untested,
* imports MMSegmentation (and MMDetection where its compiled operators are available),
* imports MMRazor on torch >= 2 and any MMCV (:func:`load_mmrazor`),
* lets configs inherit from ``mmseg::...`` where MMSegmentation is installed under another
  distribution name (:func:`mend_mmseg_lookup`), and
* lets a distillation keep its connectors apart from the student's optimizer groups
  (:func:`let_models_split_their_parameters`).

:func:`keep_from_skipping` is for the resuming of trainings, :func:`channel_swap_and_padding` for
teachers whose images are made otherwise than the student's, :func:`load_weights_only` for reading
checkpoints without running code.
"""

import codecs
import functools
import importlib
import importlib.util
import itertools
import pickle
import sys
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

from .needless_messages import silence

__all__ = [
    'TESTED_VERSIONS',
    'autocast_dtype',
    'channel_swap_and_padding',
    'find_is_compiling',
    'has_mmcv_ops',
    'installed_versions',
    'is_autocast_enabled',
    'keep_from_skipping',
    'let_models_split_their_parameters',
    'load_mmrazor',
    'load_weights_only',
    'mend_mmseg_lookup',
    'numpy_globals',
    'setup',
    'user_safe_globals',
]

# Import name -> {distribution name: versions the tests have run with}. Of several distributions that
# provide the same import name the first installed one counts.
TESTED_VERSIONS = {
    'torch': {'torch': ('2.14', '2.10', '2.1')},
    'mmengine': {'onedl-mmengine': ('0.10.12',), 'mmengine': ('0.10.7',)},
    'mmcv': {'onedl-mmcv': ('2.3.6',), 'mmcv': ('2.1.0',)},
    'mmseg': {'onedl-mmsegmentation': ('1.4.2',), 'mmsegmentation': ('1.2.2',)},
    'mmdet': {'onedl-mmdetection': ('3.5.1',), 'mmdet': ('3.3.0',)},
    'mmrazor': {'mmrazor': ('1.0.0',)},
}
# Other distributions of the same import names, not yet tested.
_OTHER_DISTRIBUTIONS = {
    'mmengine': ('mmengine-lite',),
    'mmcv': ('mmcv-lite',),
}
_OPTIONAL = ('mmdet',)
# Needed by MMRazor and MMSegmentation 1.2.2, declared by neither.
_UNDECLARED = {'joblib': 'mmrazor', 'ftfy': 'mmseg', 'regex': 'mmseg'}

# What MMRazor 1.0.0 has to see: with a torch before 1.13 its quantization package, which uses names
# that torch 2.0 removed, takes its own "not available" path; newer MMCV it refuses by an assertion.
_MASKED_VERSIONS = {'torch': '1.12.1', 'mmcv': '2.1.0'}


def installed_versions() -> dict:
    """Find the installed distribution of every package that rawkd_mm builds on.

    Returns:
        dict[str, tuple[str, str] | None]: Import name -> (distribution, version), ``None`` where
        nothing that provides the import name is installed.
    """
    found = {}
    for name, tested in TESTED_VERSIONS.items():
        found[name] = None
        for distribution in (*tested, *_OTHER_DISTRIBUTIONS.get(name, ())):
            try:
                found[name] = (distribution, version(distribution))
                break
            except PackageNotFoundError:
                continue
        else:
            # e.g. a source tree on PYTHONPATH: usable, though no metadata tells its version
            spec = importlib.util.find_spec(name)
            if spec is not None and spec.origin is not None:
                found[name] = (name, 'unknown')
    return found


def _tested_text(name: str) -> str:
    return ' or '.join(
        f'{distribution} {"/".join(versions)}'
        for distribution, versions in TESTED_VERSIONS[name].items()
    )


def _is_tested(name: str, distribution: str, installed: str) -> bool:
    tested = TESTED_VERSIONS[name].get(distribution, ())
    public = installed.split('+')[0]
    return any(public == v or public.startswith(f'{v}.') for v in tested)


def check_versions() -> None:
    """Compare the installed packages with the tested ones.

    Raises:
        ImportError: If a required package is missing; names all that are, with tested versions.

    Warns:
        UserWarning: If a package is installed in a version that the tests have not run with.
    """
    found = installed_versions()
    missing = [n for n, f in found.items() if f is None and n not in _OPTIONAL]
    undeclared = [n for n in _UNDECLARED if importlib.util.find_spec(n) is None]
    if missing or undeclared:
        lines = [f'  {n}: tested with {_tested_text(n)}' for n in missing]
        lines += [f'  {n}: any version; {_UNDECLARED[n]} imports it undeclared' for n in undeclared]
        raise ImportError(
            'rawkd_mm needs packages that are not installed:\n'
            + '\n'.join(lines)
            + '\nInstall them, for example with `pip install -r requirements.txt` of rawkd_mm.'
        )
    untested = [n for n, f in found.items() if f is not None and not _is_tested(n, *f)]
    if untested:
        warnings.warn(
            'rawkd_mm is untested with '
            + '; '.join(f'{" ".join(found[n])} (tested: {_tested_text(n)})' for n in untested),
            stacklevel=2,
        )


def has_mmcv_ops() -> bool:
    """Tell whether the installed MMCV has its compiled operators, which MMDetection needs."""
    mmcv = importlib.util.find_spec('mmcv')
    return mmcv is not None and importlib.util.find_spec('mmcv._ext') is not None


def mend_mmseg_lookup() -> None:
    """Let MMEngine find ``mmseg::`` configs when MMSegmentation is installed as a fork.

    MMEngine maps ``mmseg`` to the distribution 'mmsegmentation' and stops if that name is not
    installed, although a fork provides the same package.
    """
    from mmengine.config import utils

    found = installed_versions()['mmseg']
    if found is not None and found[1] != 'unknown':
        utils.MODULE2PACKAGE['mmseg'] = found[0]


def let_models_split_their_parameters() -> None:
    """Let a model say which part of it MMEngine's optimizer constructors are for.

    A constructor looks at the names and the attributes of the model that it is given: layer-wise
    decay counts the layers of ``model.backbone``, ``custom_keys`` match parts of names. A model with a
    method ``split_for_optimizer`` gives the part that the constructor gets and a dict of further
    parameters by name, which become a group of their own with the optimizer's own rate and decay.
    """
    from mmengine.optim.optimizer import builder

    original = builder.build_optim_wrapper
    if hasattr(original, '__wrapped__'):
        return

    @functools.wraps(original)
    def build_optim_wrapper(model, cfg):
        from mmengine.model import is_model_wrapper

        inner = model.module if is_model_wrapper(model) else model
        if not hasattr(type(inner), 'split_for_optimizer'):
            return original(model, cfg)
        part, others = inner.split_for_optimizer()
        wrapper = original(part, cfg)
        if others:
            _add_group(wrapper, others)
        return wrapper

    modules = ('mmengine.optim', 'mmengine.optim.optimizer', 'mmengine.runner.runner')
    for module in (*map(importlib.import_module, modules), builder):
        module.build_optim_wrapper = build_optim_wrapper
    strategy = sys.modules.get('mmengine._strategy.base')
    if strategy is not None:
        strategy.build_optim_wrapper = build_optim_wrapper


def _add_group(wrapper, parameters: dict) -> None:
    from mmengine.optim import OptimWrapperDict

    if isinstance(wrapper, OptimWrapperDict):
        raise TypeError(
            f'the optimizer constructor gives a {type(wrapper).__name__} of several optimizers, and it '
            "is not clear which one trains the distillation's connectors. Use a constructor that "
            'gives one OptimWrapper, or losses without connectors (align=None).'
        )
    group = dict(params=list(parameters.values()))
    # Constructors of layer-wise decay name the parameters, and torch wants all groups named or none.
    if any('param_names' in given for given in wrapper.optimizer.param_groups):
        group['param_names'] = list(parameters)
    wrapper.optimizer.add_param_group(group)


def channel_swap_and_padding(preprocessor) -> tuple:
    """Ask a data_preprocessor what it does to images besides normalising them.

    MMEngine's ImgDataPreprocessor has ``_channel_conversion`` and ``pad_value``; mmseg 1.2.2's
    SegDataPreProcessor, which does not derive from it, ``channel_conversion`` and ``pad_val``.

    Args:
        preprocessor (nn.Module): The data_preprocessor of a model.

    Returns:
        tuple[bool | None, Number]: Whether it reverses the channels, None if it does not tell; and
        the value that it pads images with, 0 if it does not tell.
    """

    def first(names, default):
        return next((getattr(preprocessor, n) for n in names if hasattr(preprocessor, n)), default)

    swap = first(('_channel_conversion', 'channel_conversion'), None)
    return swap, first(('pad_value', 'pad_val'), 0)


def find_is_compiling():
    """Give the function that tells whether torch.compile is tracing, by whatever name torch has it."""
    import torch

    found = getattr(torch.compiler, 'is_compiling', None)
    return found or importlib.import_module('torch._dynamo').is_compiling


def is_autocast_enabled(device_type: str) -> bool:
    """Tell whether mixed precision is on for a type of device, which torch 2.1 asks otherwise.

    Args:
        device_type (str): 'cpu' or 'cuda'.
    """
    import torch

    try:
        return torch.is_autocast_enabled(device_type)
    except TypeError:  # torch 2.1 has a function for each
        return (
            torch.is_autocast_cpu_enabled() if device_type == 'cpu' else torch.is_autocast_enabled()
        )


def autocast_dtype(device_type: str):
    """Give the type that mixed precision on a type of device has, whether it is on or not.

    Args:
        device_type (str): 'cpu' or 'cuda'.

    Returns:
        torch.dtype: The low precision.
    """
    import torch

    if hasattr(torch, 'get_autocast_dtype'):
        return torch.get_autocast_dtype(device_type)
    # torch before 2.4 has a function for each
    return (
        torch.get_autocast_cpu_dtype() if device_type == 'cpu' else torch.get_autocast_gpu_dtype()
    )


def keep_from_skipping(loop) -> None:
    """Let an IterBasedTrainLoop that resumes take its batches as they come.

    Of the iterations that were trained already, onedl-mmengine tells its iterator to skip the
    batches, while MMEngine 0.10.7 loads them all and throws them away.

    Args:
        loop (IterBasedTrainLoop): Its iterator must begin with the batch that comes next.
    """
    iterator = loop.dataloader_iterator
    if hasattr(iterator, 'skip_iter'):
        iterator.skip_iter = lambda num_iters: None
    else:
        loop.dataloader_iterator = itertools.chain(itertools.repeat(None, loop.iter), iterator)


def numpy_globals() -> dict[str, object]:
    """Find what pickles of numpy arrays and numbers call, by the names that any numpy has given it.

    numpy 2 moved ``numpy.core`` to ``numpy._core``, and gave each dtype a class.
    """
    import numpy

    core = getattr(numpy, '_core', None)
    if not hasattr(core, 'multiarray'):  # numpy 1.26 has an empty one
        core = numpy.core
    found = {
        f'numpy.{module}.multiarray.{name}': getattr(core.multiarray, name)
        for module in ('core', '_core')
        for name in ('scalar', '_reconstruct')
    }
    dtypes = getattr(numpy, 'dtypes', None)  # since numpy 1.25
    for name in dir(dtypes):
        if name.endswith('DType') and name != 'ObjectDType':
            found[f'numpy.dtypes.{name}'] = getattr(dtypes, name)
    return found


# Since torch 2.6 an object may be allowed under another name, as numpy's need.
def _has_safe_globals() -> bool:
    import torch

    return hasattr(torch.serialization, 'get_unsafe_globals_in_checkpoint')


def user_safe_globals() -> dict[str, object]:
    """Give what ``torch.serialization.add_safe_globals`` was given, by name; {} before torch 2.6."""
    if not _has_safe_globals():
        return {}
    import torch

    given = [
        g if isinstance(g, tuple) else (g, None) for g in torch.serialization.get_safe_globals()
    ]
    return {name or f'{g.__module__}.{g.__qualname__}': g for g, name in given}


def load_weights_only(load: Callable, file: object, map_location: object, allowed: dict) -> object:
    """Call ``torch.load`` for tensors, plain values and some globals, and nothing else.

    torch before 2.6 cannot be told which globals to allow: there the pickle module that it is given
    finds no other ones than these and those that torch itself allows.

    Args:
        load (Callable): ``torch.load``.
        file (str | BinaryIO): What to load.
        map_location (object): Where the tensors go.
        allowed (dict[str, object]): Globals by the names under which files ask for them.

    Raises:
        pickle.UnpicklingError: If the file asks for another global.
    """
    if not _has_safe_globals():
        # newer versions of torch allow this by themselves, numpy's strings need it
        allowed = {'_codecs.encode': codecs.encode, **allowed}
        return load(
            file, map_location=map_location, weights_only=False, pickle_module=_restricted(allowed)
        )
    from torch import serialization

    before = serialization.get_safe_globals()
    serialization.clear_safe_globals()
    try:
        serialization.add_safe_globals([(value, name) for name, value in allowed.items()])
        return load(file, map_location=map_location, weights_only=True)
    finally:
        serialization.clear_safe_globals()
        serialization.add_safe_globals(before)


def _restricted(allowed: dict) -> object:
    """Make a module like pickle that finds no other globals than these and torch's own."""
    from torch._weights_only_unpickler import _get_allowed_globals

    known = {**_get_allowed_globals(), **allowed}

    class Restricted:
        UnpicklingError = pickle.UnpicklingError

        class Unpickler(pickle.Unpickler):
            def find_class(self, module: str, name: str) -> object:
                try:
                    return known[f'{module}.{name}']
                except KeyError:
                    raise pickle.UnpicklingError(
                        f'Unsupported global: GLOBAL {module}.{name}'
                    ) from None

        @classmethod
        def load(cls, file: object, **kwargs: object) -> object:
            return cls.Unpickler(file, **kwargs).load()

    return Restricted


@contextmanager
def _masked_versions():
    """Show the versions that MMRazor accepts for as long as the context lasts."""
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
    # A process that has imported MMRazor some other way needs nothing from us.
    if 'mmrazor.models' in sys.modules and 'mmrazor.engine' in sys.modules:
        return
    if _mmrazor_error is not None:
        # its registries exist already; a second attempt would fail with that, not with the reason
        raise _mmrazor_error
    # What looks at the versions when it is imported shall see the true ones.
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
            f'rawkd_mm is tested with {_tested_text("mmrazor")}.'
        )
        raise _mmrazor_error from error


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
