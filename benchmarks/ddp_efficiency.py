#!/usr/bin/env python
"""Calculate how much of the speed of N GPUs DDP keeps, from steps that were measured on one.

Nothing here is measured on several GPUs. What goes in: the step times and their spread that
benchmark_distill.py has written (JSON), and when each gradient is ready in a backward, which
--measure finds on this CPU. What is assumed:

- Every GPU has the batch of the measured step. The efficiency is the measured step over that with N.
- DDP puts gradients of float32 into buckets of 25 MiB (the first of 1 MiB) as they get ready. Buckets
  are reduced one after the other while the backward goes on, which they do not slow down.
- A bucket is reduced by one ring over all GPUs. All GPUs of a node share its link to the others.
- SyncBN communicates once in forward and once in backward for each layer. The model waits for it, and
  it waits for the buckets before it. This is a tree: the message is small.
- The teacher has no gradients and no SyncBN.
- Each iteration waits for the slowest GPU. The steps of the GPUs vary independently, normally, with the
  measured spread.

    python benchmarks/ddp_efficiency.py benchmarks/results/gpu_*_amp.json
    python benchmarks/ddp_efficiency.py benchmarks/results/gpu_*_amp.json --between 3.1
"""

import argparse
import csv
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

GRADIENTS = ROOT / 'benchmarks' / 'results' / 'ddp_gradients.json'
VARIANTS = {
    'student': 'student alone',
    'configured': 'with CAD',
    'channels_last+compile': 'with CAD, channels last, compiled',
}
FIRST_BUCKET, BUCKET = 2**20, 25 * 2**20  # bytes; DDP's defaults
FIELDS = (
    'config', 'variant', 'gpus', 'gradient_megabytes', 'buckets', 'sync_batch_norms', 'step_ms',
    'communication_ms', 'stragglers_ms', 'efficiency_without_stragglers', 'efficiency',
)  # fmt: skip


class Network(NamedTuple):
    """What GPUs communicate through.

    Attributes:
        per_node: GPUs in a node.
        inside: Bandwidth between two GPUs of a node, in one direction, bytes a second.
        between: Bandwidth from a node to the others, of all its GPUs together, bytes a second.
        inside_latency: Seconds of a hop between two GPUs of a node.
        between_latency: Seconds of a hop between two nodes.
        launch: Seconds that a collective takes beside its hops.
    """

    per_node: int = 8
    inside: float = 300e9
    between: float = 50e9
    inside_latency: float = 2e-6
    between_latency: float = 5e-6
    launch: float = 10e-6

    def nodes(self, gpus: int) -> int:
        """Give how many nodes so many GPUs are.

        Raises:
            ValueError: If they do not fill them.
        """
        if gpus > self.per_node and gpus % self.per_node:
            raise ValueError(
                f'{gpus} GPUs do not fill nodes of {self.per_node}: take a multiple of it, or give '
                'another --per-node'
            )
        return max(1, gpus // self.per_node)


class Gradient(NamedTuple):
    """The gradient of a parameter.

    Attributes:
        ready: When it is there, as a part of the backward: 0 at its begin, 1 at its end.
        size: Bytes.
        is_synced: Whether the backward of its SyncBN communicates then.
    """

    ready: float
    size: int
    is_synced: bool = False


class Step(NamedTuple):
    """A step as it takes on N GPUs, in seconds.

    Attributes:
        alone: As measured on one.
        communication: What communication adds to it.
        stragglers: What waiting for the slowest adds.
    """

    alone: float
    communication: float
    stragglers: float

    @property
    def efficiency(self) -> float:
        """The speed of a GPU, as a part of that alone."""
        return self.alone / sum(self)

    @property
    def efficiency_without_stragglers(self) -> float:
        """The same if all steps took equally long."""
        return self.alone / (self.alone + self.communication)


def ring_seconds(size: float, gpus: int, network: Network) -> float:
    """Give how long an all-reduce in a ring takes.

    Each GPU sends 2 (N - 1) chunks of 1/N of the message, one after the other, and each chunk passes
    2 (N - 1) links. Whichever takes longer counts: the way of a chunk, or the slowest link's chunks.
    That is exact if all links are alike, and else up to 5 % below a simulation chunk by chunk.

    Args:
        size: Bytes of the message.
        gpus: N.
        network: What it goes through.

    Returns:
        Seconds; 0 with one GPU.
    """
    if gpus == 1:
        return 0.0
    nodes, hops, chunk = network.nodes(gpus), 2 * (gpus - 1), size / gpus
    # a chunk goes round twice less two links, which are inside a node where there are any
    far = 2 * nodes - max(0, 3 - network.per_node) if nodes > 1 else 0
    inside = (chunk / network.inside, network.inside_latency)
    between = (chunk / network.between, network.between_latency)
    way = (hops - far) * sum(inside) + far * sum(between)
    used = [inside] * (hops > far) + [between] * (far > 0)
    return network.launch + max(way, *(hops * busy + latency for busy, latency in used))


def tree_seconds(gpus: int, network: Network) -> float:
    """Give how long an all-reduce of a few bytes takes: up a tree and down again."""
    if gpus == 1:
        return 0.0
    nodes = network.nodes(gpus)
    inside = math.ceil(math.log2(min(gpus, network.per_node)))
    between = math.ceil(math.log2(nodes))
    hops = inside * network.inside_latency + between * network.between_latency
    return network.launch + 2 * hops


def make_buckets(
    sizes: Sequence[int], first: int = FIRST_BUCKET, other: int = BUCKET
) -> list[list[int]]:
    """Put gradients into buckets, in their order: one is full once it has as many bytes as it holds.

    Args:
        sizes: Bytes of the gradients.
        first: Bytes of the first bucket.
        other: Bytes of the others.

    Returns:
        The numbers of the gradients in each bucket.
    """
    buckets, held, limit = [[]], 0, first
    for number, size in enumerate(sizes):
        if held >= limit:
            buckets.append([])
            held, limit = 0, other
        buckets[-1].append(number)
        held += size
    return buckets


def backward_seconds(
    backward: float, gradients: Sequence[Gradient], gpus: int, network: Network
) -> float:
    """Give how long a backward takes with its communication.

    Args:
        backward: Seconds of the backward alone.
        gradients: In the order in which they get ready.
        gpus: How many take part.
        network: What they communicate through.

    Returns:
        Seconds until the model is done and the last bucket is reduced.
    """
    if gpus == 1:
        return backward
    buckets = make_buckets([gradient.size for gradient in gradients])
    size_at_end = {
        bucket[-1]: sum(gradients[number].size for number in bucket) for bucket in buckets
    }
    late = free = 0.0  # by how much the model is late; when the network is free
    for number, gradient in enumerate(gradients):
        now = gradient.ready * backward + late
        if gradient.is_synced:
            end = max(now, free) + tree_seconds(gpus, network)
            late += end - now
            now = free = end
        if number in size_at_end:
            free = max(now, free) + ring_seconds(size_at_end[number], gpus, network)
    return max(backward + late, free)


def expected_maximum(count: int) -> float:
    """Give the expected largest of so many independent standard normal numbers."""
    import numpy as np

    x = np.linspace(-9, 9, 36001)
    density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    below = np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in x])
    return float(np.sum(x * count * density * below ** (count - 1)) * (x[1] - x[0]))


def scale_step(
    seconds: float,
    spread: float,
    backward: float,
    gradients: Sequence[Gradient],
    gpus: int,
    network: Network,
    collectives: int = 1,
) -> Step:
    """Calculate a step on several GPUs.

    Args:
        seconds: A step on one.
        spread: Half the range of the middle half of such steps, seconds.
        backward: How much of it is backward, seconds.
        gradients: In the order in which they get ready.
        gpus: How many.
        network: What they communicate through.
        collectives: How often the training communicates a few bytes beside gradients and SyncBN.

    Returns:
        The step and what is added to it.

    Raises:
        ValueError: If a time is negative, the backward is longer than the step, or the GPUs do not fill
            their nodes.
    """
    if not (0 < backward <= seconds and spread >= 0):
        raise ValueError(
            f'expected 0 < backward <= seconds and spread >= 0, got a backward of {backward} s in a '
            f'step of {seconds} s with a spread of {spread} s'
        )
    synced = sum(gradient.is_synced for gradient in gradients)
    communication = backward_seconds(backward, gradients, gpus, network) - backward
    communication += (synced + collectives) * tree_seconds(gpus, network)
    # a quarter of a normal distribution is above 0.6745 deviations
    stragglers = spread / 0.6745 * (expected_maximum(gpus) if gpus > 1 else 0.0)
    return Step(seconds, communication, stragglers)


def measure_gradients(config: str, size: Sequence[int]) -> dict:
    """Find on this CPU when each gradient of a distillation is ready, and what part the backward is.

    Args:
        config: Config file of a distillation.
        size: Height and width of the 2 images.

    Returns:
        ``backward``, the part of the student's own step; ``gradients``, a list for each parameter in
        the order in which its gradient gets ready: name, ready, bytes, whether it is SyncBN's.
    """
    import copy

    import torch
    from torch import nn

    from rawkd_mm.analysis.benchmark import Benchmark, BenchmarkOptions
    from rawkd_mm.training.build_model import build_model

    torch.set_num_threads(1)
    options = BenchmarkOptions(config, size=size, random_teacher=True, cpu_time=True)
    benchmark = Benchmark(options, torch.device('cpu'))
    student, distilled = (benchmark.build_variant(name) for name in ('student', 'configured'))
    student.step()
    forward, backward, update = (min(times) for times in zip(*(parts(student) for _ in range(3))))
    plain = build_model(copy.deepcopy(benchmark.cfg.model.architecture)).train()
    synced = {
        f'{name}.weight'
        for name, module in plain.named_modules()
        if isinstance(module, nn.SyncBatchNorm) and module.training
    }
    model = distilled.model
    parameters = dict(model.student.named_parameters())
    parameters |= dict(model.distiller.named_parameters(prefix='distiller'))
    parameters = {name: p for name, p in parameters.items() if p.requires_grad}
    distilled.step()
    ready = {}

    def note(name):
        def hook(parameter):
            ready[name] = time.process_time()

        return hook

    handles = [p.register_post_accumulate_grad_hook(note(name)) for name, p in parameters.items()]
    loss, _ = model.parse_losses(model(**distilled.data, mode='loss'))
    start = time.process_time()
    loss.backward()
    end = time.process_time()
    for handle in handles:
        handle.remove()
    missing = sorted(set(parameters) - set(ready))
    if missing:
        raise ValueError(f'{config}: no gradient arrives at {missing}')
    return dict(
        size=list(size),
        backward=round(backward / (forward + backward + update), 4),
        gradients=[
            [
                name,
                round((at - start) / (end - start), 5),
                4 * parameters[name].numel(),
                name in synced,
            ]
            for name, at in sorted(ready.items(), key=lambda item: item[1])
        ],
    )


def parts(variant) -> tuple[float, float, float]:
    """Make a step of the student alone; gives the seconds of forward, backward and the rest."""
    begin = time.process_time()
    losses = variant.model(**variant.data, mode='loss')
    loss, _ = variant.model.parse_losses(losses)
    middle = time.process_time()
    loss.backward()
    end = time.process_time()
    variant.optim_wrapper.step()
    variant.optim_wrapper.zero_grad()
    return middle - begin, end - middle, time.process_time() - end


def calculate(
    measured: dict, found: dict, gpus: Sequence[int], network: Network, collectives: int = 1
) -> list[dict]:
    """Calculate the rows of a benchmark.

    Args:
        measured: What benchmark_distill.py --json has written.
        found: What :func:`measure_gradients` gave for its config.
        gpus: Numbers of GPUs.
        network: What they communicate through.
        collectives: See :func:`scale_step`.

    Returns:
        A row of ``FIELDS`` for each variant and number of GPUs.
    """
    variants = {row['variant']: row for row in measured['variants']}
    backward = found['backward'] * variants['student']['seconds']
    rows = []
    for variant in VARIANTS:
        if variant not in variants:
            continue
        gradients = [
            Gradient(ready, size, is_synced)
            for name, ready, size, is_synced in found['gradients']
            if variant != 'student' or not name.startswith('distiller.')
        ]
        row = variants[variant]
        for count in gpus:
            step = scale_step(
                row['seconds'], row['spread'], backward, gradients, count, network, collectives
            )
            rows.append(
                dict(
                    config=Path(measured['config']).stem,
                    variant=variant,
                    gpus=count,
                    gradient_megabytes=round(sum(g.size for g in gradients) / 1e6, 2),
                    buckets=len(make_buckets([g.size for g in gradients])),
                    sync_batch_norms=sum(g.is_synced for g in gradients),
                    step_ms=round(1e3 * step.alone, 2),
                    communication_ms=round(1e3 * step.communication, 3),
                    stragglers_ms=round(1e3 * step.stragglers, 3),
                    efficiency_without_stragglers=round(step.efficiency_without_stragglers, 4),
                    efficiency=round(step.efficiency, 4),
                )
            )
    return rows


def make_table(rows: list[dict]) -> list[str]:
    """Give rows as lines of Markdown: a row for each variant, columns for each number of GPUs."""
    counts = sorted({row['gpus'] for row in rows})
    head = ['pair', 'step', 'ms', 'gradients, MB']
    for count in counts:
        head += [f'{count} GPUs: communication, ms', 'efficiency', 'with stragglers']
    lines = [f'| {" | ".join(head)} |', '|' + '---|' * len(head)]
    for config, variant in dict.fromkeys((row['config'], row['variant']) for row in rows):
        chosen = {
            row['gpus']: row for row in rows if (row['config'], row['variant']) == (config, variant)
        }
        first = chosen[counts[0]]
        pair = ' -> '.join(config.split('_')[2:4])
        cells = [pair, VARIANTS[variant], f'{first["step_ms"]:.1f}']
        cells.append(f'{first["gradient_megabytes"]:.1f}')
        for count in counts:
            row = chosen[count]
            cells.append(f'{row["communication_ms"]:.1f}')
            cells.append(f'{row["efficiency_without_stragglers"]:.3f}')
            cells.append(f'{row["efficiency"]:.3f}')
        lines.append(f'| {" | ".join(cells)} |')
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    network = Network()
    parser.add_argument(
        'measured', type=Path, nargs='+', metavar='JSON', help='of benchmark_distill.py'
    )
    parser.add_argument(
        '--gpus', type=int, nargs='+', default=[8, 64, 256], help='default: 8 64 256'
    )
    parser.add_argument('--per-node', type=int, default=network.per_node, help='GPUs (default: 8)')
    parser.add_argument(
        '--inside', type=float, default=network.inside / 1e9, metavar='GB/s',
        help='between two GPUs of a node, in one direction (default: 300)',
    )  # fmt: skip
    parser.add_argument(
        '--between', type=float, default=network.between / 1e9, metavar='GB/s',
        help='from a node to the others, all its GPUs together (default: 50, a link of 400 Gbit/s)',
    )  # fmt: skip
    parser.add_argument(
        '--inside-latency', type=float, default=network.inside_latency * 1e6, metavar='us',
        help='of a hop in a node (default: 2)',
    )  # fmt: skip
    parser.add_argument(
        '--between-latency', type=float, default=network.between_latency * 1e6, metavar='us',
        help='of a hop between nodes (default: 5)',
    )  # fmt: skip
    parser.add_argument(
        '--launch', type=float, default=network.launch * 1e6, metavar='us',
        help='what a collective takes beside its hops (default: 10)',
    )  # fmt: skip
    parser.add_argument(
        '--collectives', type=int, default=1, metavar='N',
        help='how often tools/train.py communicates a few bytes in an iteration (default: 1)',
    )  # fmt: skip
    parser.add_argument('--gradients', type=Path, default=GRADIENTS, help=f'default: {GRADIENTS}')
    parser.add_argument(
        '--measure', type=int, nargs=2, metavar=('H', 'W'),
        help='find the gradients of the configs first, with 2 images of this size on this CPU',
    )  # fmt: skip
    parser.add_argument('--csv', type=Path, metavar='FILE', help='write all numbers there')
    args = parser.parse_args()
    for name in ('per_node', 'inside', 'between'):
        if getattr(args, name) <= 0:
            parser.error(f'--{name.replace("_", "-")} must be above 0, got {getattr(args, name)}')
    for name in ('inside_latency', 'between_latency', 'launch', 'collectives'):
        if getattr(args, name) < 0:
            parser.error(
                f'--{name.replace("_", "-")} must not be below 0, got {getattr(args, name)}'
            )
    missing = [str(path) for path in args.measured if not path.is_file()]
    if missing:
        parser.error(f'not a file: {", ".join(missing)}; benchmark_distill.py --json writes them')
    measured = [json.loads(path.read_text()) for path in args.measured]
    found = json.loads(args.gradients.read_text()) if args.gradients.is_file() else {}
    if args.measure:
        from rawkd_mm.analysis.text_files import write_text

        for config in dict.fromkeys(result['config'] for result in measured):
            found[Path(config).stem] = measure_gradients(config, args.measure)
        write_text(args.gradients, json.dumps(found) + '\n')
    network = Network(
        args.per_node, args.inside * 1e9, args.between * 1e9,
        args.inside_latency * 1e-6, args.between_latency * 1e-6, args.launch * 1e-6,
    )  # fmt: skip
    rows = []
    for result in measured:
        name = Path(result['config']).stem
        if name not in found:
            parser.error(f'{args.gradients} has no gradients of {name}: add --measure 128 256')
        try:
            rows += calculate(result, found[name], args.gpus, network, args.collectives)
        except ValueError as error:
            parser.error(str(error))
    print('\n'.join(['Calculated, not measured.', '', *make_table(rows)]))
    if args.csv:
        with args.csv.open('w', newline='') as stream:
            writer = csv.DictWriter(stream, FIELDS, lineterminator='\n')
            writer.writeheader()
            writer.writerows(rows)


if __name__ == '__main__':
    main()
