"""Reading configs, and what a command line sets in them: work dir, resuming, learning rate."""

import difflib
import importlib.util
import os.path as osp
from pathlib import Path

from mmengine.config import Config
from mmengine.hub import get_config

from ..registry import type_name
from .checkpoint_files import POINTER, find_last_checkpoint
from .checkpoint_loading import why_not_whole
from .errors import UsageError
from .text_config import name_types

__all__ = [
    'UsageError',
    'load_config',
    'set_auto_scale_lr',
    'set_resume',
    'set_work_dir',
    'use_resumable_checkpoints',
]


def load_config(filename: str, options: dict | None = None) -> Config:
    """Read a config file; ``mmseg::`` bases work, as :mod:`rawkd_mm` is imported already.

    Args:
        filename (str): Path of a text config, or the name of a published one such as
            ``'mmseg::pspnet/pspnet_r18-d8_...py'``.
        options (dict, optional): ``a.b.c=value`` entries that override the file's.

    Returns:
        Config: The config. Classes and functions that a new-style config has as types are replaced
        by their names, see :func:`rawkd_mm.training.text_config.name_types`.

    Raises:
        UsageError: If a name is none of a published config (names the closest that there are), or
            that config needs a package that is not installed, or a new-style config calls what it
            imports.
    """
    try:
        cfg = _published_config(filename) if '::' in filename else Config.fromfile(filename)
    except RuntimeError as error:  # how a call of a lazily imported object ends, without a message
        raise UsageError(
            f'{filename} cannot be read: {type(error).__name__}: {error}. A new-style config cannot '
            'call what it imports'
        ) from error
    cfg = name_types(cfg)
    if options:
        cfg.merge_from_dict(options)
    return cfg


def _published_config(name: str) -> Config:
    try:
        return get_config(name)
    except (AssertionError, ImportError, OSError, ValueError) as error:
        package, _, path = name.partition('::')
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        if spec is None:
            raise UsageError(
                f'{name!r}: there is no package {package!r}. The name of a published config is '
                "'mmseg::FOLDER/FILE.py' or 'mmdet::FOLDER/FILE.py'"
            ) from error
        folder = Path(spec.origin).parent / '.mim' / 'configs'
        names = [str(file.relative_to(folder)) for file in folder.glob('*/*.py')]
        if path in names:
            raise UsageError(f'{name} cannot be read: {type(error).__name__}: {error}') from error
        close = (
            difflib.get_close_matches(path, names, n=3)
            or [n for n in names if n.partition('/')[0] == path.partition('/')[0]][:5]
        )
        raise UsageError(
            f'{package} has no config {path!r}'
            + (f'; the closest are {", ".join(close)}' if close else '')
        ) from error


def set_work_dir(cfg: Config, work_dir: str | None = None) -> None:
    """Decide where logs and checkpoints go.

    Args:
        cfg (Config): Changed in place.
        work_dir (str, optional): The folder; by default the config's own ``work_dir``, and if
            it has none ``./work_dirs/<name of the config file>``.
    """
    if work_dir is not None:
        cfg.work_dir = work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = osp.join('./work_dirs', osp.splitext(osp.basename(cfg.filename))[0])


def set_auto_scale_lr(cfg: Config) -> None:
    """Turn on the scaling of the learning rate with the total batch size.

    Args:
        cfg (Config): Changed in place.

    Raises:
        UsageError: If the config does not say for which batch size its learning rate is meant.
    """
    base = (cfg.get('auto_scale_lr') or {}).get('base_batch_size')
    if base is None:
        raise UsageError(
            '--auto-scale-lr: the config does not say which total batch size its learning rate is '
            f'meant for, auto_scale_lr={cfg.get("auto_scale_lr")}. Add '
            'auto_scale_lr = dict(enable=False, base_batch_size=N), or on the command line '
            '--cfg-options auto_scale_lr.base_batch_size=N'
        )
    cfg.auto_scale_lr.enable = True


def set_resume(cfg: Config, resume: str) -> list[str]:
    """Let a training go on from a checkpoint.

    Unlike with MMEngine's own ``resume=True``, the work dir's checkpoint counts also where the
    config has a ``load_from`` (weights to begin with), and after the work dir was moved.

    Args:
        cfg (Config): Changed in place; its ``work_dir`` must be final.
        resume (str): Path or URL of a checkpoint, or 'auto' for the last whole one of the work dir.
            If the work dir has none yet, the training begins from the start.

    Returns:
        list[str]: What will happen, for the log.

    Raises:
        UsageError: If the checkpoint does not exist or is not whole.
    """
    if resume != 'auto':
        if '://' not in resume:
            if not osp.isfile(resume):
                raise UsageError(
                    f'--resume {resume}: no such file. Give the path of a checkpoint, or --resume '
                    f'auto for the last one in {cfg.work_dir!r}'
                )
            reason = why_not_whole(resume)
            if reason is not None:
                raise UsageError(
                    f'--resume {resume}: {reason}. Give another checkpoint, or --resume auto for '
                    f'the last whole one in {cfg.work_dir!r}'
                )
        cfg.resume, cfg.load_from = True, resume
        return [f'The training resumes from {resume}.']
    try:
        checkpoint, passed_over = find_last_checkpoint(cfg.work_dir)
    except ValueError as error:
        raise UsageError(f'--resume: {error}') from error
    notes = [f'Not resumed from {reason}.' for reason in passed_over]
    if checkpoint is None:
        cfg.resume = False
        return [
            *notes,
            f'Nothing to resume: {cfg.work_dir!r} has no {POINTER}. Training from the start.',
        ]
    cfg.resume, cfg.load_from = True, checkpoint
    which = 'newest whole' if notes else 'last'
    return [*notes, f'The training resumes from the {which} checkpoint, {checkpoint}.']


def use_resumable_checkpoints(cfg: Config) -> list[str]:
    """Save checkpoints by ``ResumableCheckpointHook`` where a config takes MMEngine's own hook.

    Args:
        cfg (Config): Changed in place.

    Returns:
        list[str]: What was done, for the log.
    """
    hooks = cfg.get('default_hooks') or {}
    # MMEngine's own default, if the config does not mention it
    hook = hooks.get('checkpoint', dict(type='CheckpointHook', interval=1))
    name = type_name((hook or {}).get('type'))
    if name == 'CheckpointHook':
        cfg.default_hooks = {
            **hooks,
            'checkpoint': {**hook, 'type': 'ResumableCheckpointHook'},
        }
        return ['Checkpoints are saved by ResumableCheckpointHook instead of CheckpointHook.']
    if name == 'ResumableCheckpointHook':
        return []
    return [
        f'default_hooks.checkpoint is {hook}: a training that is resumed will not be exactly the '
        'one that was interrupted, as with type=ResumableCheckpointHook it would be.'
    ]
