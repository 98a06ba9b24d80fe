"""The variants of a distillation's step that a benchmark compares, by name.

This module imports nothing: the command line loads it by its path, and starts without PyTorch.
"""

# Settings of the teacher, joined by + to a variant -> entries of the model's config.
SETTINGS = {
    'fp32': dict(teacher_precision='fp32'),
    'bf16': dict(teacher_precision='bf16'),
    'fp16': dict(teacher_precision='fp16'),
    'channels_last': dict(teacher_channels_last=True),
    'compile': dict(teacher_compile=True),
    'auto': dict(teacher_speed=dict(type='auto')),
    'auto_fp32': dict(teacher_speed=dict(type='auto', tolerance=0)),
    'in_place': dict(module_inplace=True, teacher_module_inplace=True),
}
BASELINES = ('student', 'mmrazor', 'configured')
_SETTINGS = (
    'channels_last', 'channels_last+compile', 'bf16', 'bf16+channels_last', 'bf16+channels_last+compile',
    'auto_fp32', 'auto',
)  # fmt: skip
# Kind of device -> what is measured if nothing else is asked for.
VARIANTS = {
    'cpu': (*BASELINES, *_SETTINGS),
    'cuda': (*BASELINES, *_SETTINGS, 'fp16+channels_last'),
}
