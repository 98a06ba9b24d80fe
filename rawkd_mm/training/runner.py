"""MMEngine's Runner, also for several processes without a GPU."""

import atexit
import os
import sys
from typing import Any
from unittest.mock import patch

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import init_dist, is_distributed
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.model.utils import _BatchNormXd
from mmengine.optim import OptimWrapper
from mmengine.registry import MODEL_WRAPPERS, RUNNERS
from mmengine.runner import Runner
from mmengine.utils.dl_utils import mmcv_full_available, set_multi_processing
from torch import nn
from torch.utils.data import DataLoader

from ..registry import find_type, type_name
from .checkpoint_loading import weights_only
from .mmrazor_parts import refuse_mmrazor_parts
from .model_config import is_distillation
from .process_exchange import ProcessExchange

__all__ = ['AverageLossesHook', 'build_runner', 'leave_processes', 'replace_sync_batchnorm']


def replace_sync_batchnorm(model: nn.Module) -> list[str]:
    """Turn every SyncBN of a model into BN, in place.

    Each stays the object that it was: its parameters, its forward hooks (MMRazor's recorders, which
    MMEngine's ``revert_sync_batchnorm`` would lose) and whoever refers to it are not touched.

    Args:
        model (nn.Module): The model.

    Returns:
        list[str]: Names of the modules that were changed.
    """
    kinds = [nn.SyncBatchNorm]
    if mmcv_full_available():
        from mmcv.ops import SyncBatchNorm

        kinds.append(SyncBatchNorm)
    changed = []
    for name, module in model.named_modules():
        if isinstance(module, tuple(kinds)):
            module.__class__ = _BatchNormXd
            changed.append(name)
    return changed


class AverageLossesHook(Hook):
    """Averages the losses of an iteration over the processes before they are logged.

    MMEngine logs those of the first process, so that the curve of several processes differs from
    that of one with the same total batch. To be registered with priority 'HIGHEST', before the
    losses are recorded.

    Args:
        exchange (ProcessExchange, optional): What other hooks reduce with, too. Defaults to None, one
            of its own.
    """

    def __init__(self, exchange: ProcessExchange | None = None) -> None:
        self.exchange = exchange or ProcessExchange()

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: dict | None = None,
    ) -> None:
        """Average in place.

        Args:
            runner (Runner): Has the number of the iteration.
            batch_idx (int): Not used.
            data_batch (dict, optional): Not used.
            outputs (dict, optional): What the model's train_step gave: the losses by name, the same
                names in every process.
        """
        if is_distributed() and outputs:
            outputs.update(self.exchange.after(runner.iter, outputs).averages)


class _CPUProcesses:
    """To be mixed into a Runner: what MMEngine's does for GPUs only."""

    def setup_env(self, env_cfg: dict) -> None:
        self._backend_note = None
        if self.distributed and get_device() == 'cpu' and not is_distributed():
            # as MMEngine does, and before init_dist, which would choose another start method
            set_multi_processing(**env_cfg.get('mp_cfg', {}), distributed=True)
            dist_cfg = dict(env_cfg.get('dist_cfg', {}))
            backend = dist_cfg.pop('backend', 'nccl')
            if backend not in ('gloo', 'mpi'):
                self._backend_note = (
                    f'No GPU: the processes talk through gloo instead of {backend}.'
                )
                backend = 'gloo'
            # MMEngine chooses a CUDA device first, whatever the backend
            with patch('torch.cuda.set_device', lambda device: None):
                init_dist(self.launcher, backend=backend, **dist_cfg)
        super().setup_env(env_cfg)

    def wrap_model(
        self, model_wrapper_cfg: dict | None, model: nn.Module
    ) -> nn.parallel.DistributedDataParallel | nn.Module:
        if self._backend_note:
            self.logger.info(self._backend_note)
        on_cpu = get_device() == 'cpu'
        if is_model_wrapper(model) or (self.distributed and not on_cpu):
            return super().wrap_model(model_wrapper_cfg, model)
        changed = replace_sync_batchnorm(model)
        if changed:
            reason = (
                'SyncBN needs GPUs, each process normalises with its own batch'
                if self.distributed
                else 'there is only one process'
            )
            self.logger.info(f'{len(changed)} SyncBN layers run as BN: {reason}.')
        if not self.distributed:
            return super().wrap_model(model_wrapper_cfg, model)
        if self.cfg.get('sync_bn') is not None:
            self.logger.info(f'sync_bn={self.cfg.sync_bn!r} is ignored: SyncBN needs GPUs.')
        # MMEngine's own way, less the device_ids, which a model on the CPU must not have
        wrapper = model_wrapper_cfg or dict(
            broadcast_buffers=False,
            find_unused_parameters=self.cfg.get('find_unused_parameters', False),
        )
        return MODEL_WRAPPERS.build(
            {'type': 'MMDistributedDataParallel', **wrapper}, default_args=dict(module=model)
        )


def _empty(dataset: Any) -> str:
    """Say which dataset is empty."""
    where, name = {}, type(dataset).__name__
    if isinstance(dataset, dict):
        name = type_name(dataset.get('type'))
        keys = ('data_root', 'ann_file', 'data_prefix', 'img_suffix', 'indices', 'filter_cfg')
        where = {key: dataset[key] for key in keys if dataset.get(key)}
    return (
        f'the dataset {name} is empty: {where or "see its config"} (current folder {os.getcwd()!r}). '
        'Check that the folder has images with this suffix, and that no filter (filter_cfg, classes '
        'in metainfo) leaves all of them out.'
    )


class _CarefulInputs:
    """Mixin for a Runner: checkpoints as data only, no empty datasets, a warning about total batches."""

    def load_checkpoint(self, *args: Any, **kwargs: Any) -> dict:
        with weights_only():
            return super().load_checkpoint(*args, **kwargs)

    def _init_model_weights(self) -> None:
        with weights_only():  # what init_cfg names
            super()._init_model_weights()

    @classmethod
    def build_dataloader(
        cls, dataloader: DataLoader | dict, *args: Any, **kwargs: Any
    ) -> DataLoader:
        # Checked here: else the workers search for a first image without end when the loop is built.
        try:
            built = super().build_dataloader(dataloader, *args, **kwargs)
        except ValueError as error:
            # how MMEngine's BaseDataset fails when it packs no images
            if 'need at least one array to concatenate' not in str(error):
                raise
            raise ValueError(_empty(dataloader['dataset'])) from error
        if hasattr(built.dataset, '__len__') and len(built.dataset) == 0:
            config = dataloader['dataset'] if isinstance(dataloader, dict) else built.dataset
            raise ValueError(_empty(config))
        return built

    def scale_lr(self, optim_wrapper: OptimWrapper, auto_scale_lr: dict | None = None) -> None:
        super().scale_lr(optim_wrapper, auto_scale_lr)
        auto_scale_lr = auto_scale_lr or {}
        base = auto_scale_lr.get('base_batch_size')
        if not base or auto_scale_lr.get('enable'):
            return
        loader = self._train_dataloader
        batch = loader['batch_size'] if isinstance(loader, dict) else loader.batch_size
        steps = getattr(optim_wrapper, '_accumulative_counts', 1)
        if batch is None or batch * self.world_size * steps == base:
            return
        total = batch * self.world_size * steps
        accumulated = f' x {steps} accumulated' if steps > 1 else ''
        rates = {name: values[0] for name, values in optim_wrapper.get_lr().items()}
        fitting = ', '.join(
            f'{name} {value * total / base:g} instead of {value:g}' for name, value in rates.items()
        )
        self.logger.warning(
            f'The learning rate is meant for a total batch of {base} '
            f'(auto_scale_lr.base_batch_size), and this training has {total}: {batch} images x '
            f'{self.world_size} processes{accumulated}. What would fit is {fitting}: pass '
            '--auto-scale-lr, or set it.'
        )


def leave_processes(code: int = 0) -> None:
    """Leave the process group and, with gloo, end the process; a tool's last call.

    A gloo thread may hold a tensor of the last collective when Python shuts down. The C++ runtime
    then aborts, and a complete run exits with an error. DDP keeps the group alive, so the thread
    cannot be joined. Therefore the exit functions are run, output is flushed, and the process is ended
    directly.

    Args:
        code (int): What the process gives back. Defaults to 0, success.
    """
    if not torch.distributed.is_initialized():
        return
    backend = torch.distributed.get_backend()
    torch.distributed.destroy_process_group()
    if 'gloo' in backend:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _refuse_training_without_labels(cfg: Config) -> None:
    dataset = (cfg.get('train_dataloader') or {}).get('dataset') or {}
    if not is_distillation(cfg) and type_name(dataset.get('type')) == 'UnlabelledImages':
        raise ValueError(
            'train_dataloader has images without labels (UnlabelledImages), from which only a '
            f'distillation learns, and the model is {type_name(cfg.model.get("type"))}. Give it '
            'labelled images, or a teacher (FrozenTeacherDistill with calculate_student_loss=False)'
        )


def build_runner(cfg: Config) -> Runner:
    """Build the Runner that a config asks for, able to run several processes without a GPU.

    Where there is none, the processes talk through gloo and SyncBN layers run as BN; the log says
    so, and the config stays as it is. Otherwise it is MMEngine's Runner, or that of
    ``cfg.runner_type``, but it loads checkpoints as weights only (see
    :func:`rawkd_mm.training.checkpoint_loading.weights_only`), refuses an empty dataset, and warns
    where the total batch is not the one that the learning rate is meant for.

    Args:
        cfg (Config): Complete config, with ``launcher`` and ``work_dir``.

    Returns:
        Runner: Ready for ``train()`` or ``test()``.

    Raises:
        ValueError: If a distillation has parts of MMRazor that do not work with it; says what to use
            (:mod:`rawkd_mm.training.mmrazor_parts`). If a model that is no distillation should learn
            from images without labels.
    """
    refuse_mmrazor_parts(cfg)
    _refuse_training_without_labels(cfg)
    runner_class = Runner
    if 'runner_type' in cfg:
        runner_class = find_type(cfg.runner_type, RUNNERS, cfg.get('default_scope'))
    runner_class = type(runner_class.__name__, (_CarefulInputs, _CPUProcesses, runner_class), {})
    return runner_class.from_cfg(cfg)
