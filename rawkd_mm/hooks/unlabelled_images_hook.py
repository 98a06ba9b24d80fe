"""Brings images without labels into a training with labelled ones."""

from collections.abc import Iterator
from typing import Any

import torch
from mmengine.dataset import pseudo_collate
from mmengine.dist import broadcast_object_list
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from ..algorithms import FrozenTeacherDistill
from ..features import UnlabelledBatch
from ..registry import HOOKS
from ..training.random_numbers import separate_random_numbers
from ..training.resume import endless_loader, seed_batch, shield_workers

_NORMS = ('both', 'labelled')


@HOOKS.register_module()
class UnlabelledImagesHook(Hook):
    """Lets a student learn from its teacher on images without labels, beside labelled ones.

    Each iteration has a batch of ``train_dataloader`` and one of these images. The student's own
    losses come from the labelled images and have the value that they have without the others. The
    distillation is the mean over all images, logged in two parts: ``distill.*`` of the labelled and
    ``distill_unlabelled.*`` of the others, each with its share of the images as its weight.

    - The two kinds of images may have different sizes: each has a forward of its own.
    - The labelled part draws the random numbers that it draws without this hook.
    - A batch follows from the seed, the process and the number of the iteration. A training that is
      resumed goes on with the batch that comes next, augmented as it would have been.
    - With several processes each has its own share of the images.
    - Once MMRazor's ``StopDistillHook`` has stopped the distillation, no more images are loaded.

    Args:
        dataset (dict): Config of a data set, as a rule
            ``dict(type='UnlabelledImages', data_root=..., pipeline=[...])``. Labels that it may have
            are not used.
        batch_size (int): Images without labels in each iteration and process.
        num_workers (int): Processes that load them, for each process of the training. Defaults
            to 2.
        norm ('both' | 'labelled'): Of which images the student's norms collect their running
            statistics, with which it is tested. In the training each of the two batches is normalised
            with its own statistics. Defaults to 'both'.
        pin_memory (bool): Load into memory from which a GPU copies faster. Defaults to False.

    Raises:
        ValueError: If an argument is out of range; in the training, if a loss needs labels.
        TypeError: In the training, if the model is no ``FrozenTeacherDistill``.
    """

    # when another hook may have stopped the distillation in this iteration
    priority = 'VERY_LOW'
    # a student alone has no use for it: --student-alone leaves it out
    needs_distillation = True

    def __init__(
        self,
        dataset: dict,
        batch_size: int,
        num_workers: int = 2,
        norm: str = 'both',
        pin_memory: bool = False,
    ) -> None:
        if norm not in _NORMS:
            raise ValueError(
                f"norm={norm!r}: of which images the student's norms collect their running "
                "statistics, 'both' or 'labelled'"
            )
        for name, value, least in (('batch_size', batch_size, 1), ('num_workers', num_workers, 0)):
            if not isinstance(value, int) or value < least:
                raise ValueError(f'{name} must be a whole number from {least} on, got {value!r}')
        self.dataset = dataset
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.norm = norm
        self.pin_memory = pin_memory
        self._images: Any = None
        self._seed = 0
        self._iterator: Iterator | None = None
        self._next: int | None = None  # number of the iterator's next batch

    def before_train(self, runner: Runner) -> None:
        """Build the data set, and see whether its images can be distilled."""
        model = _bare(runner.model)
        if not isinstance(model, FrozenTeacherDistill):
            raise TypeError(
                'UnlabelledImagesHook has images without labels, from which a student learns by '
                f'distillation alone, and the model is a {type(model).__name__}. Use '
                'FrozenTeacherDistill, or leave out the hook'
            )
        model.check_unlabelled()
        # with diff_rank_seed each process has its own seed, but one data order
        seed = [runner.seed]
        broadcast_object_list(seed)
        self._seed = seed[0]
        if self._images is None:
            with separate_random_numbers():
                self._images = (
                    DATASETS.build(self.dataset) if isinstance(self.dataset, dict) else self.dataset
                )
                if hasattr(self._images, 'full_init'):
                    self._images.full_init()
        if len(self._images) == 0:
            raise ValueError(
                f'UnlabelledImagesHook: the data set {type(self._images).__name__} has no images. '
                'Check its folder or list, or leave out the hook'
            )
        source = 'all' if self.norm == 'both' else 'labelled'
        runner.logger.info(
            f'{len(self._images)} images without labels, {self.batch_size} in each iteration and '
            f'process. The running statistics of norms are those of {source} images.'
        )

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        """Hand the next images to the model, which takes them in this iteration.

        Args:
            runner (Runner): Has the model, and the number of the iteration.
            batch_idx (int): Not used.
            data_batch (dict, optional): Not used.
        """
        model = _bare(runner.model)
        if model.distillation_stopped:
            self._close()
            return
        device = next(model.parameters()).device
        with separate_random_numbers(device=device):
            batch = self._load(runner.iter)
            seed_batch(self._seed, runner.iter)
            data = model.data_preprocessor(batch, True)
        model.unlabelled = UnlabelledBatch(
            data['inputs'], data.get('data_samples'), self.norm == 'labelled'
        )

    def _load(self, number: int) -> dict:
        """Give the batch of an iteration."""
        if self._iterator is None or self._next != number:
            self._close()
            self._iterator = iter(self._loader(number))
        self._next = number + 1
        return next(self._iterator)

    def _loader(self, number: int) -> DataLoader:
        loader = endless_loader(
            self._images,
            self.batch_size,
            self._seed,
            number,
            num_workers=self.num_workers,
            collate_fn=pseudo_collate,
            pin_memory=self.pin_memory and torch.cuda.is_available(),
        )
        shield_workers(loader)
        return loader

    def _close(self) -> None:
        """Let the workers end."""
        self._iterator = self._next = None

    def after_train(self, runner: Runner) -> None:
        """End the data workers."""
        self._close()


def _bare(model: Any) -> Any:
    return model.module if is_model_wrapper(model) else model
