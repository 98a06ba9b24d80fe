"""What MMEngine's Runner offers, with the algorithm: short real trainings each.

Trainings that are compared have GN, to which the other images of a batch do not matter, and no dropout.
"""

import copy
from types import SimpleNamespace

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
from torch.utils.checkpoint import checkpoint

from rawkd_mm.features import FeatureCapture

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
    gone = steps(before, clipped)
    assert gone.norm().item() == pytest.approx(most, rel=1e-3)
    assert distance(gone, gradient * most / gradient.norm()) < 1e-3
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
    total({n: v for n, v in losses.items() if n.startswith('distill')}).backward()
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


def step(model, paths):
    """Losses and gradients of one batch; how often modules ran and recorders recorded."""
    runs = {path: count_runs(model.student.get_submodule(path.partition('[')[0])) for path in paths}
    records = []
    features = FeatureCapture.features

    def remembering(self, recording, role):
        if role == 'student':
            records.extend(recording._records.values())
        return features(self, recording, role)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureCapture, 'features', remembering)
        losses = model(images(), samples(), mode='loss')
    recorded = [len(record.outputs) for record in records]
    runs_forward = {path: len(run) for path, run in runs.items()}
    total(losses).backward()
    return SimpleNamespace(
        losses=losses,
        gradients={n: p.grad for n, p in model.named_parameters() if p.grad is not None},
        runs_forward=runs_forward,
        runs={path: len(run) for path, run in runs.items()},
        recorded=recorded,
        recorded_later=[len(record.outputs) for record in records],
    )


def compare(saving, plain, paths):
    """Give what a model with activation checkpointing did, which must be what one without does."""
    saving.load_state_dict(plain.state_dict())
    saving.teacher.load_state_dict(plain.teacher.state_dict())
    expected, given = step(plain, paths), step(saving, paths)
    for name, value in expected.losses.items():
        torch.testing.assert_close(given.losses[name], value, msg=name)
    assert given.gradients.keys() == expected.gradients.keys()
    for name, gradient in expected.gradients.items():
        torch.testing.assert_close(given.gradients[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    for each in (expected, given):
        assert set(each.runs_forward.values()) == {1}
        assert set(each.recorded) == {1}, 'one record each'
        assert each.recorded_later == each.recorded, 'and none of what backward computed again'
    return given


@pytest.mark.parametrize('case', CHECKPOINTED)
def test_activation_checkpointing_changes_no_gradient(case):
    (saving, paths), (plain, _) = (checkpointed(case, with_cp) for with_cp in (True, False))
    compare(saving, plain, paths)


def test_features_within_a_block_that_is_computed_again():
    """With PyTorch's newer kind, use_reentrant=False, they have a gradient and can be distilled."""
    path = 'backbone.layer4.1.conv1'
    saving, plain = (algorithm(pair(path), pair()).train() for _ in range(2))
    block = saving.student.backbone.layer4[1]
    forward = block.forward
    block.forward = lambda x: checkpoint(forward, x, use_reentrant=False)
    assert compare(saving, plain, [path]).runs[path] == 2


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
