"""Reading checkpoints as data, without running what they may carry, and telling what a bad file is.

A checkpoint is a pickle, and a pickle can run any code. What is read within :func:`weights_only` can
not: tensors, plain Python values and :data:`HARMLESS` are all that it may hold. MMEngine alone does
not see to that: 0.10.7 never asks torch for it, onedl-mmengine asks and, where torch refuses, loads
the file all the same.
"""

import contextlib
import difflib
import io
import os
import pickle
import pickletools
import urllib.error
import urllib.parse
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO
from unittest.mock import patch

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim import OneCycleParamScheduler
from mmengine.runner.checkpoint import _load_checkpoint

from ..compat import load_weights_only, numpy_globals, user_safe_globals
from .checkpoint import CheckpointError

__all__ = ['HARMLESS', 'TRUST_VARIABLE', 'load_checkpoint', 'weights_only', 'why_not_whole']

# Set to 1 in the environment, it lets checkpoints run code when they are loaded.
TRUST_VARIABLE = 'RAWKD_MM_TRUST_CHECKPOINTS'


# What checkpoints of MMEngine ask getattr for: each HistoryBuffer for its class's own statistics, and
# the state of a OneCycleLR for its class's curve.
_METHODS = {
    HistoryBuffer: ('min', 'max', 'current', 'mean'),
    OneCycleParamScheduler: ('_annealing_cos', '_annealing_linear'),
}


def _method(owner: Any, name: str) -> Any:
    """Stand in for getattr, for :data:`_METHODS` alone."""
    if not any(owner is cls and name in names for cls, names in _METHODS.items()):
        raise pickle.UnpicklingError(f'getattr of {name!r} of {owner!r}')
    return getattr(owner, name)


# What checkpoints of MMEngine hold beyond what torch allows by itself, by the name that is in the
# file: the logs of the message hub, numpy arrays and numbers in them and in 'meta', and schedules.
HARMLESS = {
    'mmengine.logging.history_buffer.HistoryBuffer': HistoryBuffer,
    'mmengine.optim.scheduler.param_scheduler.OneCycleParamScheduler': OneCycleParamScheduler,
    '__builtin__.getattr': _method,
    'builtins.getattr': _method,
    'collections.OrderedDict': OrderedDict,
    **numpy_globals(),
    'numpy.ndarray': np.ndarray,
    'numpy.dtype': np.dtype,
}

_LFS = b'version https://git-lfs.github.com/spec/'
_TEXT_STARTS = (b'<!doctype', b'<html', b'<?xml', b'<head')


def load_checkpoint(filename: str, map_location: str = 'cpu') -> Any:
    """Load a checkpoint from a path, URL or MMEngine name, as data only (:func:`weights_only`).

    Args:
        filename (str): A path, a URL, or a name such as ``'open-mmlab://resnet18_v1c'``. What is
            downloaded is kept where MMEngine keeps it.
        map_location (str): Where the tensors go. Defaults to 'cpu'.

    Returns:
        Any: What was saved, a dict as a rule; the tensors of a ``.safetensors`` file on the CPU.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If it is no checkpoint, is cut off, would run code, or cannot be downloaded.
    """
    _check_path(filename)
    try:
        if urllib.parse.urlsplit(filename).path.endswith('.safetensors'):
            return load_safetensors(filename)
        with weights_only():
            return _load_checkpoint(filename, map_location=map_location)
    except urllib.error.URLError as error:
        raise CheckpointError(
            f'{filename!r} could not be downloaded: {error}. Check the address; on a machine without '
            'network, download it elsewhere and give its path.'
        ) from error
    except KeyError as error:
        # of MMEngine's tables of names
        raise CheckpointError(
            f'{filename!r}: MMEngine knows no weights of the name {error}. Give a path or a URL.'
        ) from error


def load_safetensors(filename: str) -> dict[str, torch.Tensor]:
    """Load a safetensors file, which holds tensors and cannot run code.

    Args:
        filename (str): A path, or a URL, whose file torch.hub keeps.

    Returns:
        dict[str, Tensor]: The tensors, on the CPU.

    Raises:
        CheckpointError: If the library safetensors is missing, or the file is damaged.
    """
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise CheckpointError(
            f"{filename!r} needs the library safetensors: pip install 'rawkd_mm[timm]'"
        ) from error
    if '://' in filename:
        name = Path(urllib.parse.urlsplit(filename).path).name
        kept = Path(torch.hub.get_dir(), 'checkpoints', name)
        if not kept.is_file():
            kept.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(filename, str(kept), progress=False)
        filename = str(kept)
    try:
        return load_file(filename)
    except Exception as error:  # SafetensorError derives from Exception alone
        raise CheckpointError(
            f'{filename!r} cannot be read as safetensors, it was cut off, damaged or is none: {error}'
        ) from error


def _check_path(filename: str) -> None:
    if '://' in filename:
        return
    path = Path(filename).expanduser()
    if path.is_dir():
        there = sorted(p.name for p in path.iterdir() if p.suffix in ('.pth', '.safetensors'))
        raise CheckpointError(
            f'{filename!r} is a folder; give the path of a checkpoint in it: '
            f'{", ".join(there[-5:]) or "it has no *.pth and no *.safetensors"}'
        )
    if not path.is_file():
        names = [p.name for p in path.parent.glob('*')] if path.parent.is_dir() else []
        close = difflib.get_close_matches(path.name, names, n=3, cutoff=0.6)
        hint = (
            f'the closest names there are {close}'
            if close
            else 'its folder does not exist'
            if not path.parent.is_dir()
            else 'its folder has nothing of a similar name'
        )
        raise FileNotFoundError(
            f'{filename!r} does not exist (current folder {os.getcwd()!r}); {hint}. Give the path or '
            'URL of a checkpoint.'
        )


@contextlib.contextmanager
def weights_only() -> Iterator[None]:
    """Let every ``torch.load`` within the context accept data only.

    MMEngine's schemes (paths, URLs, ``open-mmlab://`` and the like, file backends) all end there.
    With ``RAWKD_MM_TRUST_CHECKPOINTS=1`` in the environment, files are loaded whatever they do.

    Raises:
        CheckpointError: From ``torch.load``, if the file is no checkpoint, is cut off, or would run
            code; names the globals that it asks for.
    """
    if os.environ.get(TRUST_VARIABLE) == '1':
        load = torch.load

        def load_all(*args: Any, **kwargs: Any) -> Any:
            return load(*args, **{**kwargs, 'weights_only': False})

        with patch.object(torch, 'load', load_all):
            yield
        return
    # What a user has told torch to allow counts; MMEngine's own list, with getattr in it, does not.
    allowed = {**HARMLESS, **user_safe_globals()}

    def load(f: str | os.PathLike | BinaryIO, map_location: Any = None, **_: Any) -> Any:
        problem = _why_no_checkpoint(f)
        if problem:
            raise CheckpointError(f'{_name(f)} {problem}')
        try:
            return load_weights_only(original, f, map_location, allowed)
        except pickle.UnpicklingError as error:
            raise CheckpointError(_explain(f, error, allowed)) from error
        except (EOFError, RuntimeError, ValueError, KeyError, IndexError, OSError) as error:
            raise CheckpointError(
                f'{_name(f)} cannot be read as a checkpoint, it was cut off, damaged or is none: '
                f'{error!r}'
            ) from error

    original = torch.load
    with patch.object(torch, 'load', load):
        yield


def _name(f: Any) -> str:
    return repr(os.fspath(f)) if isinstance(f, (str, os.PathLike)) else 'the checkpoint'


@contextlib.contextmanager
def _opened(f: Any) -> Iterator[BinaryIO]:
    if isinstance(f, (str, os.PathLike)):
        with open(f, 'rb') as file:
            yield file
    else:
        at = f.tell()
        try:
            yield f
        finally:
            f.seek(at)


def _why_no_checkpoint(f: Any) -> str | None:
    """Tell what a file is by its beginning and, of a zip file, its end."""
    with _opened(f) as file:
        head = file.read(1024)
        start = head.lstrip().lower()
        if not head:
            return 'is empty (0 bytes): copy or download it again'
        if head.startswith(_LFS):
            return (
                'is a Git LFS pointer, not the file itself: fetch it with `git lfs pull` in its '
                'repository'
            )
        if start.startswith(_TEXT_STARTS):
            return (
                f'is a web page (it begins with {head[:40]!r}), not a checkpoint: the download gave '
                'a login, error or landing page. Delete it and download the file itself'
            )
        if head.startswith(b'PK'):
            file.seek(0)
            if not zipfile.is_zipfile(file):
                size = file.seek(0, os.SEEK_END)
                return (
                    f'was cut off ({size} bytes, without the end that a checkpoint has): copy or '
                    'download it again'
                )
    return None


def _explain(f: Any, error: pickle.UnpicklingError, allowed: dict) -> str:
    known = {*allowed, *_TORCH_NAMES}
    asked = []
    with contextlib.suppress(zipfile.BadZipFile):  # damaged
        asked = [n for n in _globals_of(f) if n not in known and not n.startswith('torch.')]
    if not asked:
        return (
            f'{_name(f)} cannot be read as a checkpoint, it was damaged or is none: '
            f'{str(error).splitlines()[0]}'
        )
    return (
        f'{_name(f)} is not loaded: beyond tensors and plain values it asks for '
        f'{", ".join(asked)}, which may run any code. If you trust where it comes from, set '
        f'{TRUST_VARIABLE}=1 in the environment; better, keep only the weights: '
        "torch.save(dict(state_dict=checkpoint['state_dict']), ...)."
    )


_TORCH_NAMES = ('collections.OrderedDict', 'collections.Counter', 'builtins.set', '_codecs.encode')


def _globals_of(f: Any) -> list[str]:
    """Names of all globals in the pickle of a file, which is not run."""
    with _opened(f) as file:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                names = [n for n in archive.namelist() if n.endswith('data.pkl')]
                pickles = [archive.read(names[0])] if names else []
        else:
            file.seek(0)
            pickles = [file.read()]
    found: dict[str, None] = {}
    for data in pickles:
        stream = io.BytesIO(data)
        # one after another, as older versions of torch wrote them, until something else follows
        with contextlib.suppress(Exception):
            while stream.tell() < len(data):
                strings: list[str] = []
                memo: list[str | None] = []
                for opcode, argument, _ in pickletools.genops(stream):
                    if opcode.name == 'GLOBAL':
                        found[argument.replace(' ', '.')] = None
                    elif opcode.name == 'STACK_GLOBAL':
                        found['.'.join(strings[-2:])] = None
                    elif opcode.name == 'MEMOIZE':
                        memo.append(strings[-1] if strings else None)
                    elif opcode.name in ('BINGET', 'LONG_BINGET') and memo:
                        strings.append(str(memo[argument]))
                    elif isinstance(argument, str):
                        strings.append(argument)
    return list(found)


def why_not_whole(filename: str | Path) -> str | None:
    """Tell whether a checkpoint was cut off or damaged, from its checksums.

    Args:
        filename (str | Path): A file that ``torch.save`` has written.

    Returns:
        str | None: What is wrong, None if it is whole.
    """
    size = os.path.getsize(filename)
    try:
        with zipfile.ZipFile(filename) as archive:
            damaged = archive.testzip()
    except zipfile.BadZipFile:
        return f'it was cut off or is no checkpoint ({size} bytes, without the end that they have)'
    return damaged and f'its part {damaged!r} is damaged'
