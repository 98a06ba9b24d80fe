"""What learns from what: pairs of the student's and the teacher's features."""

import argparse
import re

from torch import nn

from ..features import (
    dry_run,
    find_classifier,
    find_features,
    find_memory,
    image_channels,
    match_features,
    measure_feature,
)
from ..training import UsageError
from .methods import Method

# Between the student's and the teacher's feature; a name may have '[run=0]' in it.
SEPARATOR = r'(?<!\[run)='
# Methods that take of a two-stage detector what its RoI head reads; the neck's further level is
# pooled from the one before.
OF_ROI_LEVELS = ('fgd', 'mgd', 'fkd')
# Methods that take of a segmentor the scores of the classes.
OF_SCORES = ('cwd', 'kl')


def choose_pairs(
    args: argparse.Namespace, student: nn.Module, teacher: nn.Module, size: tuple[int, int]
) -> tuple[list, list[str]]:
    """Give the pairs of features, of an image of a size (height, width), and notes on what was left."""
    models = dict(student=student, teacher=teacher)
    channels = {role: image_channels(model) for role, model in models.items()}
    if channels['student'] != channels['teacher']:
        raise UsageError(
            f'the student takes images of {channels["student"]} channels and the teacher of '
            f'{channels["teacher"]}, so that they cannot see the same images. Give both models the '
            'same kind of image (in_channels of the backbone)'
        )
    shape = (channels['student'], *size)
    if args.features not in (['auto'], ['memory']):
        pairs = [
            [
                measure_feature(model, text, shape)
                for model, text in zip((student, teacher), re.split(SEPARATOR, f))
            ]
            for f in args.features
        ]
        return pairs, []
    if args.method in OF_SCORES and hasattr(student, 'decode_head'):
        scores = [find_classifier(model, role, shape) for role, model in models.items()]
        numbers = [feature.shape[0] for feature in scores]
        if numbers[0] != numbers[1]:
            raise UsageError(
                f'--method {args.method} compares the scores of the classes, and the student has '
                f"{numbers[0]}, the teacher {numbers[1]} (outputs of the student's "
                f"{scores[0].source.text} and of the teacher's {scores[1].source.text}). Name other "
                'features, or take another method'
            )
        return [scores], []
    find = find_memory if args.features == ['memory'] else find_features
    found = [find(model, role, shape) for role, model in models.items()]
    pairs, alone = match_features(*found)
    notes = [f'Left without a partner of the same stride: {", ".join(alone)}.'] if alone else []
    if args.method in OF_ROI_LEVELS and hasattr(student, 'roi_head'):
        number = roi_levels(student)
        kept = [pair for pair in pairs if (*pair[0].source.indices, 0)[0] < number]
        if kept and len(kept) < len(pairs):
            left = ', '.join(pair[0].source.text for pair in pairs if pair not in kept)
            notes.append(
                f'Left out, as {args.method.upper()} takes the levels that the RoI head reads: {left}.'
            )
            pairs = kept
    return pairs, notes


def roi_levels(model: nn.Module) -> int:
    """Give how many levels of its neck a two-stage detector's RoI head reads, the finest."""
    extractor = model.roi_head.bbox_roi_extractor
    extractor = extractor if hasattr(extractor, 'featmap_strides') else extractor[0]
    return len(extractor.featmap_strides)


def find_inherited(
    args: argparse.Namespace, method: Method, student: nn.Module, teacher: nn.Module
) -> tuple[list[str] | None, list[str]]:
    """Give the parts of a student that begin with the teacher's weights, and a note if they cannot.

    FGD and MGD let a RetinaNet inherit neck and head ("inheriting strategy").
    """
    if not method.init_student or type(student).__name__ != 'RetinaNet':
        return None, []
    for part in method.init_student:
        of_student, of_teacher = (
            {n: tuple(v.shape) for n, v in getattr(m, part).state_dict().items()}
            if hasattr(m, part)
            else {}
            for m in (student, teacher)
        )
        if of_student != of_teacher:
            return None, [
                f'{args.method.upper()} lets a RetinaNet begin with the neck and the head of its '
                f"teacher. Here it begins with its own: the teacher's {part} has other parameters."
            ]
    return [*method.init_student], []


def dry_run_shape(
    student: nn.Module, teacher: nn.Module, pairs: list, size: tuple[int, int]
) -> tuple[int, int, int] | None:
    """Give the distiller another image than its own if that is too small for a model."""
    channels = image_channels(student)
    try:
        for model, features in zip((student, teacher), zip(*pairs)):
            sources = [feature.source for feature in features]
            dry_run(model, (channels, 64, 64), sources, type(model).__name__)
    except (RuntimeError, ValueError, IndexError, TypeError):
        return (channels, *size)
    return None
