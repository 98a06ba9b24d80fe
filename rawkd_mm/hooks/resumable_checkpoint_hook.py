"""Checkpoints from which a training resumes with the result of an uninterrupted one."""

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from mmengine.dist import all_gather_object, get_world_size, is_distributed, is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.optim import OptimWrapper
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import distributed

from ..registry import HOOKS
from ..training.checkpoint import CheckpointError
from ..training.checkpoint_files import POINTER, WholeFilesBackend, find_last_checkpoint
from ..training.optimizer_state import regroup_optimizer_state
from ..training.process_exchange import ProcessExchange
from ..training.resume import begin_training, number_batches, seed_iteration, shield_workers

# What a process gives back that SIGTERM has ended: 128 plus the signal's number, as shells have it.
_EXIT_CODE = 128 + signal.SIGTERM
_INTERRUPTED = 'interrupted.pth'


class TrainingInterrupted(SystemExit):
    """Raised after SIGTERM, when the training is saved. The process must exit with code 143."""


class SavingError(OSError):
    """A checkpoint could not be written; the message says which and what is left."""


def _check_same_beginning(runner: Runner) -> None:
    """Refuse a training of which only some nodes have found the checkpoint.

    DDP compares no weights: they would train on, each with its own.
    """
    iterations = all_gather_object(runner.iter)
    if len(set(iterations)) > 1:
        listed = ', '.join(f'{i} in process {rank}' for rank, i in enumerate(iterations))
        raise CheckpointError(
            f'the processes do not begin with the same iteration: {listed}. Not all of them have '
            f'found the checkpoint in {runner.work_dir!r}. Put the work dir where all nodes see it, or '
            'copy the checkpoint to the same path on each node.'
        )


@HOOKS.register_module()
class ResumableCheckpointHook(CheckpointHook):
    """MMEngine's ``CheckpointHook``, for trainings that are interrupted.

    To be used in its place, in ``default_hooks.checkpoint``. What is different:

    - A resumed training is the uninterrupted one, bit by bit where the device's arithmetic allows:
      order of the data, augmentation and dropout too. It begins at once, without loading the
      batches that were trained already, in the middle of an epoch if need be. For this, random
      numbers are seeded in each iteration and for each batch.
    - A checkpoint appears when it is whole and on the disk, and an old one (``max_keep_ckpts``, the
      previous best one) is removed after that. If the last one is damaged all the same, resuming
      takes the newest that is whole. This is for local disks; other backends (``backend_args``)
      write as they do.
    - SIGTERM, to one process or all, lets all of them finish the iteration or the validation, saves
      ``interrupted.pth`` as the last checkpoint and ends them with exit code 143.

    Args:
        **kwargs: As for MMEngine's ``CheckpointHook``.

    Attributes:
        listens (bool): Whether it acts upon SIGTERM itself. Else whoever does calls :meth:`stop_soon`.
        exchange (ProcessExchange | None): How it finds out, after an iteration, whether another process
            was told to stop; hooks that share one make one reduction. Defaults to None, by itself.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.exchange: ProcessExchange | None = None
        self._batches = None
        self._done = 0  # batches of the epoch
        self._has_trained = False
        self._resumed_from: dict | None = None  # meta of the checkpoint
        self._saved: int | None = None  # the iteration after which a checkpoint was last saved
        self.listens = True
        self._signalled = False
        self._process: int | None = None  # where a signal is meant for the training
        self._previous_handler: Any = None
        self._group = None

    # Going on

    def before_run(self, runner: Runner) -> None:
        """Decide which checkpoint ``resume=True`` means.

        Raises:
            ValueError: If the work dir has a last checkpoint, but none that is whole.
        """
        if not runner._resume or runner._load_from is not None:
            return
        runner._load_from, passed_over = find_last_checkpoint(runner.work_dir)
        for reason in passed_over:
            runner.logger.warning(f'Not resumed from {reason}.')

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Remember how far the training was in its epoch, and with which batches.

        The optimizer's state of an older checkpoint of a distillation gets the groups of today.
        """
        self._resumed_from = checkpoint.get('meta', {})
        if isinstance(runner.optim_wrapper, OptimWrapper) and runner._resume:
            if regroup_optimizer_state(checkpoint, runner.optim_wrapper):
                runner.logger.info(
                    "The optimizer's state was saved with other parameter groups; it goes on in those "
                    'of today, each with the learning rate that it had.'
                )

    def before_train(self, runner: Runner) -> None:
        """Prepare files, batches and signals.

        Raises:
            CheckpointError: If not all processes have the same iteration to begin with.
        """
        _check_same_beginning(runner)
        folder = str(self.out_dir or runner.work_dir)
        if self.backend_args is None and self.file_client_args is None and '://' not in folder:
            self.backend_args = dict(backend='whole_files')
        super().before_train(runner)
        if isinstance(self.file_backend, WholeFilesBackend) and is_main_process():
            self.file_backend.remove_unfinished(self.out_dir)
        self._warn_of_accumulation(runner)
        self._batches = number_batches(runner)
        if self._batches is None:
            runner.logger.warning(
                'If this training is resumed, its data come in another order: train_dataloader is '
                'no config with a sampler, or train_cfg is neither IterBasedTrainLoop nor '
                'EpochBasedTrainLoop.'
            )
        else:
            shield_workers(runner.train_dataloader)
        if isinstance(getattr(runner.val_loop, 'dataloader', None), torch.utils.data.DataLoader):
            shield_workers(runner.val_dataloader)
        self._listen(runner)

    def _warn_of_accumulation(self, runner: Runner) -> None:
        counts = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
        if not self.by_epoch and self.interval > 0 and self.interval % counts:
            runner.logger.warning(
                f'Checkpoints are saved every {self.interval} iterations and gradients accumulated '
                f'over {counts}: what is accumulated when one is saved is not in it. Choose a '
                'multiple for the interval to resume exactly.'
            )

    def before_train_epoch(self, runner: Runner) -> None:
        """Begin after the last batch that was trained."""
        if self._batches is not None:
            self._done = self._position(runner)
            begin_training(runner, self._batches, self._done)
        self._resumed_from = None

    def _position(self, runner: Runner) -> int:
        """Tell how many batches of the epoch that begins were trained already."""
        loop, now = runner.train_loop, self._training(runner)
        if self._resumed_from is None or loop.iter == 0:
            return 0
        before = self._resumed_from.get('batches')
        if before is None:  # saved by MMEngine's own hook
            before = dict(now, done=loop.iter - loop.epoch * now['per_epoch'])
        changed = {k: (before[k], now[k]) for k in now if before[k] != now[k]}
        if changed:
            runner.logger.warning(
                'The training is resumed otherwise than it was begun, so that its data come in '
                'another order: '
                + ', '.join(f'{name} was {old}, is {new}' for name, (old, new) in changed.items())
                + '.'
            )
        if isinstance(loop, IterBasedTrainLoop):
            return loop.iter
        done = round(before['done'] * now['per_epoch'] / before['per_epoch'])
        return done if 0 <= done <= now['per_epoch'] else 0

    @staticmethod
    def _training(runner: Runner) -> dict:
        """What the order of the data depends on."""
        batches = runner.train_dataloader.batch_sampler
        return dict(
            processes=get_world_size(),
            batch_size=getattr(batches, 'batch_size', None),
            per_epoch=len(batches),
        )

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        """Seed what is random in this iteration."""
        seed_iteration(runner.seed, runner.iter)

    # Saving

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add what tells where in the data the training is."""
        if self._batches is not None:
            checkpoint['meta']['batches'] = dict(self._training(runner), done=self._done)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: dict | None = None,
    ) -> None:
        """Save a checkpoint if one is due, or if the training was told to stop."""
        self._done, self._has_trained = batch_idx + 1, True
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        is_complete = getattr(runner.optim_wrapper, 'should_update', lambda: True)()
        if self.exchange is not None and is_distributed():
            told = self.exchange.after(runner.iter, outputs).is_told_to_stop
        else:
            told = self._is_any_told_to_stop()
        if told and is_complete:
            self._stop(runner, runner.iter + 1)

    def after_train_epoch(self, runner: Runner) -> None:
        """Save a checkpoint if one is due."""
        self._done = 0
        runner.train_loop.__dict__.pop('run_iter', None)  # of an epoch that began in the middle
        super().after_train_epoch(runner)

    def after_val(self, runner: Runner) -> None:
        """Stop if the training was told to stop meanwhile."""
        if self._process is not None and self._is_any_told_to_stop():
            self._stop(runner, runner.iter)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        with self._saving(runner):
            super()._save_checkpoint_with_step(runner, step, meta)
        self._saved = meta['iter']
        interrupted = self.file_backend.join_path(self.out_dir, _INTERRUPTED)
        if is_main_process() and self.file_backend.isfile(interrupted):
            self.file_backend.remove(interrupted)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        if self.save_best:
            with self._saving(runner):
                super()._save_best_checkpoint(runner, metrics)

    @contextmanager
    def _saving(self, runner: Runner) -> Iterator[None]:
        """Remove old checkpoints after the new one is there, and explain what goes wrong."""
        is_whole = isinstance(self.file_backend, WholeFilesBackend)
        try:
            with self.file_backend.removing_at_the_end() if is_whole else nullcontext():
                yield
        except SavingError:
            raise
        except OSError as error:
            pointer = Path(runner.work_dir, POINTER)
            last = pointer.read_text().strip() if pointer.is_file() else 'none'
            free = f', {shutil.disk_usage(self.out_dir).free >> 20} MiB free' if is_whole else ''
            raise SavingError(
                error.errno,
                f'a checkpoint could not be saved in {self.out_dir!r}: {error.strerror}{free}. The '
                f'last checkpoint is unchanged: {last}. Free some space, then run the same command '
                'with --resume.',
            ) from error

    # Stopping

    def _listen(self, runner: Runner) -> None:
        """Act upon SIGTERM from now on."""
        if is_distributed() and distributed.get_backend() not in ('gloo', 'mpi'):
            # to agree upon a signal without waiting for the GPUs
            timeout = runner.cfg.get('env_cfg', {}).get('dist_cfg', {}).get('timeout')
            self._group = distributed.new_group(
                backend='gloo', timeout=timeout and timedelta(seconds=timeout)
            )
        self._process = os.getpid()
        if not self.listens:
            return
        self._signalled = False
        try:
            self._previous_handler = signal.signal(signal.SIGTERM, self._on_signal)
        except ValueError:
            runner.logger.warning('SIGTERM ends this training at once: it is not the main thread.')

    def stop_soon(self) -> None:
        """Stop as after SIGTERM: when the iteration or the validation is finished and saved."""
        self._signalled = True

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() == self._process:
            self._signalled = True
        else:  # a child process
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def after_train(self, runner: Runner) -> None:
        """Leave SIGTERM to others."""
        if not self._has_trained and runner.val_loop is not None:
            # The training was stopped after the last iteration, so its validation may be missing.
            runner.val_loop.run()
        super().after_train(runner)
        self._process = None
        if self._previous_handler is not None:
            signal.signal(signal.SIGTERM, self._previous_handler)
            self._previous_handler = None

    @property
    def is_told_to_stop(self) -> bool:
        """Whether this process was told to stop."""
        return self._signalled

    def _is_any_told_to_stop(self) -> bool:
        """Whether any of the processes was; all have to ask."""
        if not is_distributed():
            return self._signalled
        told = torch.tensor(int(self._signalled))
        distributed.all_reduce(told, distributed.ReduceOp.MAX, group=self._group)
        return bool(told)

    def _stop(self, runner: Runner, iteration: int) -> None:
        """Save, unless that was just done, and end the process; the last iteration goes on."""
        if iteration >= runner.max_iters:
            return
        if self._saved != iteration:
            path = self.file_backend.join_path(self.out_dir, _INTERRUPTED)
            with self._saving(runner):
                runner.save_checkpoint(
                    self.out_dir,
                    _INTERRUPTED,
                    file_client_args=self.file_client_args,
                    meta=dict(epoch=runner.epoch, iter=iteration),
                    by_epoch=False,
                    backend_args=self.backend_args,
                )
                if is_main_process():
                    WholeFilesBackend().put_text(path, Path(runner.work_dir, POINTER))
        runner.logger.info(
            f'Stopped by SIGTERM after iteration {iteration}, which is saved. Go on with --resume.'
        )
        if is_distributed():
            distributed.barrier(group=self._group)  # the first process writes
        raise TrainingInterrupted(_EXIT_CODE)
