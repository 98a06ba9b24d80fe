"""The models in a config: the student, the teacher, and models that are named by a file."""

import copy
import os.path as osp
from collections.abc import Sequence

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.hub import get_config
from mmengine.registry import HOOKS

from ..registry import MODELS, find_type, type_name
from .errors import UsageError
from .text_config import add_imports, name_types

__all__ = [
    'inline_models',
    'is_distillation',
    'is_external_teacher',
    'make_paths_relative',
    'package_of',
    'remove_pretrained',
    'resolve_model',
    'student_config',
    'teacher_config',
    'use_torch_sync_batchnorm',
]

# How MMEngine's initialisation from a checkpoint is called, by its name and as a class.
_PRETRAINED = ('Pretrained', 'PretrainedInit')


def is_distillation(cfg: Config) -> bool:
    """Tell whether a config's model is a distillation: a student with a teacher or a distiller."""
    model = cfg.get('model') or {}
    return 'architecture' in model and ('distiller' in model or 'teacher' in model)


def is_external_teacher(cfg: Config) -> bool:
    """Tell whether a distillation's teacher is of another library: it gives features and has no head.

    Args:
        cfg (Config): A distillation, see :func:`is_distillation`.

    Returns:
        bool: False of a config without teacher.
    """
    teacher = cfg.model.get('teacher') or {}
    kind = find_type(teacher['type'], MODELS, teacher.get('_scope_')) if 'type' in teacher else None
    return getattr(kind, 'gives_features', False)


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
        it has none with the student's. One of another library makes its own.
    """
    preprocessor = student_config(cfg).model.get('data_preprocessor')
    cfg = copy.deepcopy(cfg)
    teacher, imports = _resolve(cfg.model.teacher)
    if preprocessor is not None and not is_external_teacher(cfg):
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
        elif config.get('pretrained') is True:  # a backbone of timm
            config['pretrained'] = False
        init_cfg = config.get('init_cfg')
        # PVT's has a checkpoint and no type
        if isinstance(init_cfg, dict) and (
            type_name(init_cfg.get('type')) in _PRETRAINED or 'checkpoint' in init_cfg
        ):
            del config['init_cfg']
        for item in config.values():
            remove_pretrained(item)


def use_torch_sync_batchnorm(config: object) -> None:
    """Replace MMCV's SyncBN by PyTorch's in a model's config, in place.

    MMCV's cannot be built where no process group is, and PyTorch's can. Their parameters have the same
    names.
    """
    if isinstance(config, (list, tuple)):
        for item in config:
            use_torch_sync_batchnorm(item)
    elif isinstance(config, dict):
        if config.get('type') == 'MMSyncBN':
            config['type'] = 'SyncBN'
        for item in config.values():
            use_torch_sync_batchnorm(item)


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
