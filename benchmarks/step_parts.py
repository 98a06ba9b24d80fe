#!/usr/bin/env python
"""Where the time of a distilled step goes that is neither the student's nor the teacher's.

In each round, one after the other and each time beginning with another one:

- alone: a step of the student as it is trained alone, which may work in place;
- not in place: the same with `inplace=False` everywhere, as in the distillation;
- distilled: a step of CONFIG;
- teacher: the teacher's modules up to the feature, called one after the other without this package;
- our teacher: the same through FrozenTeacher;
- losses: the connectors and the losses alone, on features that are there: forward, backward, and the
  optimizer's step for the connectors.

The rest is what the distilled step takes beyond alone + teacher + losses. Times are processor seconds;
run it in one thread, as threads wait busily. The teacher has random weights.

    OMP_NUM_THREADS=1 python benchmarks/step_parts.py CONFIG OUT.json --size 128 256
"""

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path

from mmengine.config import DictAction

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

PHASES = ('forward', 'backward', 'optimizer')
CONFIG = 'configs/cad/cad_bottleneck_pspnet-r101_pspnet-r18_8xb2-80k_cityscapes-512x1024.py'


class Step:
    """A model's training step, in phases.

    Args:
        model (BaseModel): The student alone, or a distillation.
        optim_wrapper (dict): Config; its learning rate becomes 0.
        data (dict): Prepared images and data samples.
    """

    def __init__(self, model, optim_wrapper, data) -> None:
        from rawkd_mm.analysis.timed_variant import TimedVariant

        variant = TimedVariant('', model, optim_wrapper, data, None, None)
        self.model, self.data, self.optim_wrapper = model, data, variant.optim_wrapper

    def measure(self) -> dict:
        """Make a step; gives the processor seconds of each phase."""
        times = [time.process_time()]
        with self.optim_wrapper.optim_context(self.model):
            losses = self.model(**self.data, mode='loss')
        loss, _ = self.model.parse_losses(losses)
        times.append(time.process_time())
        self.optim_wrapper.backward(self.optim_wrapper.scale_loss(loss))
        times.append(time.process_time())
        self.optim_wrapper.step()
        self.optim_wrapper.zero_grad()
        times.append(time.process_time())
        return dict(zip(PHASES, (b - a for a, b in zip(times, times[1:]))))


class DistilledStep(Step):
    """That of a distillation, with the parts of its forward."""

    def __init__(self, model, *args) -> None:
        super().__init__(model, *args)
        self._inside: dict = {}
        places = dict(
            teacher=(model.frozen_teacher, 'extract_features'),
            student=(model.student, 'forward'),
            losses=(model.distiller, 'compare'),
        )
        for name, (owner, method) in places.items():
            setattr(owner, method, self._timed(name, getattr(owner, method)))

    def _timed(self, name, function):
        def call(*args, **kwargs):
            start = time.process_time()
            result = function(*args, **kwargs)
            self._inside[f'forward of the {name}'] = time.process_time() - start
            return result

        return call

    def measure(self) -> dict:
        """Make a step; gives the seconds of each phase, and those of three parts of its forward."""
        return {**super().measure(), **self._inside}


class Losses:
    """The connectors and losses of a distillation, on features that are there."""

    def __init__(self, model, optim_wrapper, data) -> None:
        import torch

        from rawkd_mm.analysis.timed_variant import compared_features

        self.distiller = model.distiller
        pairs = model.extract_features(data['inputs'], data['data_samples'])
        self.student, self.teacher = compared_features(self.distiller, pairs)
        self.samples = data['data_samples']
        trained = torch.nn.ModuleList([self.distiller.connectors, self.distiller.distill_losses])
        self.optim_wrapper = None
        if any(True for _ in trained.parameters()):
            variant = Step(trained, optim_wrapper, None)
            self.optim_wrapper = variant.optim_wrapper

    def measure(self) -> dict:
        """Gives the processor seconds of each phase."""
        times = [time.process_time()]
        loss = sum(self.distiller.compare(self.student, self.teacher, self.samples).losses.values())
        times.append(time.process_time())
        loss.backward()
        times.append(time.process_time())
        if self.optim_wrapper is not None:
            self.optim_wrapper.step()
            self.optim_wrapper.zero_grad()
        times.append(time.process_time())
        for feature in self.student.values():
            feature.grad = None
        return dict(zip(PHASES, (b - a for a, b in zip(times, times[1:]))))


class PlainTeacher:
    """A segmentor's backbone, neck and head up to what its classifier takes."""

    def __init__(self, model, inputs) -> None:
        self.model, self.inputs = model, inputs

    def run(self):
        """Give the feature."""
        import torch

        with torch.no_grad():
            features = self.model.extract_feat(self.inputs)
            return self.model.decode_head._forward_feature(features)

    def measure(self) -> dict:
        """Gives the processor seconds."""
        start = time.process_time()
        self.run()
        return dict(forward=time.process_time() - start)


class OurTeacher:
    """The teacher of a distillation as its step runs it."""

    def __init__(self, model, data) -> None:
        self.teacher, self.data = model.frozen_teacher, data

    def run(self) -> dict:
        """Give its features."""
        return self.teacher.extract_features(self.data['inputs'], self.data['data_samples'])

    def measure(self) -> dict:
        """Gives the processor seconds."""
        start = time.process_time()
        self.run()
        return dict(forward=time.process_time() - start)


def make_parts(options) -> dict:
    """Build what is measured, by name.

    Args:
        options (BenchmarkOptions): With a distillation of segmentors.
    """
    import torch

    from rawkd_mm.analysis.benchmark import Benchmark

    benchmark = Benchmark(options, torch.device('cpu'))
    optim_wrapper = benchmark.cfg.optim_wrapper
    data = benchmark.build_variant('student').data
    alone, not_in_place = (benchmark.build('student') for _ in range(2))
    distilled, apart = (benchmark.build('configured') for _ in range(2))
    for module in not_in_place.modules():
        if getattr(module, 'inplace', False):
            module.inplace = False
    ours, frozen = OurTeacher(apart, data), apart.frozen_teacher
    plain = PlainTeacher(frozen.model, frozen._images(data['inputs'], data['data_samples']))
    (feature,) = ours.run().values()
    if not torch.equal(plain.run(), feature):
        raise SystemExit(
            'the plain teacher gives another feature: this needs the last one of a head'
        )
    return {
        'alone': Step(alone, optim_wrapper, data),
        'not in place': Step(not_in_place, optim_wrapper, data),
        'distilled': DistilledStep(distilled, optim_wrapper, data),
        'teacher': plain,
        'our teacher': ours,
        'losses': Losses(apart, optim_wrapper, data),
    }


def measure(parts: dict, rounds: int, warmup: int) -> list[dict]:
    """Give the seconds of each part in each round, phase by phase."""
    from rawkd_mm.analysis.benchmark import in_turn

    found = []
    for i in range(warmup + rounds):
        times = {name: parts[name].measure() for name in in_turn(list(parts), i)}
        if i >= warmup:
            found.append(times)
        print(f'\rround {i + 1} of {warmup + rounds}', end='', file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return found


def total(times: dict) -> float:
    """Add up the phases of one measurement."""
    return sum(times.get(phase, 0.0) for phase in PHASES)


def compare(rounds: list[dict]) -> dict:
    """Give, for each row of the table, its seconds in each round.

    Each difference is that of one round, so that what slows the whole machine down cancels.
    """

    def each(function) -> list[float]:
        return [function(times) for times in rounds]

    def phase(name):
        return each(
            lambda t: (
                t['distilled'][name]
                - t['alone'][name]
                - t['teacher'].get(name, 0.0)
                - t['losses'][name]
            )
        )

    return {
        'distilled step': each(lambda t: total(t['distilled'])),
        'student alone': each(lambda t: total(t['alone'])),
        'teacher': each(lambda t: total(t['teacher'])),
        'losses with their connectors': each(lambda t: total(t['losses'])),
        'rest': each(
            lambda t: (
                total(t['distilled']) - total(t['alone']) - total(t['teacher']) - total(t['losses'])
            )
        ),
        'rest of the forward': phase('forward'),
        'rest of the backward': phase('backward'),
        'rest of the optimizer': phase('optimizer'),
        'student not in place': each(lambda t: total(t['not in place']) - total(t['alone'])),
        'teacher within FrozenTeacher': each(
            lambda t: total(t['our teacher']) - total(t['teacher'])
        ),
        'forward of the student, beyond alone not in place': each(
            lambda t: t['distilled']['forward of the student'] - t['not in place']['forward']
        ),
        'forward of the teacher, beyond FrozenTeacher alone': each(
            lambda t: t['distilled']['forward of the teacher'] - total(t['our teacher'])
        ),
        'forward of the losses, beyond alone': each(
            lambda t: t['distilled']['forward of the losses'] - t['losses']['forward']
        ),
        'forward between these three': each(
            lambda t: (
                t['distilled']['forward']
                - sum(v for name, v in t['distilled'].items() if name.startswith('forward of'))
            )
        ),
    }


def table(rows: dict) -> str:
    """Give lines of Markdown: medians, and half the range of the middle half."""
    from rawkd_mm.analysis.benchmark import spread

    lines = ['| | ms | of the step |', '|---|---|---|']
    for name, seconds in rows.items():
        parts = [100 * a / b for a, b in zip(seconds, rows['distilled step'])]
        lines.append(
            f'| {name} | {1e3 * statistics.median(seconds):.2f} ± {1e3 * spread(seconds):.2f} '
            f'| {statistics.median(parts):.1f} ± {spread(parts):.1f} % |'
        )
    return '\n'.join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', metavar='CONFIG', help=f'a distillation, such as {CONFIG}')
    parser.add_argument('out', type=Path, metavar='JSON')
    parser.add_argument('--batch', type=int, metavar='N', help="images (default: CONFIG's)")
    parser.add_argument(
        '--size', type=int, nargs=2, metavar=('H', 'W'), help="of the images (default: CONFIG's)"
    )
    parser.add_argument('--rounds', type=int, default=18, metavar='N', help='default: 18')
    parser.add_argument(
        '--warmup', type=int, default=3, metavar='N', help='rounds before these (default: 3)'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        metavar='KEY=VALUE',
        help="override CONFIG's",
    )
    args = parser.parse_args()
    if args.rounds < 2:
        parser.error(f'--rounds must be at least 2, to have a spread, got {args.rounds}')
    import torch

    from rawkd_mm.analysis.benchmark import BenchmarkOptions
    from rawkd_mm.analysis.text_files import write_text
    from rawkd_mm.compat import version_texts
    from rawkd_mm.training.device_name import device_name

    options = BenchmarkOptions(
        config=args.config,
        cfg_options=args.cfg_options,
        batch=args.batch,
        size=args.size,
        random_teacher=True,
        cpu_time=True,
    )
    parts = make_parts(options)
    rows = compare(measure(parts, args.rounds, args.warmup))
    inputs = parts['alone'].data['inputs']
    result = dict(
        config=args.config,
        cfg_options=args.cfg_options,
        images=list(inputs.shape),
        clock='processor seconds',
        device=device_name(inputs.device),
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        versions=version_texts(),
        seconds=rows,
    )
    print(f'{args.config}, images of {"x".join(map(str, inputs.shape))}\n\n{table(rows)}')
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(args.out, json.dumps(result, indent=2) + '\n')


if __name__ == '__main__':
    main()
