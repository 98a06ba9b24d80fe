"""calculate_student_loss=False: a student runs to its last compared feature and needs no labels."""

import logging

import pytest
import torch
from helpers import (
    Watch,
    capture_log,
    distill,
    faster_rcnn,
    images,
    pair,
    pspnet,
    retinanet,
    run,
    samples,
    total,
)
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from torch import nn
from torch.nn import functional

BEHIND = ('decode_head.conv_seg', 'auxiliary_head')


@pytest.fixture
def log(monkeypatch):
    return capture_log(monkeypatch, logging.INFO)


def gradients(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    'pairs',
    [
        pytest.param([pair()], id='bottleneck'),
        pytest.param([pair('backbone[1]'), pair('decode_head.bottleneck')], id='two'),
        pytest.param([pair('auxiliary_head.convs')], id='auxiliary head'),
        pytest.param([pair('backbone.layer2.0.conv1')], id='within the backbone'),
    ],
)
def test_losses_and_gradients_are_those_of_a_whole_forward(pairs):
    """Bit by bit those of the distillation's part where the student's losses are computed too."""
    whole, ours = distill(*pairs), distill(*pairs, calculate_student_loss=False)
    expected = whole(images(), samples(), mode='loss')
    expected = {k: v for k, v in expected.items() if k.startswith('distill')}
    with torch.random.fork_rng():
        losses = ours(images(), None, mode='loss')
    assert list(losses) == list(expected)
    assert all(torch.equal(losses[k], expected[k]) for k in losses)
    total(expected).backward()
    total(losses).backward()
    a, b = gradients(ours), gradients(whole)
    assert a.keys() == b.keys() and len(a) > 5
    assert all(torch.equal(a[name], b[name]) for name in a)
    for name in ('running_mean', 'running_var', 'num_batches_tracked'):
        assert torch.equal(*(getattr(m.student.backbone.stem[1], name) for m in (ours, whole)))


def test_the_student_ends_behind_its_last_feature():
    algorithm = distill(calculate_student_loss=False)
    with Watch(algorithm.student) as watch:
        algorithm(images(), samples(), mode='loss')
    assert 'decode_head.bottleneck' in watch.ran
    assert not [name for name in watch.ran if name.startswith(BEHIND)]
    with Watch(distill().student) as watch:
        watch.model(images(), samples(), mode='loss')
    assert 'decode_head.conv_seg' in watch.ran


def test_parameters_that_do_not_learn_are_frozen(log):
    algorithm = distill(pair('backbone[1]'), calculate_student_loss=False)
    frozen = {n for n, p in algorithm.student.named_parameters() if not p.requires_grad}
    total(algorithm(images(), None, mode='loss')).backward()
    without = {n for n, p in algorithm.student.named_parameters() if p.grad is None}
    assert frozen == without
    assert any(n.startswith('backbone.layer3') for n in frozen), 'it runs, and serves nothing'
    assert not any(n.startswith(('backbone.layer2', 'backbone.stem')) for n in frozen)
    (line,) = [line for line in log if 'do not learn' in line]
    assert f'{len(frozen)} parameters' in line and 'backbone.layer3' in line
    assert 'decode_head' in line


def test_levels_that_nobody_compares_are_frozen(mmdet):
    algorithm = distill(
        pair('neck[1]'), student=retinanet(), teacher=retinanet(width=16), calculate_student_loss=False
    )  # fmt: skip
    frozen = {n for n, p in algorithm.student.named_parameters() if not p.requires_grad}
    total(algorithm(images(size=64), None, mode='loss')).backward()
    assert frozen == {n for n, p in algorithm.student.named_parameters() if p.grad is None}
    assert 'neck.fpn_convs.0.conv.weight' in frozen, 'the neck runs to its end'
    assert 'neck.fpn_convs.1.conv.weight' not in frozen


def test_features_of_a_detector_need_no_labels(mmdet):
    for student in (retinanet(), faster_rcnn()):
        algorithm = distill(
            pair('neck[0]'), pair('backbone[3]'), student=student, teacher=retinanet(width=16),
            calculate_student_loss=False,
        )  # fmt: skip
        losses = algorithm(images(size=64), None, mode='loss')
        assert len(losses) == 2 and total(losses).isfinite()


def test_frozen_parameters_do_not_decay(tmp_path):
    algorithm = distill(calculate_student_loss=False)
    algorithm.init_weights()
    before = {k: v.clone() for k, v in algorithm.student.state_dict().items()}
    wrapper = dict(optimizer=dict(type='AdamW', lr=0.01, weight_decay=0.5))
    after = run(algorithm, tmp_path, optim_wrapper=wrapper).model.student.state_dict()
    for name in before:
        is_behind = name.startswith(BEHIND)
        assert torch.equal(before[name], after[name]) == is_behind, name
    assert any(name.startswith('auxiliary_head') for name in before)


def test_the_model_is_left_as_it_is_built():
    """The search for what learns leaves no gradient, no statistics and no mode behind."""
    algorithm, other = distill(calculate_student_loss=False), distill()
    assert all(p.grad is None for p in algorithm.parameters())
    a, b = algorithm.state_dict(), other.state_dict()
    assert list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)
    assert algorithm.student.training and algorithm.student.backbone.training
    student = pspnet(backbone=dict(frozen_stages=1))
    frozen = distill(student=student, calculate_student_loss=False).student.backbone.layer1
    assert not any(p.requires_grad for p in frozen.parameters()), 'frozen stays frozen'


def test_a_student_whose_losses_count_is_not_frozen():
    assert all(p.requires_grad for p in distill().student.parameters())


def test_dropout_before_the_feature_is_active():
    algorithm = distill(
        pair('decode_head.dropout', loss=dict(type='LADLoss')), calculate_student_loss=False
    )
    values = [float(total(algorithm(images(), None, mode='loss'))) for _ in range(2)]
    assert values[0] != values[1]


def test_stopped_distillation_says_that_nothing_is_left():
    algorithm = distill(teacher=pspnet(8, 8), calculate_student_loss=False)
    algorithm.distillation_stopped = True
    with pytest.raises(RuntimeError, match='nothing is left to train'):
        algorithm(images(), None, mode='loss')


# MMRazor's recorders and deliveries of the student


def mapped(student, teacher='logits', **kwargs):
    """A distiller with a loss of MMRazor's on what two recorders hold."""
    return dict(
        type='FeatureDistiller',
        pairs=[pair()],
        loss=dict(type='CADLoss'),
        student_recorders=dict(ours=student),
        teacher_recorders=dict(theirs=dict(type='ModuleOutputs', source='decode_head.conv_seg')),
        distill_losses=dict(loss_l2=dict(type='L2Loss', normalize=False)),
        loss_forward_mappings=dict(
            loss_l2=dict(
                s_feature=dict(from_student=True, recorder='ours'),
                t_feature=dict(from_student=False, recorder='theirs'),
            )
        ),
        **kwargs,
    )


def test_recorded_module_behind_the_pairs_runs():
    distiller = mapped(dict(type='ModuleOutputs', source='decode_head.conv_seg'))
    algorithm = distill(distiller=distiller, calculate_student_loss=False)
    losses = algorithm(images(), None, mode='loss')
    assert set(losses) == {'distill.loss_l2', 'distill.loss_cad_decode_head.bottleneck'}
    total(losses).backward()
    named = dict(algorithm.student.named_parameters())
    assert named['decode_head.conv_seg.weight'].grad is not None
    assert not any(p.requires_grad for n, p in named.items() if n.startswith('auxiliary_head'))


@MODELS.register_module(force=True)
class OutputOfLoss(nn.Module):
    """Compares what a loss gave with a teacher's map, to have a recorder that needs labels."""

    def forward(self, ours, theirs):
        return (ours - theirs.detach().mean()) ** 2


def test_what_only_a_training_runs_is_recorded_from_a_whole_forward():
    distiller = mapped(dict(type='ModuleOutputs', source='decode_head.loss_decode'))
    distiller['distill_losses'] = dict(loss_l2=dict(type='mmengine.OutputOfLoss'))
    mapping = distiller['loss_forward_mappings']['loss_l2']
    distiller['loss_forward_mappings'] = dict(
        loss_l2=dict(ours=mapping['s_feature'], theirs=mapping['t_feature'])
    )
    algorithm = distill(distiller=distiller, calculate_student_loss=False)
    losses = algorithm(images(), samples(), mode='loss')
    assert 'distill.loss_l2' in losses and not any(k.startswith('student') for k in losses)
    assert all(p.requires_grad for p in algorithm.student.parameters())


# Labels that are not there; rows of tests/bad_input/README.md


@MODELS.register_module(force=True)
class NeedsLabels(nn.Module):
    """A loss of a user's that reads labels, or can do without."""

    def forward(self, student, teacher, data_samples):
        return sum(s.gt_sem_seg.data.float().mean() for s in data_samples) * student.mean()


@MODELS.register_module(force=True)
class LikesLabels(nn.Module):
    """Tells what it was given."""

    def forward(self, student, teacher, data_samples=None):
        self.given = data_samples
        return functional.mse_loss(student, teacher)


def unlabelled():
    found = samples()
    for sample in found:
        del sample.gt_sem_seg
        sample.set_metainfo(dict(is_unlabelled=True, img_path='a/b.png'))
    return found


def test_loss_that_needs_labels_is_named():
    algorithm = distill(
        pair(loss=dict(type='mmengine.NeedsLabels'), name='mine'), calculate_student_loss=False
    )
    with pytest.raises(ValueError, match='mine: NeedsLabels needs the labels'):
        algorithm(images(), unlabelled(), mode='loss')
    with pytest.raises(ValueError, match='mine: NeedsLabels needs the labels'):
        algorithm.check_unlabelled()
    assert total(algorithm(images(), samples(), mode='loss')).isfinite()


def test_fgd_needs_labels(mmdet):
    algorithm = distill(
        pair('neck[0]', loss=dict(type='FGDLoss')),
        student=retinanet(), teacher=retinanet(width=16), calculate_student_loss=False,
    )  # fmt: skip
    with pytest.raises(ValueError, match='FGDLoss needs the labels'):
        algorithm(images(size=64), unlabelled(), mode='loss')


def test_loss_that_can_do_without_labels_gets_none():
    algorithm = distill(pair(loss=dict(type='mmengine.LikesLabels')), calculate_student_loss=False)
    (loss,) = algorithm.distiller.distill_losses.values()
    algorithm(images(), unlabelled(), mode='loss')
    assert loss.given is None
    given = samples()
    algorithm(images(), given, mode='loss')
    assert loss.given is given


def test_own_losses_need_labels():
    with pytest.raises(ValueError) as error:
        distill()(images(), unlabelled(), mode='loss')
    for part in ('a/b.png', 'calculate_student_loss=False', 'UnlabelledImagesHook'):
        assert part in str(error.value)


def test_optimizer_of_the_config_is_built():
    """MMEngine's constructor takes the frozen parameters and gives them no state."""
    algorithm = distill(calculate_student_loss=False)
    wrapper = build_optim_wrapper(algorithm, dict(optimizer=dict(type='AdamW', lr=0.1)))
    wrapper.update_params(total(algorithm(images(), None, mode='loss')))
    learning = [p for p in algorithm.parameters() if p.requires_grad]
    assert len(wrapper.optimizer.state) == len(learning)
