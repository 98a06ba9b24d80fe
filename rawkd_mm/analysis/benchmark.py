"""A distillation's step: student alone, MMRazor's SingleTeacherDistill and this package."""

import copy
import functools
import json
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

import torch
from mmengine.registry import MODELS, init_default_scope

from ..compat import version_texts
from ..registry import type_name
from ..training import (
    inline_models,
    is_distillation,
    is_external_teacher,
    load_config,
    replace_sync_batchnorm,
    set_amp,
)
from ..training.build_model import build_model
from ..training.device_name import device_name
from .benchmark_losses import BenchmarkError, check_losses
from .benchmark_setting import (
    default_size,
    find_checkpoint,
    forget_pretrained,
    make_batch,
    schedule,
)
from .benchmark_variants import BASELINES, SETTINGS
from .mmrazor_counterpart import as_mmrazor, why_no_mmrazor
from .progress import make_progress
from .timed_variant import TimedVariant

# teacher_speed's tolerance for a teacher of random weights: bfloat16 changes its gradient by 2 to 6 %,
# another seed another part of it, and that of a trained one by 1 to 3 %. It takes the same time.
RANDOM_TOLERANCE = 0.1


@dataclass(frozen=True)
class BenchmarkOptions:
    """What is measured.

    Attributes:
        config: Config file of a distillation.
        cfg_options: Entries that override those of the config.
        batch: Number of images; None for the config's.
        size: Their height and width; None for the config's.
        iters: Rounds that are timed.
        warmup: Rounds before that.
        amp: Train the student in mixed precision.
        random_teacher: Do not look for the teacher's checkpoint.
        cpu_time: Count the seconds that the process computes, not those that it waits.
        memory_jobs: Processes that measure memory side by side. On a GPU, each may take an equal part
            of its memory.
    """

    config: str
    cfg_options: dict | None = None
    batch: int | None = None
    size: Sequence[int] | None = None
    iters: int = 10
    warmup: int = 2
    amp: bool = False
    random_teacher: bool = False
    cpu_time: bool = False
    memory_jobs: int = 1


class Benchmark:
    """The variants of one config on one device.

    Args:
        options (BenchmarkOptions): What is measured.
        device (torch.device): Where.
        command (Sequence[str]): What runs the command line tool with these options.

    Raises:
        BenchmarkError: If the config is no distillation.
        UsageError: If the config cannot be read.
    """

    def __init__(self, options: BenchmarkOptions, device, command: Sequence[str] = ()) -> None:
        self.options, self.device, self.command, self.notes = options, device, command, []
        cfg = inline_models(load_config(options.config, options.cfg_options))
        if not is_distillation(cfg):
            raise BenchmarkError(
                f'{options.config} is no distillation: it has no teacher to measure'
            )
        if options.amp:
            set_amp(cfg, enable=True)
        wrapper = type_name(cfg.optim_wrapper.get('type', 'OptimWrapper'))
        self.amp = 'Amp' in wrapper or 'Bf16' in wrapper
        # As MMEngine's Runner does: in a training with it, cuDNN measures its algorithms.
        torch.backends.cudnn.benchmark = bool(cfg.get('env_cfg', {}).get('cudnn_benchmark'))
        cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
        forget_pretrained(cfg.model)
        checkpoint = find_checkpoint(cfg.model.get('teacher_ckpt'))
        if checkpoint is None or options.random_teacher:
            if not options.random_teacher:
                self.notes.append(
                    f'{cfg.model.get("teacher_ckpt")} is not here: the teacher is random'
                )
            # nor is there anything to inherit
            cfg.model.update(allow_random_teacher=True, init_student=None)
        cfg.model.teacher_ckpt = None if options.random_teacher else checkpoint
        self.cfg = cfg
        self.batch = options.batch or cfg.train_dataloader.batch_size
        self.size = tuple(options.size or default_size(cfg))
        preprocessors = (
            cfg.model.data_preprocessor,
            cfg.model.architecture.get('data_preprocessor'),
        )
        for preprocessor in (*preprocessors, cfg.model.teacher.get('data_preprocessor')):
            if preprocessor and preprocessor.get('size') is not None:
                preprocessor['size'] = self.size

    def build(self, name: str):
        """Build a variant: the same weights every time."""
        init_default_scope(self.cfg.get('default_scope', 'mmengine'))
        torch.manual_seed(0)
        config = copy.deepcopy(self.cfg.model)
        if name not in BASELINES:
            config.teacher_speed = None
            for setting in name.split('+'):
                config.update(SETTINGS[setting])
        if name in ('student', 'mmrazor'):
            config.update(
                teacher_speed=None,
                teacher_precision=None,
                teacher_channels_last=None,
                teacher_compile=None,
            )
        if config.get('teacher_speed') is not None:
            # it tries graphs if the training is long enough
            speed = config.teacher_speed
            speed = dict(type=speed) if isinstance(speed, str) else dict(speed)
            speed.setdefault('iterations', schedule(self.cfg)[0])
            if config.teacher_ckpt is None:
                speed.setdefault('tolerance', RANDOM_TOLERANCE)
            config.teacher_speed = speed
        model = MODELS.build(config)
        if name == 'student':
            student = build_model(config.architecture)
            student.load_state_dict(model.student.state_dict())
            student.data_preprocessor = model.data_preprocessor
            model = student
        elif name == 'mmrazor':
            model = as_mmrazor(model, config)
        replace_sync_batchnorm(model)
        model.to(self.device)
        model.train()  # MMRazor's gives None
        return model

    def build_variant(self, name: str) -> TimedVariant:
        """Build a variant with its images, ready to make steps."""
        model = self.build(name)
        data = model.data_preprocessor(
            make_batch(getattr(model, 'student', model), self.batch, self.size), training=True
        )
        clock = time.process_time if self.options.cpu_time else time.perf_counter
        variant = TimedVariant(name, model, self.cfg.optim_wrapper, data, self.device, clock)
        if variant.is_speed_open:
            variant.step()  # finds the teacher's settings
        return variant

    def measure_memory(self, name: str) -> dict:
        """Give the peak in MB of this process, or of its CUDA allocator in a later step.

        In the first step on a GPU, cuDNN tries algorithms with as much memory as there is, or as its
        part is.
        """
        if self.device.type == 'cuda' and self.options.memory_jobs > 1:
            # a tenth is for the CUDA contexts
            torch.cuda.set_per_process_memory_fraction(0.9 / self.options.memory_jobs, self.device)
        variant = self.build_variant(name)
        for _ in range(2):
            variant.step()
        if self.device.type == 'cuda':
            torch.cuda.reset_peak_memory_stats(self.device)
            variant.step()
            return dict(megabytes=torch.cuda.max_memory_allocated(self.device) / 1e6)
        # Linux counts kB, macOS bytes
        unit = 1 if sys.platform == 'darwin' else 1024
        return dict(megabytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6)

    def memory_in_a_fresh_process(self, name: str, jobs: int) -> float:
        """Give the peak in MB of a process that measures nothing else, beside ``jobs`` - 1 others."""
        command = [sys.executable, *self.command, '--memory-of', name, '--memory-jobs', str(jobs)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise BenchmarkError(f'the process that measures memory failed:\n{done.stderr[-3000:]}')
        return json.loads(done.stdout.splitlines()[-1])['megabytes']

    def memory_in_fresh_processes(self, names: Sequence[str], advance) -> dict:
        """Give the peak in MB of each variant.

        Args:
            names (Sequence[str]): The variants.
            advance (Callable): Called after each.

        Returns:
            dict[str, float]: By name.

        Raises:
            BenchmarkError: If a process fails that has the device for itself.
        """
        jobs, found = self.options.memory_jobs, {}
        if jobs > 1:
            with ThreadPoolExecutor(jobs) as pool:
                running = {
                    pool.submit(self.memory_in_a_fresh_process, name, jobs): name for name in names
                }
                for future in as_completed(running):
                    # what failed may have had too little memory: it is measured again, alone
                    if future.exception() is None:
                        found[running[future]] = future.result()
                        advance()
        for name in names:
            if name not in found:
                found[name] = self.memory_in_a_fresh_process(name, 1)
                advance()
        return found

    def _possible(self, names: list) -> list:
        """Leave out MMRazor's variant, with a note, where it cannot compute the same."""
        if 'mmrazor' in names and is_external_teacher(self.cfg):
            ours = self.build_variant('configured')
            reason = why_no_mmrazor(ours.model, ours.data)
            if reason:
                self.notes.append(f'mmrazor is left out: {reason}')
                names = [name for name in names if name != 'mmrazor']
        return names

    def run(self, names) -> dict:
        """Measure everything; gives what --json writes."""
        names = self._possible(list(dict.fromkeys(names)))
        if self.cfg.model.teacher_ckpt is None and 'auto' in names:
            self.notes.append(
                f'auto: low precision may change the gradient by {RANDOM_TOLERANCE:.0%}, because the '
                'teacher is random; a training allows 2%'
            )
        rounds = self.options.warmup + self.options.iters
        with make_progress() as progress:
            task = progress.add_task('memory', total=len(names), note='')
            memory = self.memory_in_fresh_processes(
                names, functools.partial(progress.advance, task)
            )
            task = progress.add_task('losses', total=len(names), note='')
            variants, losses = [], {}
            for name in names:
                progress.update(task, note=name)
                variants.append(self.build_variant(name))
                losses[name] = variants[-1].losses_without_dropout()
                progress.advance(task)
            progress.update(task, note='')
            check_losses(losses, self.amp, {v.name: v.teacher_precision for v in variants})
            task = progress.add_task('rounds', total=rounds, note='')
            for i in range(rounds):
                for variant in in_turn(variants, i):
                    progress.update(task, note=variant.name)
                    variant.measure()
                progress.advance(task)
            progress.update(task, note='')
        return self.collect(variants, memory, losses)

    def collect(self, variants: list, memory: dict, losses: dict) -> dict:
        """Give medians, ratios and what they were measured with, as --json writes it."""
        warmup = self.options.warmup
        steps = {v.name: v.seconds[warmup:] for v in variants}
        teachers = {v.name: v.teacher_seconds[warmup:] for v in variants if v.teacher_seconds}
        medians = {name: statistics.median(seconds) for name, seconds in steps.items()}
        floor = None
        if 'student' in medians and teachers:
            floor = medians['student'] + min(map(statistics.median, teachers.values()))
        settings = {v.name: v.teacher_settings for v in variants}
        iterations, gpus = schedule(self.cfg)
        rows = []
        for name, median in medians.items():
            rows.append(
                dict(
                    variant=name,
                    seconds=median,
                    spread=spread(steps[name]),
                    all_seconds=steps[name],
                    teacher_seconds=statistics.median(teachers[name]) if name in teachers else None,
                    ratio_to_mmrazor=median / medians['mmrazor'] if 'mmrazor' in medians else None,
                    ratio_to_floor=median / floor if floor else None,
                    peak_megabytes=memory[name],
                    losses=losses[name],
                    teacher_settings=settings[name],
                    hours=iterations and median * iterations / 3600,
                )
            )
        return dict(
            config=self.options.config,
            command=shlex.join(
                ['python', 'tools/analysis_tools/benchmark_distill.py', *self.command[1:]]
            ),
            device=device_name(self.device),
            clock='cpu' if self.options.cpu_time else 'wall',
            threads=None if self.device.type == 'cuda' else torch.get_num_threads(),
            versions=version_texts(),
            python=platform.python_version(),
            batch=self.batch,
            size=self.size,
            channels=variants[0].data['inputs'].shape[1],
            student_amp=self.amp,
            iters=self.options.iters,
            memory_jobs=self.options.memory_jobs,
            schedule_iterations=iterations,
            schedule_gpus=gpus,
            floor_seconds=floor,
            notes=self.notes,
            variants=rows,
        )


def in_turn(items: list, number: int) -> list:
    """Give the order of a round, in which another one begins each time.

    Args:
        items (list): What is measured.
        number (int): Of the round, from 0.

    Returns:
        list: All of them.

    Example:
        >>> in_turn(['a', 'b', 'c'], 4)
        ['b', 'c', 'a']
    """
    first = number % len(items)
    return items[first:] + items[:first]


def spread(seconds: list) -> float:
    """Give half the range of the middle half of the values.

    Args:
        seconds (list): At least one.

    Returns:
        float: Seconds; 0 of one value.
    """
    if len(seconds) < 2:
        return 0.0
    quarters = statistics.quantiles(seconds, n=4, method='inclusive')
    return (quarters[2] - quarters[0]) / 2
