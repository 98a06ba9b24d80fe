"""Finds a wrong teacher without a head: by its weights and its features."""

import logging
import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from mmengine.dataset import DefaultSampler
from mmengine.dist import all_gather_object
from mmengine.logging import print_log
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from ..algorithms import FrozenTeacherDistill
from ..teachers import FeatureSummary, ImageSummary, initial_vectors, shuffled_weights
from ..training.errors import listing
from ..training.random_numbers import separate_random_numbers
from .wrong_teacher_error import WrongTeacherError

__all__ = ['check_features', 'compare_summaries']

# How many copies with shuffled weights, and on how many images at most.
COPIES, COMPARED = 9, 8
# Standard deviations of the copies within which a teacher is like them.
SPREAD = 4.0
_ADVICE = (
    'Check that teacher_ckpt has trained weights of this model, and images= of the teacher (mean, std, '
    'max_value, channel_order) is what they were trained with. If this teacher is meant, leave out '
    'TeacherSanityHook.'
)


class _Batch(NamedTuple):
    inputs: Tensor
    data_samples: list | None


class _Summaries(NamedTuple):
    """Of the images, and of each feature by its name."""

    images: list[ImageSummary]
    features: dict[str, FeatureSummary]


def check_features(
    model: FrozenTeacherDistill, loader: DataLoader, which: str, count: int, min_rank: float
) -> None:
    """Check the weights of a teacher that has no head, and its features of some images.

    Args:
        model (FrozenTeacherDistill): Has the teacher, which has loaded its checkpoint.
        loader (DataLoader): Whose data set has the images; the first are taken.
        which (str): 'validation' or 'training', for the messages.
        count (int): How many images.
        min_rank (float): Below this effective rank a feature is wrong.

    Raises:
        WrongTeacherError: In all processes, if the weights are those of an initialisation; if a
            feature is not finite, the same at all positions or for all images, or its effective rank
            is too low.

    Warns:
        In the log, if the features are as far as can be told those of random weights.
    """
    _check_weights(model)
    with separate_random_numbers(0, next(model.parameters()).device):
        batches = _batches(model, loader, count)
        summaries = _summarise(model, batches)
    if not summaries.features:
        print_log(
            "TeacherSanityHook: the distiller is one of MMRazor's, and what its recorders record of a "
            'teacher without a head is not checked.',
            'current',
            logging.WARNING,
        )
        return
    about = f'the teacher on {len(summaries.images)} {which} images'
    problems = [
        f'{name}: {problem}'
        for name, feature in summaries.features.items()
        for problem in _problems(summaries.images, feature, min_rank)
    ]
    if problems:
        raise WrongTeacherError(f'{about}: {"; ".join(problems)}. {_ADVICE}')
    for name, feature in summaries.features.items():
        print_log(
            f'{about[0].upper()}{about[1:]}: {name} has {feature.channels} channels, effective rank '
            f'{feature.effective_rank:.3g}, mean cosine {feature.mean_cosine:.3g}',
            'current',
        )
    _compare_with_random(model, batches)


def _check_weights(model: FrozenTeacherDistill) -> None:
    frozen = model.frozen_teacher
    initial = initial_vectors(frozen.model, frozen.in_use or ())
    if initial:
        raise WrongTeacherError(
            f"the teacher's weights were never trained: all of its {len(initial)} vectors "
            f'of norms and biases{listing(initial, 4)} have one single value each, as an '
            'initialisation leaves them, and no training does. Give the checkpoint of a trained '
            'teacher as teacher_ckpt.'
        )


def _batches(model: FrozenTeacherDistill, loader: DataLoader, count: int) -> list[_Batch]:
    """Prepare this process' share of the first images, each by itself."""
    subset = Subset(loader.dataset, range(min(count, len(loader.dataset))))
    images = DataLoader(
        subset,
        batch_size=1,
        sampler=DefaultSampler(subset, shuffle=False, round_up=False),
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        worker_init_fn=loader.worker_init_fn,
    )
    prepared = (model.data_preprocessor(batch, False) for batch in images)
    return [_Batch(data['inputs'], data.get('data_samples')) for data in prepared]


def _summarise(model: FrozenTeacherDistill, batches: Sequence[_Batch]) -> _Summaries:
    """Run the teacher; gives what all processes have seen."""
    images: list[ImageSummary] = []
    features: dict[str, FeatureSummary] = {}
    for inputs, data_samples in batches:
        images += [ImageSummary.of(image.flatten(1)) for image in inputs]
        for source, feature in model.frozen_teacher.extract_features(inputs, data_samples).items():
            if feature.is_floating_point():
                features.setdefault(source.text, FeatureSummary()).add(feature)
    found = _Summaries([], {})
    for theirs in all_gather_object(_Summaries(images, features)):
        found.images.extend(theirs.images)
        for name, feature in theirs.features.items():
            found.features.setdefault(name, FeatureSummary()).merge(feature)
    return found


def _problems(images: list[ImageSummary], feature: FeatureSummary, min_rank: float) -> list[str]:
    """Say what is wrong with a feature; nothing if it is fine."""
    unusable = [image.unusable for image in feature.images]
    if any(unusable):
        values = feature.positions * feature.channels
        return [
            f'{sum(unusable)} of its {values} values are NaN or infinite, in '
            f'{sum(map(bool, unusable))} images'
            + (
                " (teacher_precision='fp16' has no numbers above 65504, 'bf16' has)"
                if any(math.isinf(float(i.means.sum())) for i in feature.images)
                else ''
            )
        ]
    first, found = feature.images[0], []
    # of images that are such themselves it would be right
    has_positions = any(i.positions > 1 for i in feature.images)
    if (
        has_positions
        and all(i.is_flat for i in feature.images)
        and not all(i.is_flat for i in images)
    ):
        found.append('it is the same at all positions of each image')
    if all(i.is_like(first) for i in feature.images) and not all(
        i.is_like(images[0]) for i in images
    ):
        found.append('it is the same for all images')
    # half the channels, where there are but a few
    floor = min(min_rank, feature.channels / 2)
    if not found and feature.effective_rank < floor:
        found.append(
            f'its {feature.channels} channels have the effective rank {feature.effective_rank:.3g}, '
            f'below {floor:g} (min_rank): nearly all of them say the same'
        )
    return found


def _compare_with_random(model: FrozenTeacherDistill, batches: list[_Batch]) -> None:
    """Compare the features with those of the same weights in random order."""
    teacher = model.frozen_teacher.model
    if not any(parameter.numel() > 1 for parameter in teacher.parameters()):
        print_log(
            'TeacherSanityHook: the teacher has no parameters that can be reached, whether its weights '
            'are random is not checked.',
            'current',
        )
        return
    compared = batches[:COMPARED]
    ours = _summarise(model, compared).features
    copies: dict[str, list[FeatureSummary]] = {name: [] for name in ours}
    for seed in range(COPIES):
        with shuffled_weights(teacher, seed):
            for name, feature in _summarise(model, compared).features.items():
                copies[name].append(feature)
    for name, feature in ours.items():
        finite = [copy for copy in copies[name] if copy.is_finite]
        if len(finite) < 3:
            continue  # trained statistics do not fit random weights, which says enough
        rank, cosine = compare_summaries(feature, finite)
        text = (
            f'{name}: effective rank {rank.text}, mean cosine {cosine.text} of '
            f'{len(finite)} copies of the teacher with shuffled weights'
        )
        if max(abs(rank.deviations), abs(cosine.deviations)) > SPREAD:
            print_log(f'The teacher is none with random weights: {text}', 'current')
            continue
        print_log(
            f'The teacher may have random weights: {text}. Both are within {SPREAD:g} standard '
            'deviations, as of random networks; of trained ones only those of very few layers, or of '
            'very few iterations, are. ' + _ADVICE,
            'current',
            logging.WARNING,
        )


def compare_summaries(
    ours: FeatureSummary, copies: Sequence[FeatureSummary]
) -> tuple['Deviation', 'Deviation']:
    """Compare the effective rank and the mean cosine of a feature with those of copies."""
    return tuple(Deviation.of(name, ours, copies) for name in ('effective_rank', 'mean_cosine'))


class Deviation(NamedTuple):
    """How far a number of the teacher's is from those of its copies."""

    deviations: float
    text: str

    @classmethod
    def of(cls, number: str, ours: FeatureSummary, copies: Sequence[FeatureSummary]) -> 'Deviation':
        """Compare logarithms: both numbers are ratios."""

        def read(summary: Any) -> float:
            return math.log(max(getattr(summary, number), 1e-300))

        values = [read(copy) for copy in copies]
        mean, spread = statistics.mean(values), statistics.stdev(values)
        away = read(ours) - mean
        # a network that ignores its weights gives the same number every time
        spread = max(spread, 1e-12)
        deviations = away / spread if abs(away) > 1e-9 else 0.0
        text = (
            f'{getattr(ours, number):.3g} ({deviations:+.1f} standard deviations from '
            f'{math.exp(mean):.3g})'
        )
        return cls(deviations, text)
