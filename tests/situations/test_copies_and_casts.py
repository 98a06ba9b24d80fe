"""Copies of a distillation, casts and moves of it, and what it keeps once it is stopped.

Seen when the project was tried from outside: each deep copy (EMA, a snapshot) left hooks on the shared
teacher, which kept the copy alive.
"""

import copy
import gc
import weakref

import pytest
import torch
from helpers import build, distill, feature_distiller, images, pair, pspnet, run, samples

MMRAZOR = dict(
    type='ConfigurableDistiller',
    student_recorders=dict(f=dict(type='ModuleOutputs', source='decode_head.conv_seg')),
    teacher_recorders=dict(f=dict(type='ModuleOutputs', source='decode_head.conv_seg')),
    distill_losses=dict(loss_cwd=dict(type='ChannelWiseDivergence')),
    loss_forward_mappings=dict(
        loss_cwd=dict(
            preds_S=dict(from_student=True, recorder='f'),
            preds_T=dict(from_student=False, recorder='f'),
        )
    ),
)


def hooks_of(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize(
    'distiller',
    [
        feature_distiller(pair(), pair('decode_head.bottleneck:input', name='loss_input')),
        MMRAZOR,
    ],
    ids=['FeatureDistiller', 'MMRazor'],
)
def test_a_hundred_copies_leave_nothing_on_the_teacher(distiller):
    algorithm = distill(distiller=distiller)
    before = hooks_of(algorithm.teacher)
    expected = distilled(algorithm)
    copies = [copy.deepcopy(algorithm) for _ in range(100)]
    assert all(twin.teacher is algorithm.teacher for twin in copies)
    assert hooks_of(algorithm.teacher) == before
    assert distilled(copies[7]) == expected  # a copy can be trained too
    assert hooks_of(algorithm.teacher) == before
    assert distilled(algorithm) == expected
    alive = [weakref.ref(twin) for twin in copies]
    copies.clear()
    gc.collect()
    assert [reference() for reference in alive] == [None] * 100


def distilled(algorithm):
    torch.manual_seed(0)
    losses = algorithm(images(), samples(), mode='loss')
    return {k: v.item() for k, v in losses.items() if k.startswith('distill')}


def test_a_copy_that_fails_leaves_nothing_either():
    algorithm = distill()
    twin = copy.deepcopy(algorithm)
    before = hooks_of(algorithm.teacher)
    with pytest.raises(RuntimeError):
        twin(torch.zeros(2, 5, 32, 32), samples(), mode='loss')
    assert hooks_of(algorithm.teacher) == before
    assert distilled(twin) == distilled(algorithm)


def teacher_state(algorithm):
    return {k: v.clone() for k, v in algorithm.teacher.state_dict().items()}


@pytest.mark.parametrize(
    'change',
    [
        lambda a: a.half(),
        lambda a: a.bfloat16(),
        lambda a: a.to(torch.float16),
        lambda a: a.to('meta').to_empty(device='cpu'),
        lambda a: a.to_empty(device='cpu'),
        lambda a: a.to(memory_format=torch.channels_last),
        lambda a: a.double().float(),
    ],
    ids=['half', 'bfloat16', 'to float16', 'meta', 'to_empty', 'channels_last', 'double and back'],
)
def test_the_teachers_weights_keep_their_values(change):
    algorithm = distill()
    before = teacher_state(algorithm)
    change(algorithm)
    after = teacher_state(algorithm)
    assert list(after) == list(before)
    for name, value in after.items():
        assert torch.equal(value.double(), before[name].double()), name
        assert value.device.type == 'cpu'


@pytest.mark.parametrize('precision', [None, 'bf16'])
def test_a_cast_student_gets_features_of_its_type(precision):
    algorithm = distill(teacher_precision=precision)
    expected = algorithm.extract_features(images(), samples())
    algorithm.bfloat16()
    found = algorithm.extract_features(images().bfloat16(), samples())
    for name, (student, _, teacher) in found.items():
        assert student.dtype == teacher.dtype == torch.bfloat16
        torch.testing.assert_close(
            teacher.float(), expected[name].teacher.float(), rtol=0.05, atol=0.05
        )


def test_a_student_on_the_meta_device_is_refused():
    with torch.device('meta'):
        student = build(pspnet())
    with pytest.raises(ValueError, match='meta device.*Build the distillation on the CPU'):
        distill(student=student)


def test_nothing_of_the_last_batch_stays_once_it_is_stopped(tmp_path):
    """After MMRazor's StopDistillHook; public name ``mmrazor.StopDistillHook``."""
    algorithm = distill()
    algorithm(images(), samples(), mode='loss')
    pairs = algorithm.distiller.last_comparison.pairs
    features = [weakref.ref(f) for pair in pairs.values() for f in pair]
    del pairs
    assert features and all(reference() is not None for reference in features)
    algorithm.distillation_stopped = True
    algorithm(images(), samples(), mode='loss')
    gc.collect()
    assert [reference() for reference in features] == [None] * len(features)
    assert algorithm.distiller.last_comparison is None


def test_nothing_of_the_last_batch_stays_after_a_training_that_stopped(tmp_path):
    algorithm = distill()
    shapes = (3, 32, 32)
    run(
        algorithm, tmp_path, epochs=2, length=4,
        hooks=[dict(type='mmrazor.StopDistillHook', stop_epoch=1)],
    )  # fmt: skip
    gc.collect()
    left = [
        o for o in gc.get_objects()
        if type(o) is torch.Tensor and o.dim() == 4 and tuple(o.shape[1:]) == shapes
    ]  # fmt: skip
    assert algorithm.distiller.last_comparison is None
    assert not left
