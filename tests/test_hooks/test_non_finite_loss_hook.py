"""A training stops when its loss is no number, and says whose feature it was."""

import re
from contextlib import contextmanager

import pytest
import torch
from helpers import distill, feature_distiller, images, pair, run, samples
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS

from rawkd_mm.hooks import NonFiniteLossError, NonFiniteLossHook

SGD = dict(type='SGD', lr=0.01)
BACKBONE = 'backbone.layer1.0.conv1.weight'


class Poison(Hook):
    """Overwrites a weight before some iterations, counted from 1, and mends it after them."""

    priority = 'VERY_HIGH'

    def __init__(self, parameter, value, iterations):
        self.parameter, self.value, self.iterations = parameter, value, iterations

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 in self.iterations:
            self.before = self.parameter.detach().clone()
            self.parameter.data.fill_(self.value)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 in self.iterations:
            self.parameter.data.copy_(self.before)


def train(tmp_path, algorithm, *hooks, patience=10, **kwargs):
    return run(
        algorithm,
        tmp_path,
        hooks=[*hooks, dict(type='NonFiniteLossHook', patience=patience)],
        save_every=1,
        **kwargs,
    )


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
@pytest.mark.parametrize('role', ['student', 'teacher'])
def test_stops_with_iteration_pair_and_whose_feature_it_is(tmp_path, role, value):
    algorithm = distill(pair(), pair('backbone[3]'))
    model = getattr(algorithm, role)
    poison = Poison(model.get_parameter(BACKBONE), value, [3])
    with pytest.raises(NonFiniteLossError) as error:
        train(tmp_path, algorithm, poison)
    message = str(error.value)
    other = dict(student='teacher', teacher='student')[role]
    for name in ('loss_cad_decode_head.bottleneck', 'loss_cad_backbone.3'):
        pattern = rf"pair {name}: \d+ of \d+ values of the {role}'s feature are NaN or infinite[;.]"
        assert re.search(pattern, message), message
        assert f'distill.{name} is nan' in message
    assert message.startswith('iteration 3: the loss is not finite.')
    assert f"the {other}'s" not in message
    saved = sorted(path.name for path in tmp_path.glob('iter_*.pth'))
    assert saved == ['iter_1.pth', 'iter_2.pth'], 'what is not finite is not saved'


def test_loss_that_overflows_of_finite_features(tmp_path):
    naive = dict(type='NaiveFeatureLoss', loss_weight=3e38)
    algorithm = distill(distiller=feature_distiller(loss=naive))
    for parameter in algorithm.teacher.parameters():
        parameter.data.mul_(3)
    with pytest.raises(NonFiniteLossError, match='iteration 1: .*both features are finite'):
        train(tmp_path, algorithm)


def test_students_own_loss(tmp_path):
    algorithm = distill()
    # behind the feature that is compared
    poison = Poison(algorithm.student.decode_head.conv_seg.weight, float('nan'), [2])
    with pytest.raises(NonFiniteLossError) as error:
        train(tmp_path, algorithm, poison)
    assert 'iteration 2: ' in str(error.value)
    assert 'student.decode.loss_ce is nan' in str(error.value)
    assert 'pair' not in str(error.value)


def test_student_without_a_distillation(tmp_path):
    algorithm = distill()
    student = algorithm.student
    poison = Poison(student.get_parameter(BACKBONE), float('nan'), [2])
    with pytest.raises(NonFiniteLossError, match='iteration 2: .*decode.loss_ce is nan'):
        train(tmp_path, student, poison)


def test_bfloat16_stops_at_once(tmp_path):
    algorithm = distill()
    poison = Poison(algorithm.student.get_parameter(BACKBONE), float('nan'), [2])
    wrapper = dict(type='Bf16OptimWrapper', optimizer=SGD)
    with pytest.raises(NonFiniteLossError, match='iteration 2: '):
        train(tmp_path, algorithm, poison, optim_wrapper=wrapper)


@OPTIM_WRAPPERS.register_module(force=True)
class ScaledOptimWrapper(OptimWrapper):
    """MMEngine's AmpOptimWrapper without autocast; that one refuses to run without a GPU."""

    def __init__(self, init_scale=2.0**10, **kwargs):
        super().__init__(**kwargs)
        self.loss_scaler = torch.amp.GradScaler('cpu', init_scale=init_scale)

    @contextmanager
    def optim_context(self, model):
        with super().optim_context(model):
            yield

    def backward(self, loss, **kwargs):
        self.loss_scaler.scale(loss).backward(**kwargs)
        self._inner_count += 1

    def step(self, **kwargs):
        self.loss_scaler.step(self.optimizer, **kwargs)
        self.loss_scaler.update()


scaling = pytest.mark.skipif(not hasattr(torch.amp, 'GradScaler'), reason='no scaler without a GPU')


def scaled(**kwargs):
    return dict(type='ScaledOptimWrapper', optimizer=SGD, **kwargs)


@scaling
def test_steps_that_a_scaler_skips_are_allowed(tmp_path):
    """Infinite gradients of a finite loss: as many as there are, whatever the patience."""
    algorithm = distill()
    wrapper = scaled(init_scale=2.0**127)
    runner = train(tmp_path, algorithm, patience=1, optim_wrapper=wrapper, iters=6)
    assert runner.iter == 6
    assert runner.optim_wrapper.loss_scaler.get_scale() <= 2.0**125, 'two steps were skipped'
    assert all(parameter.isfinite().all() for parameter in algorithm.parameters())


@scaling
def test_loss_that_is_not_finite_now_and_then_is_allowed_with_a_scaler(tmp_path):
    algorithm = distill()
    poison = Poison(algorithm.student.decode_head.conv_seg.bias, float('inf'), [1, 2, 4, 5])
    runner = train(tmp_path, algorithm, poison, patience=3, optim_wrapper=scaled(), iters=6)
    assert runner.iter == 6
    assert all(parameter.isfinite().all() for parameter in algorithm.parameters())


@scaling
def test_loss_that_stays_not_finite_stops_with_a_scaler_too(tmp_path):
    algorithm = distill()
    poison = Poison(algorithm.student.decode_head.conv_seg.bias, float('inf'), range(2, 9))
    with pytest.raises(
        NonFiniteLossError, match='iteration 4: .*the loss is not finite, 3 times in a row'
    ):
        train(tmp_path, algorithm, poison, patience=3, optim_wrapper=scaled(), iters=8)


def test_two_processes_stop_together(two_processes):
    """The second one's teacher is broken."""
    messages = [found['non_finite'] for found in two_processes]
    assert messages[0] == messages[1]
    assert messages[0].startswith('iteration 2: ')
    assert "values of the teacher's feature are NaN or infinite" in messages[0]


def test_features_are_kept_until_the_next_iteration():
    """So that they are there when the loss has been read, and not while the next ones are made."""
    algorithm, seen = distill(), []
    algorithm.teacher.register_forward_pre_hook(
        lambda *_: seen.append(algorithm.distiller.last_comparison)
    )
    for _ in range(2):
        algorithm(images(), samples(), mode='loss')
        ((_, student, teacher),) = algorithm.distiller.last_comparison.pairs.values()
        assert student.shape == teacher.shape and not student.requires_grad
    assert seen == [None, None]


@pytest.mark.parametrize('patience', [0, -3])
def test_patience_must_be_positive(patience):
    with pytest.raises(ValueError, match=f'at least 1 iteration, got {patience}'):
        NonFiniteLossHook(patience)
