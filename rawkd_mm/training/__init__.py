"""What the command line tools share: configs, runner, mixed precision, checkpoints."""

from .amp import Bf16OptimWrapper, set_amp
from .checkpoint import CheckpointError, RequireAllWeightsHook, load_all_weights
from .config import (
    UsageError,
    load_config,
    set_auto_scale_lr,
    set_resume,
    set_work_dir,
    use_resumable_checkpoints,
)
from .leaf_config import leaf_text
from .model_config import (
    inline_models,
    is_distillation,
    is_external_teacher,
    make_paths_relative,
    package_of,
    resolve_model,
    student_config,
    teacher_config,
)
from .one_iteration import (
    TrialError,
    made_up_batch,
    made_up_images,
    main_head_classes,
    run_one_iteration,
)
from .runner import AverageLossesHook, build_runner, leave_processes, replace_sync_batchnorm
from .self_contained import read_self_contained, write_self_contained
from .text_config import add_imports, join_imports, name_types, refuse_what_is_no_text
from .training_data import TrainingImages, class_names, training_images

__all__ = [
    'AverageLossesHook',
    'Bf16OptimWrapper',
    'CheckpointError',
    'RequireAllWeightsHook',
    'TrainingImages',
    'TrialError',
    'UsageError',
    'add_imports',
    'build_runner',
    'class_names',
    'inline_models',
    'is_distillation',
    'is_external_teacher',
    'join_imports',
    'leaf_text',
    'leave_processes',
    'load_all_weights',
    'load_config',
    'made_up_batch',
    'made_up_images',
    'main_head_classes',
    'make_paths_relative',
    'name_types',
    'package_of',
    'read_self_contained',
    'refuse_what_is_no_text',
    'replace_sync_batchnorm',
    'resolve_model',
    'run_one_iteration',
    'set_amp',
    'set_auto_scale_lr',
    'set_resume',
    'set_work_dir',
    'student_config',
    'teacher_config',
    'training_images',
    'use_resumable_checkpoints',
    'write_self_contained',
]
