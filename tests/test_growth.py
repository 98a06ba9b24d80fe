"""benchmarks/growth.py and benchmarks/ddp_efficiency.py: what they calculate, and that they run."""

import csv
import heapq
import importlib.util
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / 'benchmarks'
CONFIG = (
    'configs/quickstart/cad_bottleneck_pspnet-r18-w12_pspnet-r18-w4_1xb16-4k_digit-scenes-48x48.py'
)


def load(name):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def growth():
    path = list(sys.path)
    yield load('growth')
    sys.path[:] = path


@pytest.fixture(scope='module')
def ddp():
    path = list(sys.path)
    yield load('ddp_efficiency')
    sys.path[:] = path


def run(module, monkeypatch, *args):
    monkeypatch.setattr(sys, 'argv', [module.__name__, *map(str, args)])
    module.main()


# Growth.


def test_slope_equals_scipy(growth):
    stats = pytest.importorskip('scipy.stats')
    random = np.random.default_rng(0)
    values = [2, 3, 8, 20, 64]
    measured = [5 * v**1.3 * math.exp(e) for v, e in zip(values, random.normal(0, 0.1, 5))]
    expected = stats.linregress(np.log(values), np.log(measured))
    assert growth.find_slope(values, measured) == pytest.approx((expected.slope, expected.stderr))
    assert growth.find_slope(values, [7 * v**2 for v in values]) == pytest.approx((2, 0), abs=1e-9)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_growth_is_measured_and_goes_on(growth, tmp_path, monkeypatch, capsys, threads):
    """Two axes with their three smallest values; the second start adds a round."""
    out, figure = tmp_path / 'growth.json', tmp_path / 'figure'
    args = ('--small', '--axes', 'pairs', 'channels', '--out', out, '--figure', figure)
    monkeypatch.setattr(growth, 'SIDE', 48)
    run(growth, monkeypatch, *args, '--rounds', '1')
    first = json.loads(out.read_text())
    run(growth, monkeypatch, *args)
    result = json.loads(out.read_text())
    assert result['setting'] == first['setting'] and result['setting']['threads'] == 1
    for axis, points in first['axes'].items():
        assert list(points) == [str(value) for value in growth.AXES[axis].values[:3]]
        for value, point in points.items():
            again = result['axes'][axis][value]
            assert (point['rounds'], again['rounds']) == (1, 2)
            assert again['megabytes'] == point['megabytes']
            for part, spent in point['seconds'].items():
                assert len(spent) == 1 and again['seconds'][part][:1] == spent
                assert len(again['seconds'][part]) == 2 and min(again['seconds'][part]) > 0

    with (tmp_path / 'growth.csv').open(newline='') as file:
        rows = {(row['axis'], row['value'], row['part']): row for row in csv.DictReader(file)}
    point = result['axes']['pairs']['4']
    whole, student, teacher = (point['seconds'][k] for k in ('distilled', 'student', 'teacher'))
    ours = [1e3 * (w - s - t) for w, s, t in zip(whole, student, teacher)]
    assert float(rows['pairs', '4', 'ours']['ms']) == pytest.approx(sum(ours) / 2, abs=1e-3)
    assert float(rows['pairs', '4', 'student']['ms']) == pytest.approx(500 * sum(student), abs=1e-3)

    # memory is the same in each run: a map of the size of the features for a loss, two for a connector
    megabytes = {value: point['megabytes'] for value, point in result['axes']['channels'].items()}
    for value in ('32', '64', '128'):
        map_of = {'C': 4 * 4 * int(value) * 64 * 64 / 1e6, '128': 4 * 4 * 128 * 64 * 64 / 1e6}
        assert megabytes[value]['CAD'] == pytest.approx(map_of['C'], rel=0.02)
        assert megabytes[value]["connector, student's C"] == pytest.approx(
            sum(map_of.values()), rel=0.1
        )
    pairs = [point['megabytes']['losses'] for point in result['axes']['pairs'].values()]
    assert pairs[2] - pairs[1] == pytest.approx(2 * (pairs[1] - pairs[0]), rel=0.05)

    table = (tmp_path / 'growth_summary.md').read_text()
    assert table in capsys.readouterr().out
    assert '| channels C of a feature | 32, 128 | CAD |' in table
    assert '| pairs of features | 4 |' in table
    assert '1.00 ± 0.00 |' in [x for x in table.splitlines() if '| CAD |' in x][0]
    assert 'pairs of features' in figure.with_suffix('.svg').read_text()

    other = result | dict(setting={**result['setting'], 'device': 'another'})
    out.write_text(json.dumps(other))
    with pytest.raises(SystemExit, match='another.*their rounds do not belong together'):
        run(growth, monkeypatch, *args, '--rounds', '3')


def test_points_are_what_they_say(growth):
    wide = growth.make_benchmark('width', 3).cfg.model
    assert wide.architecture.backbone.base_channels == 12
    assert wide.teacher.backbone.base_channels == 36
    assert growth.make_benchmark('batch', 8).batch == 8
    assert growth.make_benchmark('pixels', 144 * 144).size == (144, 144)


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--rounds', '0'], '--rounds must be at least 1, got 0'),
        (['--summary'], 'is not a file; run it without --summary first'),
        (['--axes', 'depth'], "invalid choice: 'depth'"),
    ],
)
def test_wrong_arguments_of_growth(growth, tmp_path, monkeypatch, capsys, args, message):
    with pytest.raises(SystemExit):
        run(growth, monkeypatch, '--out', tmp_path / 'x.json', *args)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize('name', ['growth', 'ddp_efficiency'])
def test_help(request, name, monkeypatch, capsys):
    module = request.getfixturevalue(dict(growth='growth', ddp_efficiency='ddp')[name])
    with pytest.raises(SystemExit) as ended:
        run(module, monkeypatch, '--help')
    assert ended.value.code == 0 and module.__doc__.splitlines()[0] in capsys.readouterr().out


# DDP's efficiency.


def simulate_ring(size, gpus, network):
    """An all-reduce in a ring, chunk by chunk: seconds until the last GPU has the last chunk.

    Each GPU sends one chunk at a time to the next one, and sends on what it has received.
    """
    nodes = gpus // network.per_node if gpus > network.per_node else 1

    def link(gpu):
        is_far = nodes > 1 and (gpu + 1) % network.per_node == 0
        return (
            (network.between, network.between_latency)
            if is_far
            else (network.inside, network.inside_latency)
        )

    events = [
        (0.0, gpu, 0) for gpu in range(gpus)
    ]  # a GPU has a chunk to send, in which of the steps
    free = [0.0] * gpus
    last = 0.0
    while events:
        now, gpu, step = heapq.heappop(events)
        if step == 2 * (gpus - 1):
            last = max(last, now)
            continue
        bandwidth, latency = link(gpu)
        free[gpu] = max(now, free[gpu]) + size / gpus / bandwidth
        heapq.heappush(events, (free[gpu] + latency, (gpu + 1) % gpus, step + 1))
    return network.launch + last


@pytest.mark.parametrize('per_node', [1, 2, 4, 8])
@pytest.mark.parametrize('gpus', [2, 8, 64])
@pytest.mark.parametrize('size', [4, 1e6, 3e7])
def test_ring_of_equal_links_equals_a_simulation(ddp, per_node, gpus, size):
    network = ddp.Network(per_node, 5e9, 5e9, 2e-6, 9e-6, 1e-5)
    expected = simulate_ring(size, gpus, network)
    assert ddp.ring_seconds(size, gpus, network) == pytest.approx(expected, rel=1e-9)
    # and the textbook's form
    alike = network._replace(between_latency=2e-6)
    textbook = 1e-5 + 2 * (gpus - 1) * (2e-6 + size / gpus / 5e9)
    assert ddp.ring_seconds(size, gpus, alike) == pytest.approx(textbook, rel=1e-9)


@pytest.mark.parametrize('between', [1e9, 50e9, 900e9])
@pytest.mark.parametrize('gpus', [4, 16, 64])
@pytest.mark.parametrize('size', [4, 1e5, 1e6, 5e6, 3e7])
def test_ring_of_unequal_links_equals_a_simulation(ddp, between, gpus, size):
    for per_node in (1, 2, 4, 8):
        network = ddp.Network(per_node, between=between)
        expected = simulate_ring(size, gpus, network)
        assert 0.95 * expected < ddp.ring_seconds(size, gpus, network) < 1.0001 * expected


@pytest.mark.parametrize('seed', range(5))
def test_buckets_equal_those_of_torch(ddp, seed):
    random = np.random.default_rng(seed)
    sizes = [int(4 * n) for n in random.integers(1, 300_000, size=60)]
    tensors = [torch.empty(size // 4, device='meta') for size in sizes]
    limits = [2**16, 2**20]
    expected, _ = torch.distributed._compute_bucket_assignment_by_size(tensors, limits)
    assert ddp.make_buckets(sizes, *limits) == expected
    assert ddp.make_buckets([4]) == [[0]]


def random_gradients(ddp, seed, synced=0.0):
    random = np.random.default_rng(seed)
    ready = np.sort(random.uniform(0.01, 1, 60))
    sizes = random.integers(1, 3_000_000, 60) * 4
    return [
        ddp.Gradient(float(r), int(s), bool(random.uniform() < synced))
        for r, s in zip(ready, sizes)
    ]


@pytest.mark.parametrize('backward', [0.01, 0.1, 2.0])
@pytest.mark.parametrize('gpus', [8, 64, 256])
def test_overlap_equals_its_closed_form(ddp, backward, gpus):
    """Of buckets one after the other: the latest of (ready + all that is still to be sent then)."""
    network = ddp.Network()
    gradients = random_gradients(ddp, gpus)
    ready, cost = [], []
    for bucket in ddp.make_buckets([g.size for g in gradients]):
        ready.append(max(gradients[i].ready for i in bucket) * backward)
        cost.append(ddp.ring_seconds(sum(gradients[i].size for i in bucket), gpus, network))
    assert len(cost) > 5
    expected = max(r + sum(cost[i:]) for i, r in enumerate(ready))
    found = ddp.backward_seconds(backward, gradients, gpus, network)
    assert found == pytest.approx(max(expected, backward), rel=1e-12)
    assert ddp.backward_seconds(backward, gradients, 1, network) == backward


@pytest.mark.parametrize('seed', range(3))
def test_sync_batch_norm_equals_a_simulation(ddp, seed):
    """Two actors: the model computes and waits, the network does one thing after the other."""
    network, gpus, backward = ddp.Network(), 64, 0.05
    gradients = random_gradients(ddp, seed, synced=0.5)
    buckets = ddp.make_buckets([g.size for g in gradients])
    clock, jobs, network_free = 0.0, [], 0.0

    def send(seconds):  # when what is sent now will have arrived
        nonlocal network_free
        network_free = max([clock, network_free]) + seconds
        jobs.append(network_free)
        return network_free

    computed = 0.0
    for number, gradient in enumerate(gradients):
        clock += (gradient.ready - computed) * backward
        computed = gradient.ready
        if gradient.is_synced:
            clock = send(ddp.tree_seconds(gpus, network))
        for bucket in buckets:
            if bucket[-1] == number:
                send(ddp.ring_seconds(sum(gradients[i].size for i in bucket), gpus, network))
    clock += (1 - computed) * backward
    expected = max(clock, *jobs)
    assert any(g.is_synced for g in gradients)
    found = ddp.backward_seconds(backward, gradients, gpus, network)
    assert found == pytest.approx(expected, rel=1e-9)
    without = [g._replace(is_synced=False) for g in gradients]
    assert found > ddp.backward_seconds(backward, without, gpus, network)


def test_slowest_of_many(ddp):
    """Known moments of order statistics, and a simulation."""
    assert ddp.expected_maximum(2) == pytest.approx(1 / math.sqrt(math.pi), rel=1e-6)
    assert ddp.expected_maximum(3) == pytest.approx(1.5 / math.sqrt(math.pi), rel=1e-6)
    assert ddp.expected_maximum(8) == pytest.approx(1.42360, abs=1e-5)
    drawn = np.random.default_rng(0).standard_normal((20000, 256)).max(1)
    error = 4 * drawn.std() / math.sqrt(len(drawn))
    assert ddp.expected_maximum(256) == pytest.approx(drawn.mean(), abs=error)


def test_step_on_many_gpus(ddp):
    network = ddp.Network()
    gradients = random_gradients(ddp, 0, synced=0.5)
    synced = sum(g.is_synced for g in gradients)
    alone = ddp.scale_step(0.1, 0.002, 0.05, gradients, 1, network)
    assert alone.efficiency == 1
    step = ddp.scale_step(0.1, 0.002, 0.05, gradients, 64, network, collectives=2)
    late = ddp.backward_seconds(0.05, gradients, 64, network) - 0.05
    small = (synced + 2) * ddp.tree_seconds(64, network)
    # 3 hops up and down inside, 3 between nodes
    assert ddp.tree_seconds(64, network) == pytest.approx(10e-6 + 6 * 2e-6 + 6 * 5e-6)
    assert step.communication == pytest.approx(late + small)
    sigma = 0.002 / 0.6744897501960817
    assert step.stragglers == pytest.approx(sigma * ddp.expected_maximum(64), rel=1e-4)
    assert step.efficiency == pytest.approx(0.1 / (0.1 + step.communication + step.stragglers))
    assert step.efficiency_without_stragglers == pytest.approx(0.1 / (0.1 + step.communication))
    for wrong in (dict(seconds=0.01), dict(spread=-1), dict(backward=0)):
        with pytest.raises(ValueError, match='expected 0 < backward <= seconds'):
            ddp.scale_step(
                **{**dict(seconds=0.1, spread=0, backward=0.05), **wrong},
                gradients=gradients, gpus=8, network=network,
            )  # fmt: skip


@pytest.mark.parametrize('gpus', [8, 64, 256])
def test_a_teacher_makes_ddp_more_efficient(ddp, gpus):
    """It adds seconds and no gradients: the same communication is a smaller part of the step."""
    gradients = random_gradients(ddp, 1, synced=0.3)
    student, distilled = (
        ddp.scale_step(seconds, 0, 0.02, gradients, gpus, ddp.Network()) for seconds in (0.04, 0.06)
    )
    assert distilled.communication == pytest.approx(student.communication)
    assert student.efficiency < distilled.efficiency < 1


def test_gradients_and_table(ddp, tmp_path, monkeypatch, capsys, threads):
    """From a benchmark's JSON and a real backward to the table."""
    monkeypatch.chdir(BENCHMARKS.parent)
    measured = tmp_path / 'measured.json'
    variants = [
        dict(variant=variant, seconds=seconds, spread=1e-4)
        for variant, seconds in (('student', 0.02), ('mmrazor', 0.05), ('configured', 0.03))
    ]
    measured.write_text(json.dumps(dict(config=CONFIG, variants=variants)))
    gradients = tmp_path / 'gradients.json'
    with pytest.raises(SystemExit):
        run(ddp, monkeypatch, measured, '--gradients', gradients)
    assert 'has no gradients of cad_bottleneck' in capsys.readouterr().err
    run(ddp, monkeypatch, measured, '--gradients', gradients, '--measure', '48', '48',
        '--csv', tmp_path / 'ddp.csv')  # fmt: skip
    printed = capsys.readouterr().out
    (found,) = json.loads(gradients.read_text()).values()
    assert 0.2 < found['backward'] < 0.9

    from mmengine.registry import init_default_scope

    from rawkd_mm.registry import MODELS
    from rawkd_mm.training import load_config

    cfg = load_config(CONFIG)
    init_default_scope('mmseg')
    model = MODELS.build(cfg.model)
    names, ready, sizes, synced = zip(*found['gradients'])
    assert sum(sizes) == 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert list(ready) == sorted(ready) and 0 < ready[0] and ready[-1] <= 1
    # a backward begins with the losses' connector and ends with the first convolution
    assert [name.startswith('distiller.') for name in names[:8]].count(True) >= 1
    assert names[-1].startswith('backbone.stem.0')
    norms = [n for n, m in model.student.named_modules() if isinstance(m, torch.nn.SyncBatchNorm)]
    assert sum(synced) == len(norms) > 20
    assert {name for name, is_synced in zip(names, synced) if is_synced} == {
        f'{name}.weight' for name in norms
    }

    assert printed.startswith('Calculated, not measured.')
    assert '| pspnet-r18-w12 -> pspnet-r18-w4 | student alone | 20.0 |' in printed
    assert '| pspnet-r18-w12 -> pspnet-r18-w4 | with CAD | 30.0 |' in printed
    with (tmp_path / 'ddp.csv').open(newline='') as file:
        rows = list(csv.DictReader(file))
    assert [(row['variant'], row['gpus']) for row in rows] == [
        (variant, count) for variant in ('student', 'configured') for count in ('8', '64', '256')
    ]
    connector = 4 * sum(p.numel() for p in model.distiller.parameters()) / 1e6
    assert connector > 0
    sizes = [float(row['gradient_megabytes']) for row in rows]
    assert sizes[3] - sizes[0] == pytest.approx(connector, abs=0.011)
    for row in rows:
        total = sum(float(row[k]) for k in ('step_ms', 'communication_ms', 'stragglers_ms'))
        assert float(row['efficiency']) == pytest.approx(float(row['step_ms']) / total, abs=2e-3)


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['nowhere.json'], 'not a file: nowhere.json; benchmark_distill.py --json writes them'),
        (['FILE', '--gpus', '12'], '12 GPUs do not fill nodes of 8'),
        (['FILE', '--inside', '0'], '--inside must be above 0, got 0.0'),
        (['FILE', '--between-latency', '-1'], '--between-latency must not be below 0, got -1.0'),
    ],
)
def test_wrong_arguments_of_ddp(ddp, monkeypatch, capsys, args, message):
    file = BENCHMARKS / 'results' / 'gpu_pspnet-r101_pspnet-r18_512x1024_amp.json'
    with pytest.raises(SystemExit):
        run(ddp, monkeypatch, *(file if arg == 'FILE' else arg for arg in args))
    assert message in capsys.readouterr().err
