"""The names of weights in checkpoints: of a student, of a distillation, and of MMRazor's algorithm.

A distillation has the student below ``architecture.``, its connectors and losses below ``distiller.``.
Its checkpoint has the student under the student's own names. MMRazor's checkpoints keep
``architecture.`` and have the teacher below ``teacher.``.
"""

from collections import OrderedDict

from torch import Tensor, nn

__all__ = [
    'RESERVED',
    'name_in_checkpoint',
    'strip_prefix',
    'student_weights',
    'to_algorithm_names',
    'to_student_names',
]

# Children of a distillation; no child of the student may be called so.
RESERVED = ('architecture', 'distiller', 'teacher')
# What a checkpoint of a distillation has beyond the student.
_BEYOND_STUDENT = ('distiller.', 'teacher.')

# In which order the weights of a model are looked for in a checkpoint: as they are; saved from a
# wrapper; trained as a student by MMRazor; used as a teacher by MMRazor; EMA.
_PREFIXES = (
    '',
    'module.',
    'architecture.',
    'module.architecture.',
    'teacher.',
    'student.',
    'model.',
)


def strip_prefix(
    given: dict[str, Tensor], needed: dict[str, tuple], any_prefix: bool = False
) -> tuple[str, dict[str, Tensor]]:
    """Find the prefix below which most of the needed parameters are.

    Args:
        given (dict[str, Tensor]): Weights of a checkpoint.
        needed (dict[str, tuple]): Names and shapes of what a model needs.
        any_prefix (bool): Whether any prefix will do, of a model that was trained as a part of another;
            else those that MMEngine, MMRazor and this package write. Defaults to False.

    Returns:
        tuple[str, dict[str, Tensor]]: The prefix, and what is below it, without it.
    """

    def below(prefix: str) -> dict[str, Tensor]:
        found = OrderedDict(
            (name[len(prefix) :], value)
            for name, value in given.items()
            if name.startswith(prefix) and isinstance(value, Tensor)
        )
        # the versions of the modules, of which one may have saved other names
        versions = getattr(given, '_metadata', None) or {}
        found._metadata = {
            name[len(prefix) :]: value
            for name, value in versions.items()
            if name.startswith(prefix)
        }
        return found

    def fit(prefix: str) -> int:
        found = below(prefix)
        return sum(name in found and found[name].shape == size for name, size in needed.items())

    prefixes = list(_PREFIXES)
    if any_prefix:
        first = next(iter(needed), '')
        prefixes += [name.removesuffix(first) for name in given if name.endswith(f'.{first}')]
    best = max(prefixes, key=fit)  # the first of equals
    return best, below(best)


def name_in_checkpoint(state_dict: dict[str, Tensor], name: str) -> str:
    """Give the name that a state dict has for what a module calls by another one."""
    return name if name in state_dict else name.removeprefix('architecture.')


def student_weights(weights: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Reduce a state dict to a student's entries under the student's own names.

    Args:
        weights (dict[str, Tensor]): Of a student, of a distillation or of MMRazor's algorithm.
        expected (dict[str, Tensor]): The state dict of the model that is to be filled.

    Returns:
        dict[str, Tensor]: What belongs to the student.
    """
    # the versions of the modules, by which modules know that one may have saved other names
    versions = getattr(weights, '_metadata', None) or {}
    weights = {k: v for k, v in weights.items() if isinstance(v, Tensor)}
    for prefix in ('module.', 'architecture.'):
        if any(k.startswith(prefix) for k in weights) and not any(
            k.startswith(prefix) for k in expected
        ):
            weights, versions = (
                {k[len(prefix) :] if k.startswith(prefix) else k: v for k, v in x.items()}
                for x in (weights, versions)
            )
    beyond = tuple(p for p in _BEYOND_STUDENT if not any(k.startswith(p) for k in expected))
    result = OrderedDict((k, v) for k, v in weights.items() if not k.startswith(beyond))
    result._metadata = versions
    return result


def to_student_names(
    module: nn.Module, state_dict: dict, prefix: str, local_metadata: dict
) -> None:
    """Give the student's entries of a distillation's state dict the student's own names.

    ``'architecture.backbone...'`` becomes ``'backbone...'``, in place; the student comes first. It is a
    hook for ``nn.Module._register_state_dict_hook``.

    Args:
        module (nn.Module): The distillation.
        state_dict (dict): Changed in place.
        prefix (str): Of the distillation's entries.
        local_metadata (dict): Not used.
    """
    student = f'{prefix}architecture.'
    for key in [key for key in state_dict if key.startswith(student)]:
        state_dict[prefix + key[len(student) :]] = state_dict.pop(key)
    for key in [key for key in state_dict if key.startswith(f'{prefix}distiller.')]:
        state_dict[key] = state_dict.pop(key)
    metadata = getattr(state_dict, '_metadata', {})
    metadata.pop(f'{prefix}architecture', None)
    for key in [key for key in metadata if key.startswith(student)]:
        metadata[prefix + key[len(student) :]] = metadata.pop(key)


def to_algorithm_names(state_dict: dict, prefix: str) -> None:
    """Give a student's entries the names that a distillation has for them; drop a teacher.

    Args:
        state_dict (dict): Of a student, of a distillation or of MMRazor's algorithm; changed in place.
        prefix (str): Of the entries that are meant.
    """
    for key in [key for key in state_dict if key.startswith(prefix)]:
        name = key[len(prefix) :]
        parent = name.partition('.')[0]
        if parent == 'teacher':
            del state_dict[key]
        elif parent not in RESERVED:
            state_dict[f'{prefix}architecture.{name}'] = state_dict.pop(key)
