"""``teacher_speed='auto'``: the fastest settings that keep the gradient, and nothing else changes.

So that the fastest settings are known, a teacher sleeps in each of them as long as a test says. It
computes all the same.
"""

import copy
import gc
import json
import logging
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import (
    BOTTLENECK,
    bitwise_equal,
    distill,
    feature_distiller,
    images,
    pair,
    pspnet,
    retinanet,
    run,
    samples,
    total,
)
from mmengine.logging import MMLogger
from test_teacher_speed import DYNAMO, teacher_of
from torch import nn
from torch._dynamo.utils import counters

from rawkd_mm.algorithms import teacher_speed
from rawkd_mm.teachers import (
    SpeedOptions,
    SpeedSettings,
    list_candidates,
    search_speed,
    speed_search,
)

TESTS = Path(__file__).resolve().parents[1]
LOW = SpeedSettings('bf16', True)
LAST = SpeedSettings(None, True)
# Any change of the gradient will do; the training is so long that time does not matter. Graphs take
# longer than a test may.
ANY = dict(
    teacher_speed=dict(type='auto', tolerance=1.0, iterations=10**7),
    teacher_compile=False,
)
# bf16 with channels last is the fastest; float16 is left out, as it takes minutes on a CPU
COSTS = {
    (None, False): 0.05,
    (None, True): 0.04,
    ('bf16', False): 0.03,
    ('bf16', True): 0.01,
    ('fp16', False): 0.2,
    ('fp16', True): 0.2,
    ('fp32', False): 0.05,
    ('fp32', True): 0.02,
    'graphs': 0.01,
}


def slow(algorithm, costs=None, ran=None):
    """Let a teacher take a while in each of its settings; gives the settings in which it ran."""
    compute, costs, ran = (
        algorithm.frozen_teacher.compute,
        costs or COSTS,
        [] if ran is None else ran,
    )
    body = getattr(algorithm.teacher, 'backbone', algorithm.teacher)

    def sleep(*_):
        precision, channels_last, graphs = compute.settings
        ran.append(compute.settings)
        time.sleep(costs['graphs' if graphs else (precision, channels_last)])

    body.register_forward_pre_hook(sleep)
    return ran


def step(algorithm, amp=False, size=32):
    """Make the forward and backward of a step, with random numbers that are always the same."""
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(5)
    with torch.autocast('cpu', dtype=torch.bfloat16, enabled=amp):
        losses = algorithm.train()(images(size=size), samples(size=size), mode='loss')
    total(losses).backward()
    return losses


def settings(algorithm):
    return algorithm.frozen_teacher.compute.settings


def logged(function):
    """What a function logs."""
    lines, handler = [], logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel('INFO')
    try:
        function()
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    return '\n'.join(lines)


# What is chosen


def test_the_fastest_is_taken():
    algorithm = distill(**ANY)
    ran = slow(algorithm)
    log = logged(lambda: step(algorithm))
    assert settings(algorithm) == LOW
    assert 'taken: bf16, channels last' in log and 'fp16' in log and 'gradient changed by' in log
    assert len(log.splitlines()) < 12
    count = len(ran)
    step(algorithm)
    assert ran[count:] == [LOW]


def test_float32_only():
    algorithm = distill(
        teacher_speed=dict(type='auto', tolerance=0, iterations=10**7), teacher_compile=False
    )
    ran = slow(algorithm)
    step(algorithm)
    assert settings(algorithm) == LAST
    assert {found.precision for found in ran} == {None}


def test_a_changed_gradient_is_refused():
    algorithm = distill(
        teacher_speed=dict(type='auto', tolerance=1e-4, iterations=10**7), teacher_compile=False
    )
    slow(algorithm)
    log = logged(lambda: step(algorithm))
    assert settings(algorithm) == LAST
    assert log.count('refused: above 0.010%') == 2


@pytest.mark.skipif(torch.__version__.startswith('2.1.'), reason='float16 autocast on the CPU')
def test_infinite_features_are_refused(monkeypatch):
    monkeypatch.setattr(speed_search, '_HOPELESS', float('inf'))
    teacher = teacher_of(pspnet(8, 16))
    teacher.decode_head.bottleneck.bn.weight.data.mul_(1e7)
    algorithm = distill(teacher=teacher, **ANY)
    slow(algorithm, {**COSTS, ('fp16', False): 0.0, ('fp16', True): 0.0})
    log = logged(lambda: step(algorithm))
    assert settings(algorithm) == LOW
    assert log.count('refused: a feature is not finite') == 2


def test_what_is_little_faster_is_not_taken(monkeypatch):
    monkeypatch.setattr(speed_search, '_GAIN', 0.5)  # 2 % would be less than a busy machine's noise
    algorithm = distill(**ANY)
    slow(algorithm, {**dict.fromkeys(COSTS, 0.035), (None, False): 0.05})
    step(algorithm)
    assert settings(algorithm) == SpeedSettings()


def test_a_slow_precision_costs_no_time():
    algorithm = distill(**ANY)
    ran = slow(algorithm)
    begin = time.perf_counter()
    log = logged(lambda: step(algorithm))
    assert time.perf_counter() - begin < 20
    left_out = 'fp16  ' in log and 'left out: ' in log
    assert left_out != any(found.precision == 'fp16' for found in ran)


def test_a_short_training_measures_little():
    # 0.5 % of 100 x 0.05 s
    algorithm = distill(teacher_speed=dict(type='auto', iterations=100))
    ran = slow(algorithm)
    log = logged(lambda: step(algorithm))
    assert settings(algorithm) == SpeedSettings() and set(ran) == {SpeedSettings()}
    assert 'no time left' in log


def test_seconds_are_a_limit():
    algorithm = distill(teacher_speed=dict(type='auto', seconds=0.01), teacher_compile=False)
    ran = slow(algorithm)
    step(algorithm)
    assert set(ran) == {SpeedSettings()}


@pytest.mark.parametrize(
    ('given', 'expected'),
    [
        (dict(teacher_precision='fp32'), SpeedSettings('fp32', True)),
        (dict(teacher_precision='bf16'), LOW),
        (dict(teacher_channels_last=False), SpeedSettings('bf16', False)),
        (dict(teacher_precision='bf16', teacher_channels_last=False), SpeedSettings('bf16', False)),
        (dict(teacher_compile=DYNAMO), SpeedSettings('bf16', True, DYNAMO)),
    ],
)
def test_what_is_given_wins(given, expected):
    algorithm = distill(**{**ANY, **given})
    ran = slow(algorithm)
    counters.clear()
    step(algorithm)
    has_graphs = counters['stats']['unique_graphs'] > 0
    assert settings(algorithm) == expected
    if 'teacher_precision' in given:
        allowed = {given['teacher_precision'], 'fp32' if expected.precision == 'bf16' else None}
        assert {found.precision for found in ran} <= allowed
    assert has_graphs == ('teacher_compile' in given)


def test_mixed_precision_of_the_student():
    """The teacher as it comes is in mixed precision too, and is no reason to refuse the others."""
    algorithm = distill(
        teacher_speed=dict(type='auto', tolerance=1e-6, iterations=10**7), teacher_compile=False
    )
    slow(algorithm)
    log = logged(lambda: step(algorithm, amp=True))
    assert settings(algorithm) in (LOW, LAST)
    assert 'as it comes' in log and 'gradient changed by' in log.splitlines()[1]


# What it leaves alone


MASKED = dict(
    loss=dict(type='MGDLoss'),
    student_connector=dict(
        type='MGDConnector', student_channels='auto', teacher_channels='auto', lambda_mgd=0.5
    ),
    teacher_connector=dict(
        type='ConvModuleConnector', in_channel='auto', out_channel='auto', norm_cfg=dict(type='BN')
    ),
)


@pytest.mark.parametrize('amp', [False, True])
def test_the_step_is_that_of_the_settings_that_were_given(amp):
    teacher = teacher_of(pspnet(8, 16))
    state = copy.deepcopy(teacher.state_dict())
    found = []
    for kwargs in (ANY, dict(teacher_precision='bf16', teacher_channels_last=True)):
        algorithm = distill(
            distiller=feature_distiller(**MASKED), teacher=copy.deepcopy(teacher), **kwargs
        )
        if kwargs is ANY:
            slow(algorithm)
        losses = step(algorithm, amp)
        assert settings(algorithm) == LOW
        drawn = torch.rand(3), np.random.rand(3).tolist(), random.random()
        weights = {k: v for k, v in algorithm.state_dict().items() if 'teacher_speed' not in k}
        gradients = {k: p.grad for k, p in algorithm.named_parameters() if p.grad is not None}
        found.append((losses, drawn, weights, gradients, algorithm))
    (losses, drawn, weights, gradients, auto), (expected, *rest) = found
    assert bitwise_equal(losses, expected)
    assert torch.equal(drawn[0], rest[0][0]) and drawn[1:] == rest[0][1:]
    assert bitwise_equal(weights, rest[1])
    assert bitwise_equal(gradients, rest[2])
    after = auto.teacher.state_dict()
    for name, _ in auto.teacher.named_buffers():
        assert name not in state or torch.equal(after[name], state[name]), name
    assert not any(module.training for module in auto.teacher.modules())


def test_all_settings_see_the_same_random_numbers():
    """Else a loss that draws would change with them, and all would be refused."""
    algorithm = distill(
        distiller=feature_distiller(**MASKED),
        teacher_speed=dict(type='auto', tolerance=0, iterations=10**7),
        teacher_compile=False,
    )
    slow(algorithm)
    step(algorithm)
    assert settings(algorithm) == LAST


def test_the_memory_comes_back():
    algorithm = distill(teacher=pspnet(8, 24), **ANY)
    slow(algorithm)
    shape = algorithm.teacher.decode_head.bottleneck.conv.weight.shape
    step(algorithm)
    assert settings(algorithm) == LOW
    gc.collect()
    alive = [o.dtype for o in gc.get_objects() if isinstance(o, torch.Tensor) and o.shape == shape]
    assert set(alive) == {torch.bfloat16}


def test_weights_that_were_tried_in_low_precision_come_back():
    algorithm = distill(
        teacher_speed=dict(type='auto', tolerance=1e-5, iterations=10**7), teacher_compile=False
    )
    before = copy.deepcopy(algorithm.teacher.state_dict())
    slow(algorithm, {**COSTS, (None, True): 0.2})
    step(algorithm)
    assert settings(algorithm) == SpeedSettings()
    after = algorithm.teacher.state_dict()
    assert bitwise_equal(before, after)
    assert all(value.is_contiguous() for value in after.values())


def test_it_waits_for_the_training():
    algorithm = distill(**ANY)
    ran = slow(algorithm)
    with torch.no_grad():
        algorithm.train()(images(), samples(), mode='loss')
    algorithm.eval()(images(), samples(), mode='loss')
    assert len(ran) == 2 and algorithm.frozen_teacher.compute.is_open
    step(algorithm)
    assert not algorithm.frozen_teacher.compute.is_open


def test_copies_follow():
    """EMA copies the algorithm before the first step and shares the teacher."""
    algorithm = distill(**ANY)
    twin = copy.deepcopy(algorithm)
    slow(algorithm)
    step(algorithm)
    assert settings(twin) == LOW
    assert bitwise_equal(step(twin), step(algorithm))


# Where the features come from


@pytest.mark.parametrize('size', [32, 64])
def test_mmrazors_recorders_of_modules(size):
    recorder = dict(x=dict(type='ModuleOutputs', source=BOTTLENECK))
    mapping = {
        key: dict(from_student=student, recorder='x')
        for key, student in dict(preds_S=True, preds_T=False).items()
    }
    config = dict(
        type='ConfigurableDistiller',
        student_recorders=recorder,
        teacher_recorders=recorder,
        distill_losses=dict(loss_x=dict(type='ChannelWiseDivergence')),
        loss_forward_mappings=dict(loss_x=mapping),
    )
    found = []
    for kwargs in (ANY, dict(teacher_precision='bf16', teacher_channels_last=True)):
        algorithm = distill(teacher=pspnet(8, 8), distiller=config, **kwargs)
        slow(algorithm)
        found.append(step(algorithm, size=size))
        assert settings(algorithm) == LOW
    assert bitwise_equal(*found)


def test_what_mmrazor_records_of_methods_is_refused():
    method = dict(x=dict(type='MethodOutputs', source='mmseg.models.PSPHead.cls_seg'))
    with pytest.raises(ValueError, match='teacher_speed needs recorders of the outputs'):
        distill(
            teacher_speed='auto',
            distiller=feature_distiller(student_recorders=method, teacher_recorders=method),
        )


def test_student_without_its_own_losses():
    algorithm = distill(calculate_student_loss=False, **ANY)
    slow(algorithm)
    step(algorithm)
    assert settings(algorithm) == LOW


def build_small_net(width=8):
    """A module of one's own, which the next test names as a factory."""
    return nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, 16, 3, 2, 1))


def test_a_teacher_of_another_library():
    teacher = dict(
        type='TorchTeacher',
        factory=f'{__name__}.build_small_net',
        images=dict(mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3)),
    )
    algorithm = distill(pair(BOTTLENECK, 'features[0]'), teacher=teacher, **ANY)
    slow(algorithm)
    step(algorithm)
    assert settings(algorithm) == LOW


def test_a_vision_transformer_of_timm():
    pytest.importorskip('timm')
    teacher = dict(
        type='TimmTeacher',
        model='vit_tiny_patch16_224',
        kwargs=dict(patch_size=8, embed_dim=16, depth=3, num_heads=2),
    )
    algorithm = distill(pair(BOTTLENECK, 'features[0]'), teacher=teacher, **ANY)
    slow(algorithm)
    for size in (32, 40, 64):
        assert all(v.isfinite().all() for v in step(algorithm, size=size).values())
    assert settings(algorithm) == LOW


@pytest.mark.parametrize('kind', ['DCN', 'DCNv2'])
def test_detectors_with_mmcvs_operators_and_images_of_any_size(mmdet, kind):
    teacher = retinanet()
    teacher['backbone'].update(
        depth=50,
        dcn=dict(type=kind, deform_groups=1, fallback_on_stride=False),
        stage_with_dcn=(False, True, False, False),
    )
    teacher['neck']['in_channels'] = [32, 64, 128, 256]
    model = teacher_of(teacher)
    paths = [pair(f'neck.fpn_convs.{i}.conv') for i in range(2)]
    auto = distill(
        *paths,
        student=retinanet(),
        teacher=copy.deepcopy(model),
        calculate_student_loss=False,
        teacher_speed=dict(type='auto', tolerance=1.0, iterations=10**7),
    )
    slow(auto)
    given = dict(teacher_precision='bf16', teacher_channels_last=True)
    fixed = distill(
        *paths, student=retinanet(), teacher=model, calculate_student_loss=False, **given
    )
    for size in (64, 96, 128):
        found, expected = (step(algorithm, size=size) for algorithm in (auto, fixed))
        assert bitwise_equal(found, expected)
    # images of any size would need graphs of their own
    assert settings(auto) == LOW


# Graphs


def search(costs, iterations, **kwargs):
    """Search with graphs that need no compiler; gives the result and the algorithm."""
    algorithm = distill(teacher=teacher_of(pspnet(8, 16))).train()
    slow(algorithm, costs)
    result = search_speed(
        algorithm.frozen_teacher,
        (images(), samples()),
        list_candidates(None, None, 0.0),
        lambda features: [value.clone() for value in features.values()],
        SpeedOptions(tolerance=0.0, iterations=iterations),
        [SpeedSettings(None, True, DYNAMO), SpeedSettings('bf16', True, DYNAMO)],
    )
    return result, algorithm


GRAPHS = SpeedSettings(None, True, DYNAMO)


def test_graphs_are_taken_if_they_are_faster_and_the_training_is_long():
    counters.clear()
    result, algorithm = search(COSTS, 10**7)
    assert result.chosen == settings(algorithm) == GRAPHS
    assert counters['stats']['unique_graphs'] > 0
    plain = distill(teacher=teacher_of(pspnet(8, 16))).train()
    for size in (32, 64):
        (expected,), (found,) = (
            x.frozen_teacher.extract_features(images(size=size)).values()
            for x in (plain, algorithm)
        )
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_graphs_that_are_no_faster_leave_nothing():
    result, algorithm = search({**COSTS, 'graphs': 0.1}, 10**7)
    assert result.chosen == settings(algorithm) == LAST
    assert len(result.rows) == 3
    assert not any('forward' in vars(module) for module in algorithm.teacher.modules())
    counters.clear()
    algorithm.frozen_teacher.extract_features(images())
    assert counters['stats']['unique_graphs'] == 0


@pytest.mark.parametrize('iterations', [None, 4000])
def test_graphs_are_not_made_for_short_trainings(iterations):
    counters.clear()
    result, algorithm = search(COSTS, iterations)
    assert result.rows[-1].note.startswith('not tried: ')
    assert counters['stats']['unique_graphs'] == 0


def test_settings_that_fail_are_left_out():
    algorithm = distill(teacher=teacher_of(pspnet(8, 16)))

    def fail(module, args):
        if settings(algorithm).precision == 'bf16':
            raise RuntimeError('not enough memory\nand more')

    algorithm.teacher.backbone.register_forward_pre_hook(fail)
    algorithm.frozen_teacher.compute.is_open = True
    result = search_speed(
        algorithm.frozen_teacher,
        (images(), samples()),
        [SpeedSettings(), LOW],
        lambda features: [value.clone() for value in features.values()],
        SpeedOptions(),
    )
    assert result.rows[1].note == 'failed: RuntimeError: not enough memory'
    assert result.chosen == settings(algorithm) == SpeedSettings()


# Trainings


def train(algorithm, work_dir, iters=4, **kwargs):
    return run(algorithm, work_dir, iters=iters, save_every=2, **kwargs)


def without_dropout():
    student = pspnet()
    for head in ('decode_head', 'auxiliary_head'):
        student[head]['dropout_ratio'] = 0.0
    return student


def checkpoint(folder, iters):
    return torch.load(Path(folder) / f'iter_{iters}.pth', weights_only=False)


@pytest.mark.parametrize('hooks', [(), (dict(type='EMAHook'),)], ids=['plain', 'EMA'])
def test_a_resumed_training_keeps_the_choice(tmp_path, hooks):
    def make(costs=COSTS):
        algorithm = distill(student=without_dropout(), **ANY)
        return algorithm, slow(algorithm, costs)

    algorithm, _ = make()
    train(algorithm, tmp_path / 'whole', hooks=hooks)
    algorithm, _ = make()
    train(algorithm, tmp_path / 'parts', iters=2, hooks=hooks)
    written = (tmp_path / 'parts' / 'teacher_speed.json').read_text()
    # now something else would be the fastest
    algorithm, ran = make({**COSTS, (None, False): 0.0})
    train(algorithm, tmp_path / 'parts', resume=True, hooks=hooks)
    assert settings(algorithm) == LOW and set(ran) == {LOW}
    assert (tmp_path / 'parts' / 'teacher_speed.json').read_text() == written
    found, expected = (checkpoint(tmp_path / x, 4) for x in ('parts', 'whole'))
    assert bitwise_equal(found['state_dict'], expected['state_dict'])
    if hooks:
        assert bitwise_equal(found['ema_state_dict'], expected['ema_state_dict'])


def test_the_table_is_beside_the_config(tmp_path):
    algorithm = distill(**ANY)
    slow(algorithm)
    train(algorithm, tmp_path, iters=1)
    result = json.loads((tmp_path / 'teacher_speed.json').read_text())
    assert list(tmp_path.glob('*.py')) or list(tmp_path.glob('*/vis_data/config.py'))
    assert result['chosen'] == dict(precision='bf16', channels_last=True, graphs=False)
    assert result['images'] == [2, 3, 32, 32] and result['device']
    rows = {(row['precision'], row['channels_last']): row for row in result['settings']}
    for key in [(None, False), (None, True), ('bf16', True)]:
        assert COSTS[key] < rows[key]['seconds'] < COSTS[key] + 0.1
    assert rows[None, False]['change'] is None
    assert 0 < rows[None, True]['change'] < 1e-4 < rows['bf16', True]['change'] < 0.1


def test_a_training_that_begins_with_weights_measures(tmp_path):
    algorithm = distill(**ANY)
    slow(algorithm)
    train(algorithm, tmp_path / 'first', iters=2)
    algorithm = distill(**ANY)
    slow(algorithm, {**COSTS, ('bf16', False): 0.0})
    train(algorithm, tmp_path / 'second', iters=2, load_from=str(tmp_path / 'first' / 'iter_2.pth'))
    assert settings(algorithm) == SpeedSettings('bf16', False)


def test_gradient_accumulation(tmp_path):
    algorithm = distill(**ANY)
    ran = slow(algorithm)
    wrapper = dict(
        type='OptimWrapper',
        optimizer=dict(type='SGD', lr=0.05),
        accumulative_counts=2,
    )
    train(algorithm, tmp_path, optim_wrapper=wrapper)
    assert settings(algorithm) == LOW
    assert ran[-4:] == [LOW] * 4 and len(list(tmp_path.glob('*.json'))) == 1


def test_a_plain_loop():
    """Without a Runner: the choice is in the state dict."""
    algorithm = distill(**ANY)
    slow(algorithm)
    optimizer = torch.optim.SGD(algorithm.parameters(), lr=0.01)
    step(algorithm)
    optimizer.step()
    state = algorithm.state_dict()
    other = distill(**ANY)
    ran = slow(other, {**COSTS, (None, False): 0.0})
    other.load_state_dict(state)
    log = logged(lambda: step(other))
    assert settings(other) == LOW and ran == [LOW]
    assert 'teacher_speed: bf16, channels last, as before' in log


def test_checkpoints_with_and_without_a_choice():
    plain, auto = distill(), distill(**ANY)
    slow(auto)
    step(auto)
    assert list(plain.load_state_dict(auto.state_dict())) == [[], []]
    fresh = distill(**ANY)
    assert list(fresh.load_state_dict(plain.state_dict())) == [[], []]
    assert list(fresh.load_state_dict(plain.student.state_dict())) == [[], []]
    assert fresh.frozen_teacher.compute.is_open
    slow(fresh)
    step(fresh)
    assert settings(fresh) == LOW


def test_another_device_is_told(monkeypatch):
    algorithm = distill(**ANY)
    slow(algorithm)
    step(algorithm)
    other = distill(**ANY)
    other.load_state_dict(algorithm.state_dict())
    monkeypatch.setattr(teacher_speed, 'device_name', lambda device: 'another GPU')
    log = logged(lambda: step(other))
    assert 'were measured on another device than another GPU' in log and settings(other) == LOW


def test_processes_agree(run_processes):
    first, second = run_processes(Path(__file__).parent / 'speed_ranks.py', 2)
    assert first['settings'] == second['settings'] == LOW
    assert first['ran'] > 5 and second['ran'] == 3
    assert first['file'] and 'rank 1 has device 1' in first['log']
    assert torch.equal(first['state'], second['state'])


@pytest.mark.parametrize(
    ('value', 'error', 'message'),
    [
        ('fast', TypeError, "teacher_speed must be 'auto', a dict .*got 'fast'"),
        (dict(type='auto', speed=1), TypeError, 'teacher_speed must be .*got'),
        (dict(type='auto', tolerance=-1), ValueError, 'tolerance must be at least 0, got -1'),
        (dict(type='auto', tolerance=float('nan')), ValueError, 'tolerance must be at least 0'),
        (dict(type='auto', seconds=0), ValueError, 'seconds must be above 0, got 0'),
        (dict(type='auto', iterations=1.5), ValueError, 'iterations must be an integer'),
    ],
)
def test_wrong_options(value, error, message):
    with pytest.raises(error, match=message):
        distill(teacher_speed=value)


def test_options():
    assert SpeedOptions.parse('auto') == SpeedOptions.parse(dict(type='auto')) == SpeedOptions()
    assert SpeedOptions.parse(dict(type='auto', tolerance=0)).tolerance == 0
    assert SpeedOptions.parse(None) is None


NO_BF16 = """
import torch
from helpers import distill, images, pspnet, samples
algorithm = distill(
    teacher=pspnet(32, 64), teacher_compile=False,
    teacher_speed=dict(type='auto', tolerance=1.0, iterations=10**7))
algorithm.train()(images(size=160), samples(size=160), mode='loss')
print('chosen', algorithm.frozen_teacher.compute.settings.precision)
"""


def test_a_processor_without_bfloat16():
    """oneDNN computes as on such a processor; the teacher itself does not sleep here."""
    paths = os.pathsep.join(map(str, (TESTS.parent, TESTS)))
    environment = dict(os.environ, PYTHONPATH=paths, OMP_NUM_THREADS='1')
    done = subprocess.run(
        [sys.executable, '-c', NO_BF16],
        env={**environment, 'ONEDNN_MAX_CPU_ISA': 'AVX512_CORE'},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert 'chosen None' in done.stdout
