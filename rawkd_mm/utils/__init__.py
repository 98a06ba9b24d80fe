"""What the command line tools share: configs, runner, mixed precision, checkpoints."""

from .amp import Bf16OptimWrapper, set_amp
from .checkpoint import CheckpointError, RequireAllWeightsHook, load_all_weights
from .config import (
    UsageError,
    inline_models,
    is_distillation,
    load_config,
    make_paths_relative,
    resolve_model,
    set_auto_scale_lr,
    set_resume,
    set_work_dir,
    student_config,
    teacher_config,
    use_resumable_checkpoints,
)
from .runner import AverageLossesHook, build_runner, leave_processes, replace_sync_batchnorm

__all__ = [
    'AverageLossesHook',
    'Bf16OptimWrapper',
    'CheckpointError',
    'RequireAllWeightsHook',
    'UsageError',
    'build_runner',
    'inline_models',
    'is_distillation',
    'leave_processes',
    'load_all_weights',
    'load_config',
    'make_paths_relative',
    'replace_sync_batchnorm',
    'resolve_model',
    'set_amp',
    'set_auto_scale_lr',
    'set_resume',
    'set_work_dir',
    'student_config',
    'teacher_config',
    'use_resumable_checkpoints',
]
