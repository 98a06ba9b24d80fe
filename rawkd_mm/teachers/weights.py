"""The teacher's weights: everything that runs must come from the checkpoint."""

from collections.abc import Sequence
from typing import NamedTuple

from mmengine.logging import print_log
from mmengine.model import BaseModel
from torch import Tensor

from ..training.build_model import knows_classes, number_of_classes
from ..training.checkpoint import CheckpointError, find_weights, load_as_modules_do
from ..training.checkpoint_loading import load_checkpoint
from ..training.checkpoint_names import strip_prefix
from ..training.errors import listing
from .external import ExternalTeacher

__all__ = ['LoadedWeights', 'load_teacher']


class LoadedWeights(NamedTuple):
    """What came from a teacher's checkpoint.

    Attributes:
        absent (list[str]): Names in ``model.state_dict()`` of the parameters and buffers that were not
            in the checkpoint or did not fit; they stay random, and the distillation does not use
            them.
        classes (Sequence[str] | None): Names of the classes that the checkpoint says it knows.
        in_use (list[str] | None): Names in ``model.state_dict()`` of what the distillation uses.
    """

    absent: list[str] | None = None
    classes: Sequence[str] | None = None
    in_use: list[str] | None = None


def load_teacher(model: BaseModel, filename: str, needed: Sequence[str]) -> LoadedWeights:
    """Load a teacher's weights; what is needed must all be there.

    Args:
        model (BaseModel): The teacher.
        filename (str): Path or URL of a checkpoint of mmseg or mmdet, of MMRazor, of this package or
            of another library, safetensors too. 'pretrained' for the weights that the library of an
            :class:`ExternalTeacher` has.
        needed (Sequence[str]): Names in ``model.state_dict()`` that must be loaded.

    Returns:
        LoadedWeights: What was not loaded, and the classes that the checkpoint names.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If it is no checkpoint, or would run code when it is loaded; if a parameter or
            buffer that is needed is missing or has another shape, lists all of them.
    """
    is_external = isinstance(model, ExternalTeacher)
    in_use = list(needed)
    if filename == 'pretrained':
        checkpoint = saved = _pretrained(model)
        where = ''
    else:
        checkpoint = load_checkpoint(filename)
        saved, where = find_weights(checkpoint, filename)
    whole = model
    if is_external:  # a checkpoint is that of its network
        needed = [name.removeprefix(whole.weights_prefix) for name in needed]
        model = whole.network
    expected = model.state_dict()
    needed = list(dict.fromkeys(needed))
    shapes = {name: expected[name].shape for name in needed}
    prefix, weights = strip_prefix(saved, shapes, any_prefix=is_external)
    if is_external and any(n not in weights or weights[n].shape != shapes[n] for n in needed):
        weights = whole.convert_weights(weights)
    # Check after loading: modules rename parameters that their older versions saved.
    found, lacking, errors = load_as_modules_do(model, weights)
    missing = [name for name in needed if name in lacking]
    mismatched = [
        name for name in needed if name in found and found[name].shape != expected[name].shape
    ]
    differing = [
        f'{name}: {tuple(found[name].shape)}, the model has {tuple(expected[name].shape)}'
        for name in mismatched
    ]
    classes = _class_names(checkpoint)
    if missing or mismatched:
        raise CheckpointError(
            f'teacher_ckpt={filename!r} does not fit {type(model).__name__}: of the '
            f'{len(needed)} parameters and buffers that the distillation needs, '
            f'{len(missing)} are missing{listing(missing)} and {len(mismatched)} have another '
            f'shape{listing(differing)}. '
            + _advice(model, weights, found, missing, mismatched, classes)
        )
    if errors:
        raise CheckpointError(
            f'teacher_ckpt={filename!r} cannot be loaded into {type(model).__name__}: '
            + '; '.join(errors)
        )
    absent = [
        name
        for name, value in expected.items()
        if 'num_batches_tracked' not in name
        and (name in lacking or (name in found and found[name].shape != value.shape))
    ]
    print_log(
        f'Loaded the teacher from {filename}'
        + (f', {where}' if where else '')
        + (f', keys below {prefix!r}' if prefix else '')
        + f': {len(needed)} of {len(expected)} parameters and buffers are in use, all loaded'
        + (f'; {len(absent)} that are not in use were not in it or did not fit' if absent else ''),
        'current',
    )
    if is_external:
        absent = [whole.weights_prefix + name for name in absent]
    return LoadedWeights(absent, classes, in_use)


def _pretrained(model: BaseModel) -> dict[str, Tensor]:
    if not isinstance(model, ExternalTeacher):
        raise CheckpointError(
            "teacher_ckpt='pretrained' is for teachers of other libraries (TimmTeacher and the "
            f'like), and the teacher is a {type(model).__name__}. Give the path or URL of its '
            'checkpoint; model-index.yml and the metafiles of mmseg and mmdet have the URLs of '
            'published ones'
        )
    return model.pretrained_weights()


def _advice(
    model: BaseModel,
    weights: dict[str, Tensor],
    found: dict[str, Tensor],
    missing: Sequence[str],
    mismatched: Sequence[str],
    classes: Sequence[str] | None,
) -> str:
    """Say what is most likely wrong with a checkpoint that does not fit."""
    expected = model.state_dict()
    # a classifier of other classes has another number of outputs, and nothing else is different
    of_classes = not missing and all(
        knows_classes(model, name) and found[name].shape[1:] == expected[name].shape[1:]
        for name in mismatched
    )
    count = number_of_classes(model)
    if of_classes and count is not None:
        trained = f'{len(classes)} classes' if classes else 'another number of classes'
        return (
            f"The rest fits: it was trained with {trained}, and the teacher's config has "
            f'{count}. Set num_classes in the config of the teacher to those of the checkpoint, '
            'or distil a feature before the classifier.'
        )
    if missing or len(mismatched) > len(weights) // 2:
        return (
            "Check that the checkpoint belongs to the teacher's config; it begins with "
            f'{", ".join(list(weights)[:3])}.'
        )
    return "Check that the checkpoint belongs to the teacher's config."


def _class_names(checkpoint: dict) -> Sequence[str] | None:
    """Names of the classes as MMEngine's checkpoints have them, or those before it."""
    meta = checkpoint.get('meta')
    if not isinstance(meta, dict):
        return None
    dataset = meta.get('dataset_meta')
    names = (dataset if isinstance(dataset, dict) else {}).get('classes') or meta.get('CLASSES')
    return list(names) if isinstance(names, (list, tuple)) else None
