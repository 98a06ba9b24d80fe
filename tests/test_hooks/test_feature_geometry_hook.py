"""What the hook logs, when, and where to."""

import pytest
import torch
from helpers import GeometrySpy, build, distill, feature_distiller, pair, pspnet, run, scalars
from mmengine.registry import HOOKS

from rawkd_mm import functional
from rawkd_mm.hooks import FeatureGeometryHook

NAMES = ('n', 'm', 'mn_over_N', 'cos_theta', 'magnitude_term', 'angular_term')
CAD_BOTTLENECK = 'loss_cad_decode_head.bottleneck'


def hook(interval):
    return dict(type='FeatureGeometryHook', interval=interval)


def geometry(lines):
    """Step -> what was logged of the geometry."""
    return {
        line['step']: {k: v for k, v in line.items() if k.startswith('geometry/')}
        for line in lines
        if any(k.startswith('geometry/') for k in line)
    }


def assert_logged(lines, values, steps, name=CAD_BOTTLENECK):
    logged = geometry(lines)
    assert list(logged) == steps
    for step in steps:
        expected = {f'geometry/{name}/{key}': value for key, value in values[step - 1].items()}
        assert set(expected) == {f'geometry/{name}/{key}' for key in NAMES}
        assert logged[step] == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    ('interval', 'steps'), [(1, [1, 2, 3, 4, 5]), (2, [1, 2, 4]), (5, [1, 5]), (50, [1])]
)
def test_logs_independently_computed_values_at_the_interval(tmp_path, interval, steps):
    algorithm = distill()
    spy = GeometrySpy(algorithm)
    run(algorithm, tmp_path, iters=5, hooks=[spy, hook(interval)])
    assert_logged(scalars(tmp_path), spy.values, steps)


def test_works_with_any_other_loss(tmp_path):
    distiller = feature_distiller(loss=dict(type='ChannelWiseDivergence'))
    algorithm = distill(distiller=distiller)
    spy = GeometrySpy(algorithm)
    run(algorithm, tmp_path, iters=2, hooks=[spy, hook(2)])
    name = 'loss_channelwisedivergence_decode_head.bottleneck'
    assert_logged(scalars(tmp_path), spy.values, [1, 2], name)


def test_every_pair_is_logged_under_its_name(tmp_path):
    algorithm = distill(pair(), pair('backbone[3]', name='last'))
    run(algorithm, tmp_path, iters=1, hooks=[hook(1)])
    (logged,) = geometry(scalars(tmp_path)).values()
    assert set(logged) == {
        f'geometry/{name}/{key}' for name in (CAD_BOTTLENECK, 'loss_last') for key in NAMES
    }


def test_nothing_is_computed_between(tmp_path, monkeypatch):
    algorithm, calls = distill(), []
    decompose = functional.decompose

    def counting(student, teacher):
        calls.append(1)
        return decompose(student, teacher)

    monkeypatch.setattr(functional, 'decompose', counting)
    run(algorithm, tmp_path, iters=7, hooks=[hook(3)])
    assert len(calls) == 3  # iterations 1, 3 and 6


def test_training_is_the_same_with_and_without(tmp_path):
    states = []
    for hooks in ([], [hook(1)]):
        algorithm = distill()
        run(algorithm, tmp_path / str(len(hooks)), iters=2, hooks=hooks)
        states.append(algorithm.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_stops_with_the_distillation(tmp_path):
    hooks = [dict(type='mmrazor.StopDistillHook', stop_epoch=1), hook(1)]
    run(distill(), tmp_path, epochs=2, length=4, hooks=hooks)
    assert list(geometry(scalars(tmp_path))) == [1, 2]


def test_tensorboard_has_it_too(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    algorithm = distill()
    spy = GeometrySpy(algorithm)
    backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
    run(
        algorithm,
        tmp_path,
        iters=4,
        hooks=[spy, hook(2)],
        visualizer=dict(type='Visualizer', vis_backends=backends),
    )
    (path,) = tmp_path.glob('*/vis_data/events*')
    events = EventAccumulator(str(path))
    events.Reload()
    entries = events.Scalars(f'geometry/{CAD_BOTTLENECK}/cos_theta')
    assert [entry.step for entry in entries] == [1, 2, 4]
    expected = [spy.values[entry.step - 1]['cos_theta'] for entry in entries]
    assert [entry.value for entry in entries] == pytest.approx(expected, rel=1e-4)


def test_average_over_processes(two_processes):
    mine, other = (found['geometry']['own'] for found in two_processes)
    assert mine != other
    mean = [{key: (a[key] + b[key]) / 2 for key in a} for a, b in zip(mine, other)]
    assert_logged(two_processes[0]['geometry']['logged'], mean, [1, 2])


@pytest.mark.parametrize('interval', [0, -1])
def test_interval_must_be_positive(interval):
    with pytest.raises(ValueError, match=f'at least 1 iteration, got {interval}'):
        FeatureGeometryHook(interval)


def test_is_registered():
    assert isinstance(HOOKS.build(hook(3)), FeatureGeometryHook)


LOGITS = dict(x=dict(type='ModuleOutputs', source='decode_head.conv_seg'))


@pytest.mark.parametrize('plain', [True, False])
def test_model_without_a_feature_distiller_is_an_error(tmp_path, plain):
    if plain:
        model, message = build(pspnet()), 'got EncoderDecoder with NoneType'
    else:
        distiller = dict(
            type='ConfigurableDistiller', student_recorders=LOGITS, teacher_recorders=LOGITS
        )
        model = distill(distiller=distiller)
        message = 'got FrozenTeacherDistill with ConfigurableDistiller'
    with pytest.raises(TypeError, match=f'needs a distillation with a FeatureDistiller, {message}'):
        run(model, tmp_path, iters=1, hooks=[hook(1)])
