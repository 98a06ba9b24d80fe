"""Reading configs and changing them: resume, reduce to the student, make self-contained."""

import copy
import difflib
import importlib.util
import os.path as osp
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.hub import get_config
from mmengine.registry import HOOKS

from ..registry import find_type, type_name
from .checkpoint_files import POINTER, find_last_checkpoint
from .checkpoint_loading import why_not_whole
from .errors import UsageError
from .text_config import add_imports, name_types

__all__ = [
    'UsageError',
    'inline_models',
    'is_distillation',
    'load_config',
    'make_paths_relative',
    'package_of',
    'remove_pretrained',
    'resolve_model',
    'set_auto_scale_lr',
    'set_resume',
    'set_work_dir',
    'student_config',
    'teacher_config',
    'use_resumable_checkpoints',
]


# How MMEngine's initialisation from a checkpoint is called, by its name and as a class.
_PRETRAINED = ('Pretrained', 'PretrainedInit')


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


def is_distillation(cfg: Config) -> bool:
    """Tell whether a config's model is a distillation: a student with a teacher or a distiller."""
    model = cfg.get('model') or {}
    return 'architecture' in model and ('distiller' in model or 'teacher' in model)


def package_of(cfg: Config) -> str | None:
    """Tell which package a config's model is of.

    Args:
        cfg (Config): Any config.

    Returns:
        str | None: Its ``default_scope``, such as 'mmseg' or 'mmdet'. Of a config without one, as
        new-style configs may be, what its model's type begins with; of a distillation, its
        student's type. None if neither tells it.
    """
    if cfg.get('default_scope'):
        return cfg.default_scope
    model = cfg.get('model') or {}
    kind = (model.get('architecture') or model).get('type')
    path = kind if isinstance(kind, str) else getattr(kind, '__module__', '')
    return path.partition('.')[0] if '.' in path else None


def resolve_model(model: dict) -> dict:
    """Replace a model given as ``dict(cfg_path=...)`` by the model's config itself.

    Args:
        model (dict): A model's config, or ``dict(cfg_path=..., pretrained=False)`` with the path of
            a config file (relative to the current folder) or a name such as
            ``'mmseg::pspnet/pspnet_r18-d8_...py'``.

    Returns:
        dict: A copy. If it came from a file, it has the data_preprocessor that MMEngine's Runner
        gives it (the model's own, else that of the file's top level) and ``_scope_``; with
        ``pretrained=True``, its ``init_cfg`` names the published weights.

    Raises:
        UsageError: If there is no such config, or it has no model or a distillation, or more
            arguments are given.
    """
    return _resolve(model)[0]


def _resolve(model: dict) -> tuple[dict, dict | None]:
    """Give a model as :func:`resolve_model` does, and the custom_imports of its file."""
    model = copy.deepcopy(dict(model))
    path = model.pop('cfg_path', None)
    if path is None or 'type' in model:
        return model, None
    pretrained = model.pop('pretrained', False)
    if model:
        raise UsageError(
            f'cfg_path={path!r} comes with {sorted(model)}: next to cfg_path only pretrained is '
            'understood. Write the model out, or put the change into a config file of its own'
        )
    try:
        file = get_config(path, pretrained) if '::' in path else Config.fromfile(path)
    except FileNotFoundError as error:
        raise UsageError(
            f'cfg_path={path!r} (current folder {osp.abspath(".")}): {error}'
        ) from error
    file = name_types(file)
    if 'model' not in file:
        raise UsageError(f'cfg_path={path!r} has no model, only {sorted(file.keys())}')
    if is_distillation(file):
        raise UsageError(
            f'cfg_path={path!r} is the config of a distillation. Name the config of a model alone'
        )
    scope = path.partition('::')[0] if '::' in path else file.get('default_scope')
    resolved = copy.deepcopy(dict(file.model))
    if file.get('data_preprocessor') is not None:
        resolved.setdefault('data_preprocessor', copy.deepcopy(file.data_preprocessor))
    if scope is not None:
        resolved.setdefault('_scope_', scope)
    if pretrained:
        resolved['init_cfg'] = dict(type='Pretrained', checkpoint=file.model_path)
    return resolved, file.get('custom_imports')


def student_config(cfg: Config) -> Config:
    """Reduce a distillation to its student, as if it had been trained alone.

    Hooks that are about the distillation are left out: MMRazor's, and those with
    ``needs_distillation = True``.

    Args:
        cfg (Config): Any config.

    Returns:
        Config: A copy, in which ``model`` is the student with the data_preprocessor that it is
        trained with: its own, and only if it has none, that of the distillation or of the config's
        top level. A config without distillation comes back as it is.
    """
    cfg = copy.deepcopy(cfg)
    if not is_distillation(cfg):
        return cfg
    student, imports = _resolve(cfg.model.architecture)
    # in the order in which Runner and algorithm decide
    for preprocessor in (cfg.model.get('data_preprocessor'), cfg.get('data_preprocessor')):
        if preprocessor is not None:
            student.setdefault('data_preprocessor', preprocessor)
    if cfg.get('data_preprocessor') is not None and student['data_preprocessor'] is not None:
        # MMEngine's models for test-time augmentation take this one, whatever the model has
        cfg.data_preprocessor = copy.deepcopy(student['data_preprocessor'])
    cfg.model = student
    add_imports(cfg, imports)
    _leave_out_hooks(cfg)
    for key in ('val_cfg', 'test_cfg'):
        loop = cfg.get(key) or {}
        if (
            type_name(loop.get('type')) == 'SingleTeacherDistillValLoop'
        ):  # validates the teacher too
            cfg[key] = {**loop, 'type': 'ValLoop' if key == 'val_cfg' else 'TestLoop'}
    return cfg


def teacher_config(cfg: Config) -> Config:
    """Reduce a distillation to its teacher, with the data and evaluators of the student.

    Args:
        cfg (Config): A distillation, see :func:`is_distillation`, with a teacher.

    Returns:
        Config: A copy, in which ``model`` is the teacher with its own data_preprocessor, or where
        it has none with the student's.
    """
    preprocessor = student_config(cfg).model.get('data_preprocessor')
    cfg = copy.deepcopy(cfg)
    teacher, imports = _resolve(cfg.model.teacher)
    if preprocessor is not None:
        teacher.setdefault('data_preprocessor', preprocessor)
    cfg.model = teacher
    add_imports(cfg, imports)
    return cfg


def _leave_out_hooks(cfg: Config) -> None:
    """Remove the hooks that a student alone has no use for, in place."""
    scope = cfg.get('default_scope')
    if cfg.get('custom_hooks'):
        hooks = [hook for hook in cfg.custom_hooks if not _is_about_distillation(hook, scope)]
        if hooks:
            cfg.custom_hooks = hooks
        else:
            cfg.pop('custom_hooks')
    for name, hook in list((cfg.get('default_hooks') or {}).items()):
        if hook and _is_about_distillation(hook, scope):
            cfg.default_hooks.pop(name)


def _is_about_distillation(hook: dict | Hook, scope: str | None) -> bool:
    if isinstance(hook, dict):
        kind = find_type(hook['type'], HOOKS, hook.get('_scope_', scope))
    else:
        kind = type(hook)
    is_mmrazor = str(getattr(kind, '__module__', '')).partition('.')[0] == 'mmrazor'
    return getattr(kind, 'needs_distillation', is_mmrazor)


def inline_models(cfg: Config) -> Config:
    """Write out the models that a distillation names by ``cfg_path``.

    The teacher's weights come from ``teacher_ckpt``, so that whatever else its config would
    initialise it with (ImageNet weights of its backbone) is left out.

    Args:
        cfg (Config): Any config.

    Returns:
        Config: A copy without ``cfg_path``, which imports what the models' files import.
    """
    cfg = copy.deepcopy(cfg)
    if not is_distillation(cfg):
        return cfg
    cfg.model.architecture, imports = _resolve(cfg.model.architecture)
    add_imports(cfg, imports)
    if 'teacher' in cfg.model:
        teacher, imports = _resolve(cfg.model.teacher)
        if cfg.model.get('teacher_ckpt'):
            remove_pretrained(teacher)
        cfg.model.teacher = teacher
        add_imports(cfg, imports)
    return cfg


def remove_pretrained(config: object) -> None:
    """Remove weights to begin with from a model's config, in place."""
    if isinstance(config, (list, tuple)):
        for item in config:
            remove_pretrained(item)
    elif isinstance(config, dict):
        if isinstance(config.get('pretrained'), str):
            config['pretrained'] = None
        init_cfg = config.get('init_cfg')
        # PVT's has a checkpoint and no type
        if isinstance(init_cfg, dict) and (
            type_name(init_cfg.get('type')) in _PRETRAINED or 'checkpoint' in init_cfg
        ):
            del config['init_cfg']
        for item in config.values():
            remove_pretrained(item)


def make_paths_relative(cfg: Config, roots: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Make a config independent of the machine's folders, as far as can be.

    Args:
        cfg (Config): Changed in place.
        roots (Sequence[str]): Folders; a path below one of them becomes relative to it.

    Returns:
        tuple[dict[str, str], dict[str, str]]: Key, such as 'model.teacher_ckpt', to the new
        path, of those that were changed; key to path of the absolute ones that are left.
    """
    changed, left = {}, {}

    def visit(value: object, key: str) -> object:
        if isinstance(value, dict):
            for name in value:
                value[name] = visit(value[name], f'{key}.{name}' if key else str(name))
        elif isinstance(value, (list, tuple)):
            return type(value)(visit(item, f'{key}.{i}') for i, item in enumerate(value))
        elif isinstance(value, str) and osp.isabs(value):
            for root in roots:
                path = osp.relpath(value, root)
                if not path.startswith(osp.pardir):
                    changed[key] = path
                    return path
            left[key] = value
        return value

    visit(cfg._cfg_dict, '')
    return changed, left
