"""What MMEngine's Runner offers, with the algorithm: short real trainings each.

Trainings that are compared have GN, to which the other images of a batch do not matter, and no dropout.
"""

import copy

import pytest
import torch
from helpers import (
    BOTTLENECK,
    bitwise_equal,
    build,
    count_runs,
    distill,
    feature_distiller,
    has_sync_batchnorm,
    images,
    pair,
    pspnet,
    run,
    samples,
    total,
    upernet_swin,
)
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from mmengine.model import convert_sync_batchnorm

CONNECTOR = 'distiller.connectors.loss_lad_decode_head_bottleneck.conv_module.conv.weight'


def without_batch_effects(config):
    """The config with GN and without dropout."""
    if isinstance(config, dict):
        if config.get('type') == 'SyncBN':
            return dict(type='GN', num_groups=2)
        changed = {key: without_batch_effects(value) for key, value in config.items()}
        if 'loss_decode' in changed:
            changed['dropout_ratio'] = 0.0
        return type(config)(changed)
    return config


def algorithm(*pairs, **kwargs):
    """LAD, by default through a connector and on the backbone's last output."""
    pairs = pairs or (pair(), pair('backbone[3]'))
    kwargs.setdefault('student', without_batch_effects(pspnet()))
    return distill(distiller=feature_distiller(*pairs, loss=dict(type='LADLoss')), **kwargs)


def sgd(lr=0.05, momentum=0.9, **kwargs):
    return dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=lr, momentum=momentum), **kwargs)


def weights(model):
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def trained(folder, model=None, **kwargs):
    """The weights before and after a training."""
    model = model or algorithm()
    model.init_weights()  # else the runner would
    before = weights(model)
    run(model, folder, **kwargs)
    return before, weights(model)


def steps(before, after):
    """All changes in one vector, the connectors' too."""
    assert before.keys() == after.keys()
    return torch.cat([(after[name] - before[name]).flatten() for name in before])


def distance(one, other):
    return (one - other).norm() / other.norm()


# Accumulation


def test_accumulated_halves_are_a_whole_batch(tmp_path):
    """4 iterations with 2 images make the same 2 steps as 2 iterations with 4."""
    before, whole = trained(tmp_path / 'whole', iters=2, batch=4, optim_wrapper=sgd())
    _, halves = trained(
        tmp_path / 'halves', iters=4, batch=2, optim_wrapper=sgd(accumulative_counts=2)
    )
    assert distance(steps(before, halves), steps(before, whole)) < 1e-4
    assert not torch.equal(whole[CONNECTOR], before[CONNECTOR])
    # and the halves by themselves would have been another training
    _, single = trained(tmp_path / 'single', iters=4, batch=2, optim_wrapper=sgd())
    assert distance(steps(before, single), steps(before, whole)) > 0.1


# Clipping


def test_clipped_gradient_is_that_of_student_and_connectors(tmp_path):
    """With SGD of rate 1 and without momentum, a step is the gradient."""
    most = 0.01
    before, plain = trained(tmp_path / 'plain', iters=1, optim_wrapper=sgd(1.0, 0.0))
    gradient = steps(before, plain)
    assert gradient.norm() > 10 * most
    before, clipped = trained(
        tmp_path / 'clipped',
        iters=1,
        optim_wrapper=sgd(1.0, 0.0, clip_grad=dict(max_norm=most)),
    )
    step = steps(before, clipped)
    assert step.norm().item() == pytest.approx(most, rel=1e-3)
    assert distance(step, gradient * most / gradient.norm()) < 1e-3
    # the connectors are part of the norm, and clipped by the same factor
    connector = plain[CONNECTOR] - before[CONNECTOR]
    assert connector.norm() > 0
    expected = connector * most / gradient.norm()
    assert distance(clipped[CONNECTOR] - before[CONNECTOR], expected) < 1e-3
    logged = MessageHub.get_current_instance().get_scalar('train/grad_norm').current()
    assert logged == pytest.approx(gradient.norm().item(), rel=1e-4)


# EMA


class Weights(Hook):
    """Copies what is trained after every iteration."""

    def __init__(self):
        self.seen = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.seen.append(copy.deepcopy(runner.model.state_dict()))


def test_ema_checkpoint_is_the_averaged_student(tmp_path):
    """The average, connectors included, in float64 from the weights after each iteration."""
    momentum, spy = 0.3, Weights()
    model = distill()
    runs = count_runs(model.teacher)
    ema = dict(type='EMAHook', momentum=momentum)
    run(model, tmp_path, iters=4, hooks=[spy, ema], optim_wrapper=sgd())
    assert len(runs) == 4, 'the average shares the teacher and runs none of its own'
    saved = torch.load(tmp_path / 'iter_4.pth', weights_only=False)['state_dict']
    assert list(saved) == list(model.state_dict())
    names = [name for name, _ in distill().student.named_parameters()]
    connectors = [name for name in saved if name.startswith('distiller.connectors.')]
    assert connectors
    for name in names + connectors:
        average = spy.seen[0][name].double()
        for state in spy.seen[1:]:
            average = (1 - momentum) * average + momentum * state[name].double()
        torch.testing.assert_close(saved[name].double(), average, rtol=1e-5, atol=1e-7)
        assert not torch.equal(saved[name], spy.seen[-1][name]), name
    plain = build(pspnet())
    missing, unexpected = plain.load_state_dict(saved, strict=False)
    assert missing == [] and unexpected == connectors
    assert bitwise_equal(
        plain.state_dict(), {k: v for k, v in saved.items() if k not in connectors}
    )


# SyncBN


def test_features_of_norms_survive_their_conversion_to_sync_batchnorm():
    """MMEngine's sync_bn='torch' puts new modules in the place of those that were recorded.

    SyncBN trains on GPUs only; in eval mode it is BN, everywhere.
    """
    config = pspnet()
    for part in ('backbone', 'decode_head', 'auxiliary_head'):
        config[part]['norm_cfg'] = dict(type='BN')
    recorded = 'backbone.layer4.1.bn1'
    model = distill(pair(recorded), pair('decode_head.bottleneck.bn'), student=config).eval()
    expected = model(images(), samples(), mode='loss')
    assert not has_sync_batchnorm(model)
    convert_sync_batchnorm(model, 'torch').eval()  # the new modules are in training mode
    assert has_sync_batchnorm(model) and not has_sync_batchnorm(model.teacher)
    losses = model(images(), samples(), mode='loss')
    assert {n for n in losses if n.startswith('distill')} == {
        f'distill.loss_cad_{recorded}',
        'distill.loss_cad_decode_head.bottleneck.bn',
    }
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value)
    total(losses).backward()
    assert model.student.backbone.layer4[1].conv1.weight.grad.abs().max() > 0


def test_sync_batchnorm_in_two_processes_without_gpu(two_processes):
    """The tools' Runner turns it into BN, and the features of these modules are recorded on."""
    one, two = (found['sync_bn'] for found in two_processes)
    entries = [
        f'distill.loss_cad_{n}' for n in ('backbone.layer4.1.bn1', 'decode_head.bottleneck.bn')
    ]
    for found in (one, two):
        assert found['wrapper'] == 'MMDistributedDataParallel'
        assert found['in_config'] and not found['in_training']
        assert found['losses'] == [entries] * 2 and found['finite']
    trained = [name for name in one['last'] if name.endswith(('weight', 'bias'))]
    assert all(torch.equal(one['last'][name], two['last'][name]) for name in trained)
    recorded = 'backbone.layer4.1.conv1.weight'
    assert not torch.equal(one['last'][recorded], one['first'][recorded])
    # each process has its own statistics: BN it is
    statistic = 'backbone.layer4.1.bn1.running_mean'
    assert not torch.equal(one['last'][statistic], two['last'][statistic])


# Activation checkpointing

CHECKPOINTED = {
    'PSPNet, outputs of stages': (pspnet, ['backbone[2]', 'backbone[3]', BOTTLENECK]),
    'PSPNet, whole blocks': (pspnet, ['backbone.layer3.1', 'backbone.layer4.1']),
    'UPerNet-Swin': (upernet_swin, ['backbone[1]', 'decode_head.fpn_bottleneck']),
}


def checkpointed(case, with_cp):
    make, paths = CHECKPOINTED[case]
    config = without_batch_effects(make())
    config['backbone'].update(with_cp=with_cp)
    if make is upernet_swin:
        config['backbone'].update(drop_path_rate=0.0)
    return algorithm(*map(pair, paths), student=config, teacher=make(8, 16)).train(), paths


def losses_and_gradients(model, paths):
    """And how often each student module ran, in forward and then in all, and was recorded."""
    runs = {path.partition('[')[0]: 0 for path in paths}

    def count(name):
        def hook(*_):
            runs[name] += 1

        return hook

    for name in runs:
        model.student.get_submodule(name).register_forward_hook(count(name))
    recorded = []
    original = model.distiller.compute_distill_losses

    def compute(*args):
        recorders = model.distiller.student_recorders.recorders.values()
        recorded.extend(len(recorder.data_buffer) for recorder in recorders)
        return original(*args)

    model.distiller.compute_distill_losses = compute
    losses = model(images(), samples(), mode='loss')
    forward = dict(runs)
    total(losses).backward()
    left = [len(r.data_buffer) for r in model.distiller.student_recorders.recorders.values()]
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return losses, gradients, forward, recorded, left


@pytest.mark.parametrize('case', CHECKPOINTED)
def test_activation_checkpointing_changes_no_gradient(case):
    plain, plain_paths = checkpointed(case, False)
    saving, _ = checkpointed(case, True)
    saving.load_state_dict(plain.state_dict())
    saving.teacher.load_state_dict(plain.teacher.state_dict())
    expected = losses_and_gradients(plain, plain_paths)
    given = losses_and_gradients(saving, plain_paths)
    for name, value in expected[0].items():
        torch.testing.assert_close(given[0][name], value, msg=name)
    assert given[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        torch.testing.assert_close(given[1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    for _, _, forward, recorded, left in (expected, given):
        assert set(forward.values()) == {1}
        assert set(recorded) == {1}, 'one record each'
        assert set(left) == {0}, 'and none of what backward computed again'


def test_what_backward_computes_again_is_not_recorded(tmp_path):
    """A module within a checkpointed block does run twice an iteration, in a real training."""
    config = without_batch_effects(pspnet(backbone=dict(with_cp=True)))
    plain = without_batch_effects(pspnet())
    inner = 'layer4.1.conv1'
    trainings, ran = [], {}
    for name, student in (('plain', plain), ('checkpointed', config)):
        model = algorithm(pair('backbone.layer4.1'), pair(), student=student)
        ran[name] = count_runs(model.student.backbone.get_submodule(inner))
        trainings.append(trained(tmp_path / name, model, iters=3, optim_wrapper=sgd()))
    assert (len(ran['plain']), len(ran['checkpointed'])) == (3, 6)
    (before, expected), (same, given) = trainings
    assert all(torch.equal(same[name], before[name]) for name in before)
    assert distance(steps(before, given), steps(before, expected)) < 1e-4
