"""The models of a student's and a teacher's config, each alone."""

import copy
from contextlib import AbstractContextManager

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import DefaultScope
from torch import nn

from ..teachers import build_teacher, teacher_from_name
from ..training import (
    UsageError,
    inline_models,
    load_config,
    refuse_what_is_no_text,
    student_config,
    training_images,
)
from ..training.model_config import use_torch_sync_batchnorm

# Images of the trial where there is no GPU: the longer side has at most as many pixels.
CPU_SIZE = 256
DEFAULT_SIZE = (256, 256)


def read_config(name: str, role: str, options: dict | None = None) -> Config:
    """Read a config that is written or inherited: a file, or a published one by its name.

    Args:
        name (str): Of the config; of a teacher from another library such as ``'timm::resnet50'``.
        role (str): 'student' or 'teacher'.
        options (dict, optional): Further arguments of a teacher from another library.

    Returns:
        Config: With the model alone, if it is a distillation's.

    Raises:
        UsageError: If it has no model, or cannot be written as text.
    """
    external = teacher_from_name(name)
    if external is not None:
        if role == 'student':
            raise UsageError(
                f'--student {name}: models of other libraries can be teachers. A student is a model of '
                'MMSegmentation or MMDetection, whose own data and schedule it is trained with'
            )
        cfg = Config(dict(model=external))
        cfg.merge_from_dict({f'model.{key}': value for key, value in (options or {}).items()})
        return cfg
    if options:
        raise UsageError(
            f'--teacher-options {options}: they are for teachers from other libraries (timm::NAME and '
            f'the like), and --teacher {name} is a config. Write a config of your own that inherits it'
        )
    cfg = student_config(load_config(name))
    if 'model' not in cfg:
        raise UsageError(f'--{role} {name}: the config has no model, only {sorted(cfg.keys())}')
    if '::' not in name:  # its content is written out: all of the student's, the teacher's model
        written = cfg if role == 'student' else dict(model=written_out(cfg))
        refuse_what_is_no_text(written, f'--{role} {name}')
    return cfg


def written_out(cfg: Config) -> Config:
    """Give a config's model as a teacher's is written: complete, without weights to begin with."""
    model = copy.deepcopy(cfg.model)
    if cfg.get('data_preprocessor') is not None:
        model.setdefault('data_preprocessor', copy.deepcopy(cfg.data_preprocessor))
    if cfg.get('default_scope'):
        model.setdefault('_scope_', cfg.default_scope)
    whole = copy.deepcopy(cfg)
    whole.model = dict(architecture=dict(type=''), teacher=model, teacher_ckpt='given')
    return inline_models(whole).model.teacher


def build_alone(cfg: Config, role: str) -> nn.Module:
    """Build a config's model, without weights to begin with."""
    try:
        with torch.random.fork_rng(devices=[]):
            model = written_out(cfg)
            use_torch_sync_batchnorm(model)
            return build_teacher(model)
    except Exception as error:
        raise UsageError(f'the {role} cannot be built: {type(error).__name__}: {error}') from error


def check_trainable(name: str, cfg: Config) -> None:
    """Refuse a student whose config has nothing to train it with, as MMEngine's Runner would."""
    missing = [k for k in ('train_dataloader', 'train_cfg', 'optim_wrapper') if not cfg.get(k)]
    if missing:
        text = (
            f'--student {name}: the config has no {", ".join(missing)}, so that nothing can be '
            'trained. The student keeps its own data and schedule: add them to its config'
        )
        inner = (cfg.model.get('detector') or {}).get('type')
        if inner is not None:  # deepsort, qdtrack
            text = (
                f'--student {name}: {cfg.model.type} follows objects through a video, and features are '
                f'compared for single images. Distil the {inner} that it begins with: name the config '
                'of that model alone, and let this one take over its weights'
            )
        raise UsageError(text)


def trial_size(cfg: Config) -> tuple[int, int]:
    """Give the student's crop, or, without a GPU, a smaller image of that shape."""
    height, width = (training_images(cfg) or DEFAULT_SIZE)[:2]
    longer = max(height, width)
    if get_device() != 'cpu' or longer <= CPU_SIZE:
        return height, width
    return tuple(max(32, round(x * CPU_SIZE / longer / 32) * 32) for x in (height, width))


def scope_of(cfg: Config) -> AbstractContextManager:
    """Let the names in a config mean what they mean in a training, for as long as it lasts."""
    return DefaultScope.overwrite_default_scope(cfg.get('default_scope'))
