#!/usr/bin/env python
"""Measure how the time and the memory of a step grow, and how much of it is the distillation's.

Four times one quantity of the quickstart's pair grows: images in a batch, pixels of an image, pairs of
features with a loss each, and the width of both models. A fifth time LAD, CAD and a connector run on
features of their own whose channels grow. Random images and weights, one thread, seconds of computing.
In each round every value of a quantity makes one step of the student alone and one with CAD; then the
teacher runs alone, then the losses with their connectors, forward and backward. Memory is what the
allocator holds at most in a step beyond what was there before: weights are not in it, gradients are.

Every round is written at once. The program goes on where it was interrupted, and adds rounds if it is
started again with more of them.

    python benchmarks/growth.py
    python benchmarks/growth.py --summary     # tables and figure of what was measured
"""

import argparse
import csv
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'benchmarks')]

RESULTS = ROOT / 'benchmarks' / 'results' / 'growth.json'
FIGURE = ROOT / 'docs' / 'images' / 'growth'
CONFIG = 'cad_bottleneck_pspnet-r18-w12_pspnet-r18-w4_1xb16-4k_digit-scenes-48x48.py'
FIELDS = ('axis', 'value', 'part', 'rounds', 'ms', 'spread_ms', 'megabytes')
SIDE = 192  # of the images, in pixels, where it does not grow
BLOCKS = 23  # of ResNet-101's third stage: as many features of one shape


class Axis(NamedTuple):
    """A quantity that grows.

    Attributes:
        label: What it is, in words.
        values: What it takes, from small to large.
        expected: Part -> the order that its time is expected to grow with.
    """

    label: str
    values: tuple[int, ...]
    expected: dict[str, int]


_LINEAR = dict(student=1, teacher=1, distilled=1, losses=1)
_CONNECTORS = ("connector, student's C", "connector, teacher's C")
AXES = {
    'batch': Axis('images in a batch', (2, 4, 8, 16, 32), _LINEAR),
    'pixels': Axis('pixels of an image', tuple(s * s for s in (96, 144, 192, 288, 384)), _LINEAR),
    'pairs': Axis('pairs of features', (1, 2, 4, 8, 16), dict(losses=1)),
    'width': Axis('width of both models', (1, 2, 3, 4, 6), {}),
    'channels': Axis(
        'channels C of a feature',
        (32, 64, 128, 256, 512),
        dict.fromkeys(('LAD', 'CAD', *_CONNECTORS), 1),
    ),
}
# Part -> what tables and the figure call it.
PARTS = dict(
    student='student alone', teacher='teacher alone', distilled='with CAD',
    losses='losses alone', ours='with CAD less both models',
)  # fmt: skip


def make_benchmark(axis: str, value: int):
    """Give the quickstart's pair as a benchmark's config, with one quantity changed."""
    import torch

    from rawkd_mm.analysis.benchmark import Benchmark, BenchmarkOptions

    side = math.isqrt(value) if axis == 'pixels' else SIDE
    options = BenchmarkOptions(
        str(ROOT / 'configs' / 'quickstart' / CONFIG),
        batch=value if axis == 'batch' else 4,
        size=(side, side),
        random_teacher=True,
        cpu_time=True,
    )
    benchmark = Benchmark(options, torch.device('cpu'))
    model = benchmark.cfg.model
    for network in (model.architecture, model.teacher):
        backbone, head = network.backbone, network.decode_head
        if axis == 'width':
            for part, keys in (
                (backbone, ('stem_channels', 'base_channels')),
                (head, ('in_channels', 'channels')),
            ):
                part.update({key: value * part[key] for key in keys})
        if axis == 'pairs':
            backbone.depth = 101
            head.in_channels *= 4
    if axis == 'pairs':
        # the last blocks, so that the teacher runs equally far for any number
        names = [f'backbone.layer3.{BLOCKS - 1 - number}' for number in range(value)]
        model.distiller.pairs = [dict(student=name, teacher=name) for name in names]
    return benchmark


class StepPoint:
    """A distillation whose step is measured.

    Args:
        axis: What grows: 'batch', 'pixels', 'pairs' or 'width'.
        value: How far.
    """

    def __init__(self, axis: str, value: int) -> None:
        from rawkd_mm.analysis.timed_variant import compared_features

        benchmark = make_benchmark(axis, value)
        self.student = benchmark.build_variant('student')
        self.distilled = benchmark.build_variant('configured')
        self.device = benchmark.device
        model, data = self.distilled.model, self.distilled.data
        self.samples = data['data_samples']
        found = model.extract_features(data['inputs'], self.samples)
        self.student_features, self.teacher_features = compared_features(model.distiller, found)

    def losses(self) -> None:
        """Compute the losses with their connectors, forward and backward, of features that are there."""
        distiller = self.distilled.model.distiller
        comparison = distiller.compare(self.student_features, self.teacher_features, self.samples)
        sum(comparison.losses.values()).backward()
        distiller.zero_grad(set_to_none=True)
        for feature in self.student_features.values():
            feature.grad = None

    def measure(self) -> dict[str, float]:
        """Give the seconds of a step and of its parts."""
        self.student.measure()
        self.distilled.measure()
        return dict(
            student=self.student.seconds[-1],
            distilled=self.distilled.seconds[-1],
            teacher=self.distilled.teacher_seconds[-1],
            losses=seconds(self.losses),
        )

    def megabytes(self) -> dict[str, float]:
        """Give how much memory each needs at most."""
        steps = dict(student=self.student.step, distilled=self.distilled.step, losses=self.losses)
        return measure_memory(steps, self.device)


class LossPoint:
    """Losses and connectors on features of their own: 4 maps of 64 x 64.

    Args:
        channels: Of the features of the losses, and of one side of the connectors.
    """

    other_channels = 128  # of the other side of a connector

    def __init__(self, channels: int) -> None:
        import torch

        from rawkd_mm.registry import MODELS

        def feature(number):
            return torch.randn(4, number, 64, 64)

        torch.manual_seed(0)
        self.device = torch.device('cpu')
        self.steps = {}
        for name in ('LAD', 'CAD'):
            loss = MODELS.build(dict(type=f'{name}Loss'))
            self.steps[name] = make_step(loss, feature(channels), feature(channels))
        sides = [(channels, self.other_channels), (self.other_channels, channels)]
        for name, (given, wanted) in zip(_CONNECTORS, sides):
            config = dict(type='mmrazor.ConvModuleConnector', act_cfg=None)
            module = MODELS.build(dict(config, in_channel=given, out_channel=wanted))
            self.steps[name] = make_step(module, feature(given), gradient=feature(wanted))

    def measure(self) -> dict[str, float]:
        """Give the seconds of forward and backward of each."""
        return {name: seconds(step) for name, step in self.steps.items()}

    def megabytes(self) -> dict[str, float]:
        """Give how much memory each needs at most."""
        return measure_memory(self.steps, self.device)


def make_step(module, student, *teacher, gradient=None) -> Callable[[], None]:
    """Give a function that runs a module forward and backward."""
    student.requires_grad_()

    def step():
        module(student, *teacher).backward(gradient)
        module.zero_grad(set_to_none=True)
        student.grad = None

    return step


def seconds(function: Callable[[], None]) -> float:
    """Give how long a function computes."""
    start = time.process_time()
    function()
    return time.process_time() - start


def measure_memory(steps: dict[str, Callable[[], None]], device) -> dict[str, float]:
    """Give the megabytes that each step needs at most, beyond what is there before it."""
    from losses import peak

    for step in steps.values():
        step()  # makes what stays, the optimizer's state above all
    return {name: peak(step, [], device) / 1e6 for name, step in steps.items()}


def measure(file: Path, axes: Sequence[str], rounds: int, values: int | None = None) -> None:
    """Measure what a file lacks, and write each round into it.

    Args:
        file: JSON; begun if it is not there.
        axes: Keys of ``AXES``.
        rounds: How many there shall be.
        values: How many values of each axis, the smallest first; None for all.

    Raises:
        SystemExit: If the file was measured with other settings.
    """
    import torch
    from losses import keep_memory

    from rawkd_mm.analysis.benchmark import in_turn
    from rawkd_mm.analysis.text_files import write_text
    from rawkd_mm.compat import version_texts
    from rawkd_mm.training.device_name import device_name

    torch.set_num_threads(1)
    keep_memory()
    setting = dict(
        device=device_name(torch.device('cpu')),
        threads=1,
        versions=version_texts(),
    )
    result = json.loads(file.read_text()) if file.is_file() else dict(setting=setting, axes={})
    if result['setting'] != setting:
        sys.exit(
            f'{file} was measured with {result["setting"]}, this is {setting}: their rounds do not '
            'belong together. Give another --out.'
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    for axis in axes:
        wanted = AXES[axis].values[:values]
        found = result['axes'].setdefault(axis, {})
        if list(found) not in ([], [str(value) for value in wanted]):
            sys.exit(
                f'{file} has {AXES[axis].label} {", ".join(found)}, and {wanted} are to be measured: '
                'give another --out, or the same --small.'
            )
        done = min((point['rounds'] for point in found.values()), default=0)
        if done >= rounds:
            continue
        points = {
            str(value): LossPoint(value) if axis == 'channels' else StepPoint(axis, value)
            for value in wanted
        }
        for value, point in points.items():
            point.measure()  # the first time takes longer
            found.setdefault(value, dict(rounds=0, seconds={}, megabytes=point.megabytes()))
        for number in range(done, rounds):
            measured = {name: points[name].measure() for name in in_turn(list(points), number)}
            for name, parts in measured.items():
                found[name]['rounds'] += 1
                for part, spent in parts.items():
                    found[name]['seconds'].setdefault(part, []).append(round(spent, 7))
            write_text(file, json.dumps(result) + '\n')
        print(f'{AXES[axis].label}: {rounds} rounds', flush=True)


def find_slope(values: Sequence[float], measured: Sequence[float]) -> tuple[float, float]:
    """Fit the order of growth: the slope of a line through the logarithms, by least squares.

    Args:
        values: What grows, at least three.
        measured: What was measured at each, positive.

    Returns:
        The slope, and its standard error from what the line leaves over.
    """
    x, y = ([math.log(value) for value in given] for given in (values, measured))
    mean_x, mean_y = statistics.fmean(x), statistics.fmean(y)
    scatter = sum((a - mean_x) ** 2 for a in x)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y)) / scatter
    left = sum((b - mean_y - slope * (a - mean_x)) ** 2 for a, b in zip(x, y))
    return slope, math.sqrt(left / (len(x) - 2) / scatter)


def make_rows(result: dict) -> list[dict]:
    """Give a row for each part at each value, as the CSV has it.

    'ours' is the step with CAD less the student's step and the teacher, round by round.
    """
    from rawkd_mm.analysis.benchmark import spread

    rows = []
    for axis, points in result['axes'].items():
        for value, point in points.items():
            parts = dict(point['seconds'])
            memory = dict(point['megabytes'])
            if 'distilled' in parts:
                three = zip(parts['distilled'], parts['student'], parts['teacher'])
                parts['ours'] = [whole - student - teacher for whole, student, teacher in three]
                memory['ours'] = memory['distilled'] - memory['student']
            for part, spent in parts.items():
                rows.append(
                    dict(
                        axis=axis,
                        value=int(value),
                        part=part,
                        rounds=point['rounds'],
                        ms=round(1e3 * statistics.median(spent), 4),
                        spread_ms=round(1e3 * spread(spent), 4),
                        megabytes=round(memory[part], 4) if part in memory else '',
                    )
                )
    return rows


def three_digits(number: float) -> str:
    return f'{number:.0f}' if abs(number) >= 100 else f'{number:.3g}'


def make_table(rows: list[dict]) -> list[str]:
    """Give the slopes as lines of Markdown, a row for each part of each axis."""
    lines = [
        '| what grows | from, to | part | ms, from | to | slope | last two | expected '
        '| MB, from | to | slope |',
        '|' + '---|' * 11,
    ]
    for axis, part in dict.fromkeys((row['axis'], row['part']) for row in rows):
        chosen = [row for row in rows if (row['axis'], row['part']) == (axis, part)]
        values = [row['value'] for row in chosen]
        expected = AXES[axis].expected.get(part, '')
        cells = [AXES[axis].label, f'{values[0]}, {values[-1]}', PARTS.get(part, part)]
        for column in ('ms', 'megabytes'):
            measured = [row[column] for row in chosen]
            if '' in measured:
                cells += [''] * 3
                continue
            cells += [three_digits(measured[0]), three_digits(measured[-1])]
            is_positive = min(measured) > 0
            whole = find_slope(values, measured) if is_positive else None
            cells.append(f'{whole[0]:.2f} ± {whole[1]:.2f}' if whole else '')
            if column == 'ms':
                last = math.log(values[-1] / values[-2])
                cells.append(
                    f'{math.log(measured[-1] / measured[-2]) / last:.2f}' if is_positive else ''
                )
                cells.append(str(expected))
        lines.append(f'| {" | ".join(cells)} |')
    return lines


def make_shares(rows: list[dict]) -> list[str]:
    """Give what part of a step is the distillation's, as lines of Markdown."""
    lines = [
        '| what grows | value | with CAD, ms | student | teacher | losses alone | rest | '
        'memory beside the student alone |',
        '|' + '---|' * 8,
    ]
    by_point = {}
    for row in rows:
        by_point.setdefault((row['axis'], row['value']), {})[row['part']] = row
    for (axis, value), parts in by_point.items():
        if 'distilled' not in parts:
            continue
        whole = parts['distilled']
        shares = [parts[part]['ms'] / whole['ms'] for part in ('student', 'teacher', 'losses')]
        cells = [AXES[axis].label, str(value), three_digits(whole['ms'])]
        cells += [f'{100 * share:.1f} %' for share in (*shares, 1 - sum(shares))]
        cells.append(f'{100 * (whole["megabytes"] / parts["student"]["megabytes"] - 1):+.1f} %')
        lines.append(f'| {" | ".join(cells)} |')
    return lines


def draw(rows: list[dict]):
    """Draw time and memory over each quantity, both axes logarithmic.

    Returns:
        matplotlib.figure.Figure: The figure.
    """
    import matplotlib.pyplot as plt

    axes = list(dict.fromkeys(row['axis'] for row in rows))
    figure, panels = plt.subplots(
        2, len(axes), figsize=(3.2 * len(axes), 6), squeeze=False, layout='constrained'
    )
    styles = dict(student='C0-o', teacher='C1-s', distilled='k-D', losses='C3-^')
    styles |= dict(zip(('LAD', 'CAD', *_CONNECTORS), ('C4-v', 'C6-^', 'C2-o', 'C5-s')))
    handles = {}
    for column, axis in zip(panels.T, axes):
        for panel, quantity, unit in zip(column, ('ms', 'megabytes'), ('ms of a core', 'MB')):
            for part, style in styles.items():
                points = [
                    (row['value'], row[quantity])
                    for row in rows
                    if (row['axis'], row['part']) == (axis, part) and row[quantity] != ''
                ]
                if points:
                    (line,) = panel.plot(*zip(*points), style, ms=4, lw=1.2)
                    handles.setdefault(PARTS.get(part, part), line)
            values = sorted({row['value'] for row in rows if row['axis'] == axis})
            panel.set(xscale='log', yscale='log', ylabel=unit, xlabel=AXES[axis].label)
            panel.set_xticks(values, [str(value) for value in values], fontsize=7)
            panel.minorticks_off()
            panel.grid(alpha=0.3)
    figure.legend(handles.values(), handles, loc='outside lower center', ncols=4, frameon=False)
    return figure


def summarise(file: Path, figure: Path | None) -> None:
    """Write CSV, tables and figure of a JSON beside it, and print the tables."""
    from rawkd_mm.analysis.figures import save
    from rawkd_mm.analysis.text_files import write_text

    rows = make_rows(json.loads(file.read_text()))
    with file.with_suffix('.csv').open('w', newline='') as stream:
        writer = csv.DictWriter(stream, FIELDS, lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)
    text = '\n'.join([*make_table(rows), '', *make_shares(rows)]) + '\n'
    write_text(file.with_name(f'{file.stem}_summary.md'), text)
    print(text)
    if figure:
        save(draw(rows), str(figure))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--out', type=Path, default=RESULTS, help=f'the JSON (default: {RESULTS})')
    parser.add_argument('--axes', nargs='+', choices=AXES, default=list(AXES), help='default: all')
    parser.add_argument('--rounds', type=int, help='of all values (default: 15; with --small 2)')
    parser.add_argument(
        '--small', action='store_true', help='the three smallest values of each axis, to try it'
    )
    parser.add_argument('--summary', action='store_true', help='measure nothing')
    parser.add_argument('--figure', type=Path, metavar='PREFIX', help='draw PREFIX.svg and .png')
    args = parser.parse_args()
    rounds = (2 if args.small else 15) if args.rounds is None else args.rounds
    if rounds < 1:
        parser.error(f'--rounds must be at least 1, got {rounds}')
    if args.summary and not args.out.is_file():
        parser.error(f'--summary: {args.out} is not a file; run it without --summary first')
    if not args.summary:
        measure(args.out, args.axes, rounds, 3 if args.small else None)
    is_default = args.out == RESULTS
    summarise(args.out, args.figure or (FIGURE if is_default else None))


if __name__ == '__main__':
    main()
