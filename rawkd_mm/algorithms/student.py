"""The student of a distillation, built as it is when it is trained alone."""

import copy
from typing import Any

from mmengine.logging import print_log
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.registry import MODELS as ROOT_MODELS
from torch import Tensor, nn

from ..training.build_model import build_model
from ..training.checkpoint_names import RESERVED
from ..training.model_config import resolve_model


def build_student(
    architecture: dict | BaseModel, filled_in: dict | nn.Module | None = None
) -> BaseModel:
    """Build the student with the data_preprocessor that it has when it is trained alone.

    MMEngine's Runner gives a model without a data_preprocessor the one of the config's top level.
    The model of a distillation has none, so that it gets that one, whatever the student's own is.
    Trained alone, the student keeps its own, and only without one it gets that of the top level.

    Args:
        architecture (dict | BaseModel): As for ``build_model``.
        filled_in (dict | nn.Module, optional): The data_preprocessor that the distillation was
            given, by the Runner or in its config.

    Returns:
        BaseModel: The student.

    Raises:
        ValueError: If the student has no values, or a child whose name a checkpoint needs.
    """
    if isinstance(architecture, BaseModel):
        # MMEngine's default for a model without a data_preprocessor
        has_own = type(architecture.data_preprocessor) is not BaseDataPreprocessor
        if filled_in is not None and not has_own:
            is_built = isinstance(filled_in, nn.Module)
            architecture.data_preprocessor = filled_in if is_built else ROOT_MODELS.build(filled_in)
    else:
        architecture = (
            resolve_model(architecture) if isinstance(architecture, dict) else architecture
        )
        has_own = 'data_preprocessor' in architecture
        if filled_in is not None and not has_own:
            architecture['data_preprocessor'] = filled_in
    student = build_model(architecture)
    _check_student(student)
    if filled_in is not None and has_own:
        _tell_difference(student.data_preprocessor, filled_in)
    return student


def _check_student(student: BaseModel) -> None:
    if any(parameter.is_meta for parameter in student.parameters()):
        raise ValueError(
            'the student was built on the meta device, whose tensors have no values. The '
            'teacher cannot be loaded and images cannot be normalised there. Build the distillation '
            'on the CPU, then move it.'
        )
    clash = [name for name, _ in student.named_children() if name in RESERVED]
    if clash:
        raise ValueError(
            f'the student {type(student).__name__} has submodules named {clash}. A distillation '
            'uses the same names in its checkpoint. Rename the submodules.'
        )


def _tell_difference(own: nn.Module, filled_in: dict | nn.Module) -> None:
    """Log which settings of the unused data_preprocessor differ, if any does."""
    try:
        other = filled_in
        if not isinstance(other, nn.Module):
            other = ROOT_MODELS.build(copy.deepcopy(filled_in))
    except Exception as error:
        reason = f'it cannot be built ({type(error).__name__}: {error})'
    else:
        different = different_settings(own, other)
        if not different:
            return
        reason = f'it differs in {", ".join(different)}'
    print_log(
        'The student keeps its own data_preprocessor, as when it is trained alone. The one at the '
        f"config's top level, or of the distillation, is not used: {reason}.",
        'current',
    )


def different_settings(first: nn.Module, second: nn.Module) -> list[str]:
    """Compare what two data_preprocessors do.

    Args:
        first (nn.Module): A data_preprocessor.
        second (nn.Module): Another.

    Returns:
        list[str]: Names of the settings that differ: 'type', and attributes such as 'mean'.
    """
    of_first, of_second = _settings(first), _settings(second)
    return [
        name.lstrip('_')
        for name in dict.fromkeys([*of_first, *of_second])
        if name not in of_first or name not in of_second or of_first[name] != of_second[name]
    ]


def _settings(module: nn.Module) -> dict[str, Any]:
    """Give an object's settings as values that can be compared."""
    found = {'type': type(module)}
    for name, value in vars(module).items():
        # tensors and modules stand in dicts of nn.Module
        inner = value if name in ('_buffers', '_parameters', '_modules') else {name: value}
        found.update((key, _comparable(item)) for key, item in inner.items())
    return found


def _comparable(value: object) -> object:
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: _comparable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_comparable(item) for item in value]
    # functions and classes are themselves; other objects are what they hold
    if hasattr(value, '__dict__') and not isinstance(value, type) and not _is_function(value):
        return _settings(value)
    return value


def _is_function(value: object) -> bool:
    return hasattr(value, '__code__') or hasattr(value, '__func__')
