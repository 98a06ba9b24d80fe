"""Data order and random numbers that depend on where a training is, not on how it got there.

An iteration's random numbers are those of (seed, iteration), a batch's those of (seed, process,
number of the batch). So there is no random state to be saved, whatever draws in between (a
validation, another number of data workers), and a batch that is skipped need not be loaded.
"""

import os
import random
from collections.abc import Callable, Iterator, Sized
from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine.dataset import InfiniteSampler
from mmengine.device import get_device
from mmengine.dist import broadcast_object_list, get_rank
from mmengine.registry import DATA_SAMPLERS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch.utils.data import BatchSampler, DataLoader

from ..compat import take_batches_as_they_come

__all__ = [
    'NumberedBatches',
    'begin_training',
    'endless_loader',
    'number_batches',
    'seed_batch',
    'seed_iteration',
    'shield_workers',
]

# What random numbers are for; the first word of what they are seeded with.
_ITERATION, _BATCH, _UNLABELLED, _PREPROCESSED = 1, 2, 3, 4


def seed_iteration(seed: int, iteration: int) -> None:
    """Seed torch (all devices), numpy and python for what a model does in an iteration.

    Args:
        seed (int): The training's.
        iteration (int): How many iterations came before.
    """
    _seed(_ITERATION, seed, iteration)


def _seed(*key: int) -> None:
    words = np.random.SeedSequence(key).generate_state(8)
    random.seed(words[:4].tobytes())
    np.random.seed(words)
    seed = int(words[4:6].view(np.uint64)[0])
    if get_device() == 'cpu':
        # torch.manual_seed would note, with a traceback, that a GPU is to be seeded some day
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


class _Batch(list):
    """The indices of a batch, with the key of its random numbers."""

    def __init__(self, indices: list, key: tuple[int, ...]) -> None:
        super().__init__(indices)
        self.key = key


def _load_batch(dataset: Any, load: Callable | None, indices: list) -> list:
    if isinstance(indices, _Batch):
        _seed(*indices.key)
    return [dataset[index] for index in indices] if load is None else load(indices)


class NumberedBatches:
    """A batch sampler whose batches carry their number, and which can begin with any of them.

    Everything else is asked of the batch sampler that it is made of.

    Args:
        batch_sampler (BatchSampler): What makes the batches.
        key (tuple[int, ...]): What the random numbers of all batches have in common.

    Attributes:
        number (int): How many batches came before the next one.
    """

    def __init__(self, batch_sampler: BatchSampler, key: tuple[int, ...]) -> None:
        self.batch_sampler = batch_sampler
        self.key = key
        self.number = 0
        self._begun: Iterator | None = None

    def __getattr__(self, name: str) -> Any:
        if name == 'batch_sampler':  # not yet there, in a copy that is being made
            raise AttributeError(name)
        return getattr(self.batch_sampler, name)

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[_Batch]:
        batches, self._begun = self._begun or iter(self.batch_sampler), None
        for indices in batches:
            self.number += 1
            yield _Batch(indices, (*self.key, self.number - 1))

    def begin_at(self, number: int, skip: int) -> int:
        """Let the next iteration begin later; only indices are made of what is skipped.

        Args:
            number (int): The number of its first batch.
            skip (int): How many batches of the sampler to skip. Where it ends, it begins anew.

        Returns:
            int: How often it ended.
        """
        ends = 0
        batches = iter(self.batch_sampler)
        for _ in range(skip):
            try:
                next(batches)
            except StopIteration:
                ends += 1
                self.batch_sampler.sampler.set_epoch(ends)
                batches = iter(self.batch_sampler)
                next(batches)
        self.number, self._begun = number, batches
        return ends


def number_batches(runner: Runner) -> NumberedBatches | None:
    """Give a runner's train dataloader batches that can be skipped and repeat themselves.

    Its sampler is built anew, with the seed of the training that is resumed: MMEngine has built it
    before it knows, and maybe used it.

    Args:
        runner (Runner): Its train loop must be built, and its checkpoint loaded.

    Returns:
        NumberedBatches | None: The new batch sampler; None if the dataloader or the loop are not
        made as MMEngine makes them from a config, and were left as they are.
    """
    loop, config = runner.train_loop, runner._train_dataloader
    loader = loop.dataloader
    if not (
        isinstance(loop, (EpochBasedTrainLoop, IterBasedTrainLoop))
        and isinstance(loader, DataLoader)
        and isinstance(config, dict)
        and isinstance(config.get('sampler'), dict)
        and loader.batch_sampler is not None
    ):
        return None
    seed = [runner.seed]
    broadcast_object_list(seed)  # with diff_rank_seed each process has its own, but one data order
    sampler = DATA_SAMPLERS.build(
        config['sampler'], default_args=dict(dataset=loader.dataset, seed=seed[0])
    )
    if config.get('batch_sampler') is None:
        batches = BatchSampler(sampler, loader.batch_size, loader.drop_last)
        # DistSamplerSeedHook sets the epoch of this one
        _set(loader, 'sampler', sampler)
    else:
        batches = DATA_SAMPLERS.build(
            config['batch_sampler'],
            default_args=dict(sampler=sampler, batch_size=config['batch_size']),
        )
    batches = NumberedBatches(batches, (_BATCH, seed[0], get_rank()))
    _set(loader, 'batch_sampler', batches)
    _seed_batches(loader.dataset)
    loader._iterator = None  # of persistent workers, which have the dataset as it was
    return batches


def endless_loader(
    dataset: Any, batch_size: int, seed: int, number: int, **options: Any
) -> DataLoader:
    """Make a second loader of a training, which begins with any batch and never ends.

    Each process gets its own share of the images. Their order is another one than that of
    ``train_dataloader``, also where the data set is the same.

    Args:
        dataset (Dataset): Its images; gets a method ``__getitems__``.
        batch_size (int): Images of a batch, in each process.
        seed (int): The training's, the same in all processes.
        number (int): How many batches came before the first.
        **options: Further arguments of the ``DataLoader``.

    Returns:
        DataLoader: Its batches follow from the seed, the process and their number.
    """
    words = np.random.SeedSequence((_UNLABELLED, seed)).generate_state(1)
    sampler = InfiniteSampler(dataset, shuffle=True, seed=int(words[0]))
    batches = BatchSampler(sampler, batch_size, drop_last=True)
    batches = NumberedBatches(batches, (_UNLABELLED, seed, get_rank()))
    batches.begin_at(number, number)
    _seed_batches(dataset)
    return DataLoader(dataset, batch_sampler=batches, **options)


def seed_batch(seed: int, number: int) -> None:
    """Seed what a data_preprocessor does with a batch of the second loader.

    Args:
        seed (int): The training's.
        number (int): How many batches came before.
    """
    _seed(_PREPROCESSED, seed, get_rank(), number)


def _seed_batches(dataset: Any) -> None:
    """Seed a data set for each batch: DataLoader hands over whole ones to one that has this method."""
    load = getattr(dataset, '__getitems__', None)
    if getattr(load, 'func', None) is not _load_batch:
        dataset.__getitems__ = partial(_load_batch, dataset, load)


def _set(loader: DataLoader, name: str, value: Sized) -> None:
    """Set an attribute that a DataLoader protects, because a running iterator keeps the old value."""
    object.__setattr__(loader, name, value)


def begin_training(runner: Runner, batches: NumberedBatches, done: int) -> None:
    """Let the first epoch begin after the batches that were trained already.

    To be called when the epoch has been set (``before_train_epoch``).

    Args:
        runner (Runner): The runner.
        batches (NumberedBatches): Of its train dataloader.
        done (int): How many batches of this epoch were trained; of an ``IterBasedTrainLoop``, for
            which all is one epoch, how many iterations.
    """
    loop = runner.train_loop
    ends = batches.begin_at(loop.iter, done)
    if isinstance(loop, IterBasedTrainLoop):
        loop.dataloader_iterator = type(loop.dataloader_iterator)(loop.dataloader)
        loop.dataloader_iterator._epoch = ends
        take_batches_as_they_come(loop)
    elif done:
        # hooks are told the number of the batch in the epoch
        run_iter = type(loop).run_iter
        loop.run_iter = lambda idx, data_batch: run_iter(loop, idx + done, data_batch)


def shield_workers(loader: DataLoader) -> None:
    """Keep a signal to the process group from ending the workers of a DataLoader.

    The main process may need them until it has saved; they end with it.

    Args:
        loader (DataLoader): Its workers must not have been started.
    """
    if loader.num_workers:
        loader.worker_init_fn = partial(_init_shielded, loader.worker_init_fn)


def _init_shielded(init: Callable | None, worker_id: int) -> None:
    os.setpgrp()
    if init is not None:
        init(worker_id)
