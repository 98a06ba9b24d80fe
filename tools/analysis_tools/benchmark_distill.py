#!/usr/bin/env python
"""Measure a distillation's step: student alone, MMRazor's SingleTeacherDistill, and this package.

One process, the same weights and the same random images for all; in each round every variant makes one
training step (forward, backward, optimizer), so that whatever else the machine does hits all of them.
Before that the losses of all variants are compared, without dropout: where they differ by more than
the precision explains, the tool stops. Memory is measured in a fresh process for each variant: the
peak of the CUDA allocator, or without a GPU that of the process.

Variants are `student` (alone), `mmrazor`, `configured` (CONFIG as it is) and CONFIG with other settings
of the teacher, joined by +: fp32, bf16, fp16, channels_last, compile (torch.compile), and in_place
(activations overwrite their inputs, in both models). No data set and no weights are needed: without the
teacher's checkpoint at hand its weights are random, which takes the same time.
"""

import copy
import inspect
import json
import math
import os
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _common import add_cfg_options, make_parser, parse_args
from _trainings import make_progress, write_text

SETTINGS = {
    'fp32': dict(teacher_precision='fp32'),
    'bf16': dict(teacher_precision='bf16'),
    'fp16': dict(teacher_precision='fp16'),
    'channels_last': dict(teacher_channels_last=True),
    'compile': dict(teacher_compile=True),
    'in_place': dict(module_inplace=True, teacher_module_inplace=True),
}
BASELINES = ('student', 'mmrazor', 'configured')
_SETTINGS = (
    'channels_last', 'channels_last+compile', 'bf16', 'bf16+channels_last', 'bf16+channels_last+compile'
)  # fmt: skip
VARIANTS = {
    'cpu': (*BASELINES, *_SETTINGS),
    'cuda': (*BASELINES, *_SETTINGS, 'fp16+channels_last'),
}
# By how much a loss may differ, relative to the larger of it and 0.1.
TOLERANCES = {'fp32': 1e-3, 'fp16': 1e-2, 'bf16': 5e-2}
# Images with annotations in COCO's train2017: what an epoch of the zoo's detectors consists of.
COCO_IMAGES = 117_266


class BenchmarkError(Exception):
    """Nothing can be measured; the message says why."""


def make_arguments():
    parser = make_parser(__doc__)
    parser.add_argument(
        '--device', metavar='DEVICE', help='default: cuda if there is one, else cpu'
    )
    parser.add_argument(
        '--variants',
        nargs='+',
        metavar='NAME',
        help=f'default on a GPU: {" ".join(VARIANTS["cuda"])}; the same without fp16 on a CPU',
    )
    parser.add_argument('--batch', type=int, metavar='N', help="images (default: CONFIG's)")
    parser.add_argument(
        '--size', type=int, nargs=2, metavar=('H', 'W'), help="of the images (default: CONFIG's)"
    )
    parser.add_argument(
        '--iters', type=int, default=10, metavar='N', help='rounds that are timed (default: 10)'
    )
    parser.add_argument(
        '--warmup', type=int, default=2, metavar='N', help='rounds before that (default: 2)'
    )
    parser.add_argument('--amp', action='store_true', help='train the student in mixed precision')
    parser.add_argument(
        '--random-teacher', action='store_true', help='do not look for the checkpoint'
    )
    parser.add_argument(
        '--cpu-time',
        action='store_true',
        help='without a GPU, on a machine that others use: count the seconds that the process '
        'computes, not those that it waits; best with OMP_NUM_THREADS=1, as threads wait busily',
    )
    parser.add_argument('--json', type=Path, metavar='FILE', help='write all numbers there')
    parser.add_argument('--memory-of', metavar='NAME', help='for the tool itself: one variant')
    add_cfg_options(parser)
    args = parse_args(parser)
    for name in ('batch', 'iters'):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f'--{name} must be at least 1, got {getattr(args, name)}')
    for name in args.variants or ():
        unknown = [part for part in name.split('+') if part not in SETTINGS]
        if name not in BASELINES and unknown:
            parser.error(
                f'--variants {name}: expected {", ".join(BASELINES)} or some of '
                f'{", ".join(SETTINGS)}, joined by +'
            )
    return args


def main():
    args = make_arguments()
    import torch

    import rawkd_mm  # noqa: F401 (registers)

    device = args.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    if device.startswith('cuda') and not torch.cuda.is_available():
        sys.exit(f'--device {device}: PyTorch {torch.__version__} finds no GPU')
    if args.cpu_time and device.startswith('cuda'):
        sys.exit('--cpu-time counts what a CPU computes: add --device cpu, or leave it out')
    try:
        benchmark = Benchmark(args, torch.device(device))
        if args.memory_of:
            print(json.dumps(benchmark.measure_memory(args.memory_of)))
            return
        result = benchmark.run(args.variants or VARIANTS[torch.device(device).type])
    except BenchmarkError as error:
        sys.exit(str(error))
    print(table(result))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        write_text(args.json, json.dumps(result, indent=2) + '\n')


class Benchmark:
    """The variants of one config on one device."""

    def __init__(self, args, device) -> None:
        from rawkd_mm.registry import type_name
        from rawkd_mm.training import inline_models, is_distillation, load_config, set_amp

        self.args, self.device, self.notes = args, device, []
        cfg = inline_models(load_config(args.config, args.cfg_options))
        if not is_distillation(cfg):
            raise BenchmarkError(f'{args.config} is no distillation: it has no teacher to measure')
        if args.amp:
            set_amp(cfg, enable=True)
        wrapper = type_name(cfg.optim_wrapper.get('type', 'OptimWrapper'))
        self.amp = 'Amp' in wrapper or 'Bf16' in wrapper
        cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
        forget_pretrained(cfg.model)
        checkpoint = find_checkpoint(cfg.model.get('teacher_ckpt'))
        if checkpoint is None or args.random_teacher:
            if not args.random_teacher:
                self.notes.append(
                    f'{cfg.model.get("teacher_ckpt")} is not here: the teacher is random'
                )
            # nor is there anything to inherit
            cfg.model.update(allow_random_teacher=True, init_student=None)
        cfg.model.teacher_ckpt = None if args.random_teacher else checkpoint
        self.cfg = cfg
        self.batch = args.batch or cfg.train_dataloader.batch_size
        self.size = tuple(args.size or default_size(cfg))
        preprocessors = (
            cfg.model.data_preprocessor,
            cfg.model.architecture.get('data_preprocessor'),
        )
        for preprocessor in (*preprocessors, cfg.model.teacher.get('data_preprocessor')):
            if preprocessor and preprocessor.get('size') is not None:
                preprocessor['size'] = self.size

    def build(self, name: str):
        """Build a variant: the same weights every time."""
        import torch
        from mmengine.registry import MODELS, init_default_scope

        from rawkd_mm.teachers.frozen_teacher import build_model
        from rawkd_mm.training import replace_sync_batchnorm

        init_default_scope(self.cfg.get('default_scope', 'mmengine'))
        torch.manual_seed(0)
        config = copy.deepcopy(self.cfg.model)
        if name not in BASELINES:
            for setting in name.split('+'):
                config.update(SETTINGS[setting])
        if name in ('student', 'mmrazor'):
            config.update(
                teacher_precision=None, teacher_channels_last=False, teacher_compile=False
            )
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

    def build_variant(self, name: str) -> 'Variant':
        model = self.build(name)
        data = model.data_preprocessor(
            make_batch(getattr(model, 'student', model), self.batch, self.size), training=True
        )
        clock = time.process_time if self.args.cpu_time else time.perf_counter
        return Variant(name, model, self.cfg.optim_wrapper, data, self.device, clock)

    def measure_memory(self, name: str) -> dict:
        """Give the peak in MB of this process, or of its CUDA allocator."""
        import torch

        variant = self.build_variant(name)
        if self.device.type == 'cuda':
            torch.cuda.reset_peak_memory_stats(self.device)
        for _ in range(2):
            variant.step()
        if self.device.type == 'cuda':
            return dict(megabytes=torch.cuda.max_memory_allocated(self.device) / 1e6)
        # Linux counts kB, macOS bytes
        unit = 1 if sys.platform == 'darwin' else 1024
        return dict(megabytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6)

    def memory_in_a_fresh_process(self, name: str) -> float:
        command = [sys.executable, __file__, *sys.argv[1:], '--memory-of', name]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise BenchmarkError(f'the process that measures memory failed:\n{done.stderr[-3000:]}')
        return json.loads(done.stdout.splitlines()[-1])['megabytes']

    def run(self, names) -> dict:
        """Measure everything; gives what --json writes."""
        names = list(dict.fromkeys(names))
        rounds = self.args.warmup + self.args.iters
        with make_progress() as progress:
            task = progress.add_task('memory', total=len(names), note='')
            memory = {}
            for name in names:
                progress.update(task, note=name)
                memory[name] = self.memory_in_a_fresh_process(name)
                progress.advance(task)
            progress.update(task, note='')
            task = progress.add_task('losses', total=len(names), note='')
            variants, losses = [], {}
            for name in names:
                progress.update(task, note=name)
                variants.append(self.build_variant(name))
                losses[name] = variants[-1].losses_without_dropout()
                progress.advance(task)
            progress.update(task, note='')
            check_losses(losses, self.amp)
            task = progress.add_task('rounds', total=rounds, note='')
            for i in range(rounds):
                # another one begins each time
                for variant in variants[i % len(names) :] + variants[: i % len(names)]:
                    progress.update(task, note=variant.name)
                    variant.measure()
                progress.advance(task)
            progress.update(task, note='')
        return self.collect(variants, memory, losses)

    def collect(self, variants: list, memory: dict, losses: dict) -> dict:
        from rawkd_mm.compat import installed_versions

        warmup = self.args.warmup
        steps = {v.name: v.seconds[warmup:] for v in variants}
        teachers = {v.name: v.teacher_seconds[warmup:] for v in variants if v.teacher_seconds}
        medians = {name: statistics.median(seconds) for name, seconds in steps.items()}
        floor = None
        if 'student' in medians and teachers:
            floor = medians['student'] + min(map(statistics.median, teachers.values()))
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
                    hours=iterations and median * iterations / 3600,
                )
            )
        return dict(
            config=self.args.config,
            command=shlex.join(
                ['python', 'tools/analysis_tools/benchmark_distill.py', *sys.argv[1:]]
            ),
            device=device_name(self.device),
            clock='cpu' if self.args.cpu_time else 'wall',
            threads=None if self.device.type == 'cuda' else threads(),
            versions={k: ' '.join(v) for k, v in installed_versions().items() if v},
            python=platform.python_version(),
            batch=self.batch,
            size=self.size,
            channels=variants[0].data['inputs'].shape[1],
            student_amp=self.amp,
            iters=self.args.iters,
            schedule_iterations=iterations,
            schedule_gpus=gpus,
            floor_seconds=floor,
            notes=self.notes,
            variants=rows,
        )


class Variant:
    """A model that makes training steps, always with the same weights and images."""

    def __init__(self, name, model, optim_wrapper, data, device, clock) -> None:
        from mmengine.optim import build_optim_wrapper

        self.name, self.model, self.data = name, model, data
        self.device, self.clock = device, clock
        self.seconds, self.teacher_seconds = [], []
        self.optim_wrapper = build_optim_wrapper(model, copy.deepcopy(optim_wrapper))
        # all the arithmetic of the optimizer, and no change
        for group in self.optim_wrapper.param_groups:
            group['lr'] = 0.0

    def step(self) -> None:
        """Make what MMEngine's train_step makes, with images that are prepared already."""
        with self.optim_wrapper.optim_context(self.model):
            losses = self.model(**self.data, mode='loss')
        loss, _ = self.model.parse_losses(losses)
        self.optim_wrapper.update_params(loss)

    def measure(self) -> None:
        self.seconds.append(self._time(self.step))
        frozen = getattr(self.model, '_frozen_teacher', None)
        if frozen is not None:
            self.teacher_seconds.append(self._time(lambda: self._run_teacher(frozen)))

    def _run_teacher(self, frozen) -> None:
        recorders = self.model.distiller.teacher_recorders
        with self.optim_wrapper.optim_context(self.model), recorders:
            frozen.extract(self.data['inputs'], self.data['data_samples'])
        for recorder in recorders.recorders.values():
            recorder.reset_data_buffer()

    def _time(self, function) -> float:
        import torch

        synchronize = torch.cuda.synchronize if self.device.type == 'cuda' else lambda: None
        synchronize()
        start = self.clock()
        function()
        synchronize()
        return self.clock() - start

    def losses_without_dropout(self) -> dict:
        """Give the losses by name. MMRazor's teacher drops out at random, ours does not."""
        import torch

        models = [self.model]
        if self.name not in ('student', 'mmrazor'):
            models.append(self.model.teacher)
        before = []
        for model in models:
            for module in model.modules():
                for key in ('p', 'drop_prob', 'dropout_ratio'):
                    is_dropout = 'drop' in type(module).__name__.lower()
                    if is_dropout and isinstance(getattr(module, key, None), float):
                        before.append((module, key, getattr(module, key)))
                        setattr(module, key, 0.0)
        torch.manual_seed(0)
        with torch.no_grad(), self.optim_wrapper.optim_context(self.model):
            losses = self.model(**self.data, mode='loss')
            # a list holds one loss for each level
            losses = {k: v.sum() if hasattr(v, 'sum') else sum(v) for k, v in losses.items()}
        for module, key, value in before:
            setattr(module, key, value)
        if self.name == 'student':
            losses = {f'student.{name}': value for name, value in losses.items()}
        # MMRazor allows no dots in the names of its losses
        parts = {name: name.partition('.') for name in losses if 'loss' in name}
        return {
            f'{algorithm}.{loss.replace(".", "_")}': float(losses[name])
            for name, (algorithm, _, loss) in parts.items()
        }


def as_mmrazor(ours, config):
    """Make MMRazor's SingleTeacherDistill of a FrozenTeacherDistill, with the same weights."""
    from mmrazor.models import SingleTeacherDistill

    from rawkd_mm.distillers import FeatureDistiller
    from rawkd_mm.teachers.frozen_teacher import build_model, build_teacher

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


def mmrazor_pairs(distiller) -> tuple[dict, dict]:
    """Give the recorders of a FeatureDistiller's pairs and their mappings, as MMRazor wants them."""
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
    """Give one connector for each side of each pair: alignment and connector, or nothing at all."""
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


def make_batch(student, batch: int, size: tuple) -> dict:
    """Give random images of the channels that a model takes, with random annotations."""
    from rawkd_mm.training import made_up_images

    inputs, data_samples = made_up_images(student, size, batch)
    return dict(inputs=inputs, data_samples=data_samples)


def default_size(cfg) -> tuple:
    """Give the size of the images that a config trains with."""
    from rawkd_mm.training import student_config

    preprocessor = student_config(cfg).model.get('data_preprocessor') or {}
    if preprocessor.get('size') is not None:
        return preprocessor['size']
    return 800, 1344  # MMDetection's, padded to a multiple of 32


def forget_pretrained(config) -> None:
    """Remove the weights that a model begins with, in place: they are downloaded, and cost no time."""
    if isinstance(config, dict):
        if isinstance(config.get('pretrained'), str):
            config['pretrained'] = None
        if (config.get('init_cfg') or {}) and 'Pretrained' in str(config['init_cfg']):
            config['init_cfg'] = None
        for value in config.values():
            forget_pretrained(value)


def find_checkpoint(path: str | None) -> str | None:
    """Give a file, the teacher's checkpoint, if there is one on this machine."""
    import torch

    if path and '://' in path:
        path = os.path.join(torch.hub.get_dir(), 'checkpoints', os.path.basename(path))
    return path if path and os.path.isfile(path) else None


def schedule(cfg) -> tuple[int | None, int | None]:
    """Give how many iterations a config trains for, and on how many GPUs."""
    batch = cfg.train_dataloader.batch_size
    total = (cfg.get('auto_scale_lr') or {}).get('base_batch_size', batch)
    if cfg.train_cfg.get('max_iters'):
        return cfg.train_cfg.max_iters, total // batch
    if 'train2017' in str(cfg.train_dataloader):
        return cfg.train_cfg.max_epochs * math.ceil(COCO_IMAGES / total), total // batch
    return None, total // batch


def spread(seconds: list) -> float:
    """Give half the range of the middle half of the values."""
    if len(seconds) < 2:
        return 0.0
    quarters = statistics.quantiles(seconds, n=4, method='inclusive')
    return (quarters[2] - quarters[0]) / 2


def precision_of(name: str, amp: bool) -> str:
    low = [part for part in name.split('+') if part in ('bf16', 'fp16')]
    return low[0] if low else 'bf16' if amp else 'fp32'


def check_losses(losses: dict, amp: bool) -> None:
    """Compare every variant's losses with those of the first that has them.

    Raises:
        BenchmarkError: If they differ by more than the precision explains.
    """
    expected: dict = {}
    for name, values in losses.items():
        for key, value in values.items():
            first, wanted = expected.setdefault(key, (name, value))
            tolerance = max(TOLERANCES[precision_of(n, amp)] for n in (name, first))
            # NaN must not pass
            if not abs(value - wanted) <= tolerance * max(abs(wanted), 0.1):
                raise BenchmarkError(
                    f'{key} is {value:.6g} of {name} and {wanted:.6g} of {first}: they do not '
                    f'compute the same (tolerance {tolerance:g})'
                )


def device_name(device) -> str:
    import torch

    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        model = next(line.partition(':')[2].strip() for line in lines if 'model name' in line)
    except (OSError, StopIteration):
        model = platform.processor() or 'CPU'
    return f'{model}, {os.cpu_count()} cores'


def threads() -> int:
    import torch

    return torch.get_num_threads()


def table(result: dict) -> str:
    """Give the table that is printed."""

    def number(value, digits=3):
        return '' if value is None else f'{value:.{digits}f}'

    versions = ', '.join(result['versions'].values())
    shape = ' x '.join(map(str, (result['batch'], result['channels'], *result['size'])))
    iterations, gpus = result['schedule_iterations'], result['schedule_gpus']
    lines = [
        f'{result["config"]}: {shape}, student in '
        f'{"mixed precision" if result["student_amp"] else "float32"}',
        f'{result["device"]}; {versions}',
        *result['notes'],
        '',
        '| variant | s/step | +- | teacher s | / MMRazor | / floor | peak MB | distill. loss | hours |',
        '|---|---|---|---|---|---|---|---|---|',
    ]
    for row in result['variants']:
        distilled = [v for k, v in row['losses'].items() if k.startswith('distill.')]
        cells = [
            row['variant'],
            number(row['seconds']),
            number(row['spread']),
            number(row['teacher_seconds']),
            number(row['ratio_to_mmrazor'], 2),
            number(row['ratio_to_floor'], 2),
            number(row['peak_megabytes'], 0),
            f'{sum(distilled):.5g}' if distilled else '',
            number(row['hours'], 1),
        ]
        lines.append('| ' + ' | '.join(cells) + ' |')
    clock = 'seconds of computing' if result['clock'] == 'cpu' else 'seconds'
    lines += [
        '',
        f'Median of {result["iters"]} rounds, in {clock}; +- half the range of their middle half.',
    ]
    if result['floor_seconds'] is not None:
        lines.append(
            f"Floor: {result['floor_seconds']:.3f} s, the student's step and the fastest of the "
            'teachers above.'
        )
    if iterations:
        lines.append(
            f'Hours: {iterations} iterations at this speed, on {gpus} devices at once with '
            'communication for nothing.'
        )
    return '\n'.join(lines)


if __name__ == '__main__':
    main()
