"""A distillation's config, composed from the configs of a teacher and a student.

What ``tools/make_distill_config.py`` and ``tools/inspect_features.py`` do; nothing else in this package
imports it.
"""

from .command import run
from .inspection import inspect
from .making import Result, build_algorithm, make, try_out
from .methods import METHODS, Method, choose_method
from .models import build_alone, check_trainable, read_config, scope_of, trial_size, written_out
from .pairs import choose_pairs, find_inherited
from .writing import compose, make_model

__all__ = [
    'METHODS',
    'Method',
    'Result',
    'build_algorithm',
    'build_alone',
    'check_trainable',
    'choose_method',
    'choose_pairs',
    'compose',
    'find_inherited',
    'inspect',
    'make',
    'make_model',
    'read_config',
    'run',
    'scope_of',
    'trial_size',
    'try_out',
    'written_out',
]
