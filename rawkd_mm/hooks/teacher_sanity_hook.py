"""Finds a wrong teacher before the training, not after."""

import logging

import torch
from mmengine.dataset import DefaultSampler
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch.utils.data import DataLoader, Subset

from ..algorithms import FrozenTeacherDistill
from ..registry import HOOKS
from ..teachers import ExternalTeacher
from ..training.build_model import number_of_classes
from ..training.errors import listing
from .teacher_features import check_features
from .wrong_teacher_error import WrongTeacherError

__all__ = ['TeacherSanityHook', 'WrongTeacherError', 'check_evaluation']

_ADVICE = (
    "Check that teacher_ckpt belongs to the teacher's config and dataset, and its data_preprocessor "
    '(mean, std, channel order) to the weights. If this teacher is meant, change expected or fraction '
    'of TeacherSanityHook, or leave it out.'
)


@HOOKS.register_module()
class TeacherSanityHook(Hook):
    """Evaluates the frozen teacher before the first iteration, and stops if it is far too bad.

    A teacher of another library (:class:`ExternalTeacher`) has no head and predicts nothing. Its
    weights and its features are checked instead, see below.

    It runs on the validation images of the config, or the first of them, through the evaluator of
    the config, and its images are made as in the training: by the student's data_preprocessor, and
    converted to the teacher's normalisation. A teacher with weights of something else, another order
    of channels or of classes is found by that in a minute or two.

    A metric on few images deviates from the published one, above all mIoU with many classes. By
    default the hook therefore stops only below *half* of the expected value. Check the logged value
    yourself.

    With several processes each evaluates its share, and all stop together. A training that is resumed
    does not repeat it, and ``tools/train.py --student-alone`` leaves it out. A teacher with random
    weights (``allow_random_teacher=True``) is not evaluated; the log says so.

    A teacher without a head stops the training, and the message has the numbers,

    - if its weights were never trained: if all norms that run, and the biases, are as they were
      initialised (:func:`rawkd_mm.teachers.initial_vectors`);
    - if one of its features is not finite, is the same at all positions of each image, or is the same
      for all images. Images that are so themselves do not count;
    - if the effective rank of a feature is below ``min_rank``: the participation ratio of the
      covariance of its channels in float64 (:func:`rawkd_mm.teachers.participation_ratio`).

    The log has a warning if the features are like those of random weights. They are compared with
    those of 9 copies whose weights are the same numbers in random order, on the first 8 images (of each
    process), by the logarithms of the effective rank and of the mean cosine between the features of
    any two positions. Of random weights, no number tells them from the copies but by chance
    (:func:`rawkd_mm.teachers.shuffled_weights`). The warning comes if both numbers are within 4 standard
    deviations of the copies'. How sure that is: docs/checks.md. The images are those of the validation;
    without one, those of the training.

    Args:
        images (int, optional): How many images, from the first on; None for all. Defaults to 64.
        expected (dict[str, float], optional): Metrics by the evaluator's own names and in its own
            unit: ``dict(mIoU=79.76)`` of mmseg, ``{'coco/bbox_mAP': 0.41}`` of mmdet. Without it the
            metrics are only logged.
        fraction (float): Below this share of an expected metric the training stops. Defaults to 0.5.
        min_rank (float): For a teacher without a head: below this effective rank of a feature the
            training stops. With few channels, half of them counts if it is less. Defaults to 1.1.

    Raises:
        ValueError: If an argument is out of range.
    """

    # once all other hooks are ready, the one that saves checkpoints for example
    priority = 'LOWEST'
    # a student alone has no use for it: --student-alone leaves it out
    needs_distillation = True

    def __init__(
        self,
        images: int | None = 64,
        expected: dict[str, float] | None = None,
        fraction: float = 0.5,
        min_rank: float = 1.1,
    ) -> None:
        if images is not None and images < 1:
            raise ValueError(f'images must be at least 1, or None for all, got {images}')
        if not 0 < fraction <= 1:
            raise ValueError(f'fraction must be above 0 and at most 1, got {fraction}')
        bad = {k: v for k, v in (expected or {}).items() if not v > 0}
        if bad:
            raise ValueError(f'expected metrics must be above 0, got {bad}')
        if not min_rank >= 0:
            raise ValueError(f'min_rank must be at least 0, got {min_rank}')
        self.images = images
        self.min_rank = min_rank
        self.expected = dict(expected or {})
        self.fraction = fraction

    def before_train(self, runner: Runner) -> None:
        """Evaluate the teacher, or check its features, unless the training is resumed.

        Raises:
            TypeError: If the model is no ``FrozenTeacherDistill``.
            WrongTeacherError: If the teacher cannot be evaluated here, or a metric is below the
                stated share of the expected one; if a teacher without a head or its features are
                wrong.
        """
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if not isinstance(model, FrozenTeacherDistill):
            raise TypeError(
                f'TeacherSanityHook needs a FrozenTeacherDistill, got {type(model).__name__}'
            )
        if runner.iter > 0:
            return
        if model.frozen_teacher.absent is None:
            print_log(
                'TeacherSanityHook: no checkpoint was loaded into the teacher '
                '(allow_random_teacher=True), it is not evaluated.',
                'current',
                logging.WARNING,
            )
            return
        loader = getattr(runner.val_loop, 'dataloader', None)
        if isinstance(model.teacher, ExternalTeacher):
            self._check_features(runner, model, loader)
            return
        if not isinstance(loader, DataLoader):
            raise WrongTeacherError(
                'TeacherSanityHook needs a validation to evaluate the teacher with: give the config '
                'val_dataloader, val_evaluator and val_cfg, or leave out the hook'
            )
        check_evaluation(model, loader.dataset, 'TeacherSanityHook', 'leave out the hook')
        metrics, count = self._evaluate(runner, model, loader)
        self._judge(metrics, count, len(loader.dataset))

    def _check_features(
        self, runner: Runner, model: FrozenTeacherDistill, loader: DataLoader | None
    ) -> None:
        if self.expected:
            raise WrongTeacherError(
                f'TeacherSanityHook: expected={self.expected}, and a {type(model.teacher).__name__} has '
                'no head that predicts anything. Leave out expected: its features are checked instead'
            )
        which = 'validation'
        if not isinstance(loader, DataLoader):
            loader, which = runner.train_dataloader, 'training'
        count = min(self.images or len(loader.dataset), len(loader.dataset))
        check_features(model, loader, which, count, self.min_rank)

    def _evaluate(
        self, runner: Runner, model: FrozenTeacherDistill, loader: DataLoader
    ) -> tuple[dict[str, float], int]:
        count = min(self.images or len(loader.dataset), len(loader.dataset))
        subset = Subset(loader.dataset, range(count))
        images = DataLoader(
            subset,
            batch_size=loader.batch_size or 1,
            sampler=DefaultSampler(subset, shuffle=False),
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            worker_init_fn=loader.worker_init_fn,
        )
        evaluator = runner.val_loop.evaluator
        # the training shall draw the random numbers that it would draw without this
        with (
            torch.random.fork_rng(devices=[]),
            _only_these_images(evaluator.metrics, loader.dataset, count),
        ):
            for batch in images:
                predictions = model.frozen_teacher.predict(batch, model.data_preprocessor)
                evaluator.process(data_samples=predictions, data_batch=batch)
            return evaluator.evaluate(count), count

    def _judge(self, metrics: dict[str, float], count: int, total: int) -> None:
        which = f'the first {count} of {total}' if count < total else f'all {total}'
        if not metrics and self.expected:
            # what mmdet's evaluator gives when there is not a single box
            raise WrongTeacherError(
                f'the teacher finds nothing on {which} validation images, expected {self.expected}. '
                + _ADVICE
            )
        unknown = sorted(set(self.expected) - set(metrics))
        if unknown:
            raise WrongTeacherError(
                f'TeacherSanityHook: expected has {unknown}, the evaluator gives {sorted(metrics)}'
            )
        values = {
            name: f'{float(value):.4g}'
            for name, value in metrics.items()
            if isinstance(value, (int, float)) or getattr(value, 'ndim', 1) == 0
        }
        for name, expected in self.expected.items():
            values[name] += f' (expected {expected:g})'
        text = ', '.join(f'{name} {value}' for name, value in values.items())
        print_log(f'The teacher on {which} validation images: {text}', 'current')
        # NaN is not good enough either
        low = [k for k, v in self.expected.items() if not float(metrics[k]) >= self.fraction * v]
        if low:
            raise WrongTeacherError(
                f'the teacher on {which} validation images: '
                + ', '.join(f'{name} {values[name]}' for name in low)
                + f', which is below {self.fraction:g} of the expected. '
                + _ADVICE
            )


def check_evaluation(
    model: FrozenTeacherDistill, dataset: torch.utils.data.Dataset, who: str, instead: str
) -> None:
    """See whether the teacher of a distillation can be evaluated on a data set.

    Args:
        model (FrozenTeacherDistill): Has the teacher, which has loaded its checkpoint.
        dataset (Dataset): Whose ``metainfo`` names the classes, if anything does.
        who (str): Wants to evaluate it, for the messages.
        instead (str): What one can do without it, for the messages.

    Raises:
        WrongTeacherError: If it has no head, parts of it are random, or it has another number of
            classes.

    Warns:
        In the log, if its classes have other names.
    """
    teacher = model.frozen_teacher
    if isinstance(model.teacher, ExternalTeacher):
        raise WrongTeacherError(
            f'{who}: the teacher, a {type(model.teacher).__name__}, gives features and has no head that '
            f'predicts anything, so that it cannot be evaluated: {instead}.'
        )
    # only the training of a segmentor runs its auxiliary heads
    random = [n for n in teacher.absent or () if not n.startswith('auxiliary_head.')]
    if random:
        raise WrongTeacherError(
            f'{who}: {len(random)} parameters of the teacher {type(model.teacher).__name__} were not '
            f'in its checkpoint or did not fit{listing(random, 6)}. The distillation does without '
            f'them, an evaluation cannot. Give the whole checkpoint, or {instead}.'
        )
    names = (getattr(dataset, 'metainfo', None) or {}).get('classes')
    count = number_of_classes(model.teacher)
    if names and count is not None and count != len(names):
        raise WrongTeacherError(
            f'{who}: the teacher has {count} classes, the validation set {len(names)}, so that it '
            f'cannot be evaluated there. Take another teacher, or {instead}.'
        )
    if names and teacher.classes and list(names) != list(teacher.classes):
        different = [
            f'{i}: {of_teacher!r} and {of_dataset!r}'
            for i, (of_teacher, of_dataset) in enumerate(zip(teacher.classes, names))
            if of_teacher != of_dataset
        ]
        print_log(
            f"{who}: the teacher's checkpoint names other classes than the validation "
            f'set{listing(different, 5)}; is their order the same?',
            'current',
            logging.WARNING,
        )


class _only_these_images:  # noqa: N801 (a context manager)
    """Restrict COCO's metrics to the images that are evaluated; the others would count as missed."""

    def __init__(self, metrics: list, dataset: torch.utils.data.Dataset, count: int) -> None:
        self.metrics = [metric for metric in metrics if hasattr(metric, 'img_ids')]
        self.dataset = dataset
        self.count = count

    def __enter__(self) -> None:
        self.before = [metric.img_ids for metric in self.metrics]
        for metric in self.metrics:
            metric.img_ids = [self.dataset.get_data_info(i)['img_id'] for i in range(self.count)]

    def __exit__(self, *_: object) -> None:
        for metric, ids in zip(self.metrics, self.before):
            metric.img_ids = ids
