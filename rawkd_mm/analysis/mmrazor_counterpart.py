"""MMRazor's SingleTeacherDistill that computes what a FrozenTeacherDistill does."""

import copy
import inspect

from ..distillers import FeatureDistiller
from ..features import FeatureSource
from ..teachers import build_teacher
from ..training.build_model import build_model
from .benchmark_losses import BenchmarkError


def as_mmrazor(ours, config):
    """Make MMRazor's SingleTeacherDistill of a FrozenTeacherDistill, with the same weights.

    Args:
        ours (FrozenTeacherDistill): With weights.
        config (ConfigDict): What it was built from.

    Returns:
        SingleTeacherDistill: Shares losses and connectors with it.

    Raises:
        BenchmarkError: If a loss needs what MMRazor does not hand over.
    """
    from mmrazor.models import SingleTeacherDistill

    is_ours = isinstance(ours.distiller, FeatureDistiller)
    recorders, mappings = mmrazor_pairs(ours.distiller) if is_ours else ({}, None)
    distiller = dict(type='ConfigurableDistiller', **recorders) if is_ours else config.distiller
    theirs = SingleTeacherDistill(
        distiller={'_scope_': 'mmrazor', **copy.deepcopy(dict(distiller))},
        teacher=build_teacher(config.teacher),
        architecture=build_model(config.architecture),
        data_preprocessor=ours.data_preprocessor,
    )
    theirs.student.load_state_dict(ours.student.state_dict())
    theirs.teacher.load_state_dict(ours.teacher.state_dict())
    theirs.distiller.distill_losses = ours.distiller.distill_losses
    theirs.distiller.connectors = ours.distiller.connectors
    if is_ours:
        theirs.distiller.connectors = chained_connectors(ours.distiller)
        theirs.distiller.loss_forward_mappings = mappings
    return theirs


def why_no_mmrazor(ours, data: dict) -> str | None:
    """Tell why MMRazor's algorithm cannot compute what ours does with a teacher of another library.

    Args:
        ours (FrozenTeacherDistill): Has the teacher.
        data (dict): Prepared images and data samples.

    Returns:
        str | None: The reason; None if it can.
    """
    frozen, inputs = ours.frozen_teacher, data['inputs']
    if frozen.renormalize is not None:
        return "its teacher gets the student's images, and this teacher takes others"
    size = tuple(inputs.shape[2:])
    if frozen.input_size.final_size(*size) != ours.teacher.fitting_size(*size):
        return "its teacher gets images of the student's size, and this one has teacher_input"
    if not isinstance(ours.distiller, FeatureDistiller):
        return None
    for name, pair in ours.extract_features(inputs, data.get('data_samples')).items():
        shapes = [tuple(feature.shape[2:]) for feature in (pair.student, pair.teacher)]
        if shapes[0] != shapes[1]:
            return (
                f'the features of {name!r} have the shapes {shapes[0]} and {shapes[1]}, which it does '
                'not bring together'
            )
    return None


def mmrazor_pairs(distiller) -> tuple[dict, dict]:
    """Give the recorders of a distiller's pairs and their mappings, as MMRazor wants them.

    Args:
        distiller (FeatureDistiller): With pairs and losses.

    Returns:
        tuple[dict, dict]: Recorders of student and teacher, and loss_forward_mappings.

    Raises:
        BenchmarkError: If a loss needs what MMRazor does not hand over.
    """
    recorders = dict(student_recorders={}, teacher_recorders={})
    mappings = {}
    for pair in distiller.pairs:
        loss = distiller.distill_losses[pair.key]
        arguments = list(inspect.signature(loss.forward).parameters)
        if 'data_samples' in arguments:
            raise BenchmarkError(
                f"{type(loss).__name__} needs the batch's data samples, which MMRazor's distiller "
                'does not hand over: leave mmrazor out of --variants'
            )
        mappings[pair.key] = {}
        for argument, role in zip(arguments, ('student', 'teacher')):
            source = getattr(pair, role)
            if source != FeatureSource(source.module, source.index) or len(source.indices) > 1:
                raise BenchmarkError(
                    f'{source.text!r} is more than an output of a module and an index, which is what '
                    "MMRazor's recorders record: leave mmrazor out of --variants"
                )
            name = f'{role} {source.module}'
            recorders[f'{role}_recorders'][name] = dict(type='ModuleOutputs', source=source.module)
            mappings[pair.key][argument] = dict(
                recorder=name,
                from_student=role == 'student',
                data_idx=source.index,
                connector=pair.connector_key(role),
            )
    return recorders, mappings


def chained_connectors(distiller):
    """Give one connector for each side of each pair.

    Args:
        distiller (FeatureDistiller): With pairs and connectors.

    Returns:
        nn.ModuleDict: Alignment and connector one after the other, or nothing at all.
    """
    from torch import nn

    result = nn.ModuleDict()
    for pair in distiller.pairs:
        for role, keys in (
            ('student', (pair.key, pair.connector_key('student'))),
            ('teacher', (pair.connector_key('teacher'),)),
        ):
            given = [distiller.connectors[key] for key in keys if key in distiller.connectors]
            result[pair.connector_key(role)] = nn.Sequential(*given)
    return result
