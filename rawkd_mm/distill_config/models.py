"""The models of a student's and a teacher's config, each alone."""

import copy
import importlib.util
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import DefaultScope
from torch import nn

from ..features import FRAMES, TWO_KINDS, detector_alone
from ..registry import type_name
from ..teachers import build_teacher, teacher_from_name
from ..training import (
    UsageError,
    inline_models,
    load_config,
    refuse_what_is_no_text,
    student_config,
    training_images,
)
from ..training.model_config import package_of, use_torch_sync_batchnorm

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
    """Refuse a student that nothing can be trained with, or that trains a detector in its own way."""
    missing = [k for k in ('train_dataloader', 'train_cfg', 'optim_wrapper') if not cfg.get(k)]
    inner = (cfg.model.get('detector') or {}).get('type')
    preprocessor = cfg.model.get('data_preprocessor') or {}
    if inner is not None and (missing or not preprocessor.get('use_det_processor')):
        inner = type_name(inner)
        how = TWO_KINDS if 'semi_train_cfg' in cfg.model else FRAMES
        # DeepSORT and SORT take what others have trained
        how = '' if 'train_dataloader' in missing and 'track_head' not in cfg.model else how
        text = detector_alone(
            type_name(cfg.model.type), inner, how, detector_config(name, cfg, inner)
        )
        raise UsageError(f'--student {name}: {text}')
    if missing:
        raise UsageError(
            f'--student {name}: the config has no {", ".join(missing)}, so that nothing can be '
            'trained. The student keeps its own data and schedule: add them to its config'
        )


def detector_config(name: str, cfg: Config, kind: str) -> str:
    """Find a published config of the detector that another one's name has in it.

    Args:
        name (str): The name of the config that holds the detector, such as
            'mmdet::soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py'.
        cfg (Config): Its content.
        kind (str): The detector's type, such as 'FasterRCNN'.

    Returns:
        str: Such as 'mmdet::faster_rcnn/faster-rcnn_r50-caffe_fpn_1x_coco.py'; '' if there is none.
    """
    package = package_of(cfg)
    spec = importlib.util.find_spec(package) if package else None
    if spec is None:
        return ''
    stem = Path(name.partition('::')[2] or name).stem

    def shared(file: Path) -> int:
        """How many words of a file's name, from the first on, the other has in a row."""
        words = file.stem.split('_')
        return max(
            n for n in range(len(words) + 1) if f'_{"_".join(words[:n])}_' in f'_{stem}_' or not n
        )

    files = (Path(spec.origin).parent / '.mim' / 'configs').glob('*/*.py')
    # those that have 'faster-rcnn_r50' in common
    files = [file for file in files if shared(file) > 1 and file.stem != stem]
    for file in sorted(files, key=lambda f: (-shared(f), len(f.stem), f.stem)):
        try:
            model = Config.fromfile(str(file)).get('model') or {}
        except OSError:  # some published ones inherit from a file that is not there
            continue
        if model.get('type') == kind:
            return f'{package}::{file.parent.name}/{file.name}'
    return ''


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
