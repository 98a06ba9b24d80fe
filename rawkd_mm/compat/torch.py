"""PyTorch: mixed precision, graphs and safe loading, by the names that each version has."""

import codecs
import importlib
import pickle
from collections.abc import Callable

__all__ = [
    'autocast_dtype',
    'begin_graph_step',
    'find_is_compiling',
    'has_safe_globals',
    'is_autocast_enabled',
    'load_weights_only',
    'user_safe_globals',
]


def find_is_compiling():
    """Give torch's function that tells whether torch.compile is tracing; its name has changed."""
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


def begin_graph_step() -> None:
    """Tell CUDA graphs that what they gave in the step before may be overwritten.

    Without this, each compiled module begins a step of its own, and overwrites what the one before
    has given to it. torch 2.1 cannot be told. Without a GPU there are no such graphs.
    """
    import torch

    mark = getattr(torch.compiler, 'cudagraph_mark_step_begin', None)
    if mark is not None and torch.cuda.is_available():
        mark()


def has_safe_globals() -> bool:
    """Tell whether an object may be allowed under another name, as numpy's need: since torch 2.6."""
    import torch

    return hasattr(torch.serialization, 'get_unsafe_globals_in_checkpoint')


def user_safe_globals() -> dict[str, object]:
    """Give what ``torch.serialization.add_safe_globals`` was given, by name; {} before torch 2.6."""
    if not has_safe_globals():
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
    if not has_safe_globals():
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
