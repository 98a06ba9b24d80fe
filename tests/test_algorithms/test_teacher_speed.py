"""What the teacher computes in: the features stay the same, and nothing else notices."""

import copy

import pytest
import torch
from helpers import (
    BOTTLENECK,
    bitwise_equal,
    build,
    distill,
    feature_distiller,
    images,
    pair,
    pspnet,
    retinanet,
    run,
    samples,
    total,
    train_statistics,
    upernet_swin,
)
from torch import nn
from torch._dynamo.utils import counters

from rawkd_mm.features import FeatureRecorder
from rawkd_mm.teachers import speed

FPN = 'decode_head.fpn_bottleneck'
# unit in the last place, and what some twenty layers make of it
BOUNDS = {'fp32': 1e-5, 'fp16': 5e-3, 'bf16': 4e-2}
DTYPES = {'fp32': torch.float32, 'fp16': torch.float16, 'bf16': torch.bfloat16}
DYNAMO = dict(backend='eager')  # graphs without a compiler, which takes long
SETTINGS = [('bf16', False), ('bf16', True), ('fp16', False), ('fp32', True), (None, True)]


def teacher_of(config):
    torch.manual_seed(4)
    return train_statistics(build(config))


def features(algorithm, inputs, autocast=None):
    """What the teacher gives for the losses, and leaves in MMRazor's recorders."""
    with torch.autocast('cpu', dtype=torch.bfloat16, enabled=bool(autocast)):
        found = list(algorithm.frozen_teacher.extract_features(inputs, samples()).values())
    for recorder in algorithm.distiller.teacher_recorders.recorders.values():
        found.append(recorder.get_record_data())
        recorder.reset_data_buffer()
    return found


@pytest.mark.parametrize(('precision', 'channels_last'), SETTINGS)
@pytest.mark.parametrize(
    ('config', 'path'),
    [(pspnet(8, 16), BOTTLENECK), (upernet_swin(16, 12), FPN)],
    ids=['psp', 'swin'],
)
def test_features_are_the_same(config, path, precision, channels_last):
    if precision == 'fp16' and torch.__version__.startswith('2.1.'):
        pytest.skip('torch 2.1 has no float16 autocast on the CPU')
    teacher = teacher_of(config)
    student = pspnet() if path == BOTTLENECK else upernet_swin()
    plain = distill(pair(path), student=student, teacher=copy.deepcopy(teacher))
    fast = distill(
        pair(path),
        student=student,
        teacher=teacher,
        teacher_precision=precision,
        teacher_channels_last=channels_last,
    )
    (expected,), (feature,) = features(plain, images()), features(fast, images())
    assert feature.dtype == torch.float32 and feature.is_contiguous()
    error = (feature - expected).norm() / expected.norm()
    assert error < BOUNDS[precision or 'fp32']
    # it did compute in another precision
    assert (error > 1e-4) == (precision in ('bf16', 'fp16'))


@pytest.mark.parametrize('precision', ['bf16', 'fp16'])
def test_weights_are_stored_converted(precision):
    teacher = distill(teacher_precision=precision).teacher
    kinds = {module: type(module) for module in teacher.modules()}
    for module, kind in kinds.items():
        low = kind is nn.Conv2d
        for value in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            if value.is_floating_point():
                assert value.dtype == (DTYPES[precision] if low else torch.float32), kind
    assert nn.Conv2d in kinds.values()


def test_recorded_parameter_keeps_its_type():
    recorder = dict(w=dict(type='Parameter', source='decode_head.conv_seg.weight'))
    algorithm = distill(
        teacher=pspnet(8, 8),
        teacher_precision='bf16',
        distiller=feature_distiller(student_recorders=recorder, teacher_recorders=recorder),
    )
    assert algorithm.teacher.decode_head.conv_seg.weight.dtype == torch.float32
    assert algorithm.teacher.decode_head.conv_seg.bias.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ('precision', 'expected'),
    [(None, torch.bfloat16), ('bf16', torch.bfloat16), ('fp32', torch.float32)],
)
def test_under_the_students_autocast(precision, expected):
    algorithm = distill(teacher_precision=precision)
    (feature,) = features(algorithm, images(), autocast=True)
    assert feature.dtype == expected


def test_algorithm_does_not_notice():
    teacher = teacher_of(pspnet(8, 16))
    algorithms = [
        distill(teacher=copy.deepcopy(teacher)),
        distill(teacher=teacher, teacher_precision='bf16', teacher_channels_last=True),
    ]
    plain, fast = algorithms
    assert bitwise_equal(plain.state_dict(), fast.state_dict())
    assert not any(p.requires_grad for p in fast.teacher.parameters())
    twin = copy.deepcopy(fast)
    assert twin.teacher is fast.teacher
    results = []
    for algorithm in (*algorithms, twin):
        torch.manual_seed(0)
        losses = algorithm.train()(images(), samples(), mode='loss')
        total(losses).backward()
        gradient = algorithm.student.backbone.layer1[0].conv1.weight.grad
        results.append((losses, gradient))
    (expected, gradient), *others = results
    for losses, grad in others:
        assert set(losses) == set(expected)
        for name, value in expected.items():
            assert losses[name].dtype == value.dtype
            torch.testing.assert_close(losses[name], value, rtol=1e-2, atol=0)
        assert (grad - gradient).norm() < 2e-2 * gradient.norm()
    assert not any(module.training for module in fast.teacher.modules())


def test_resumed_run_is_the_uninterrupted_one(tmp_path):
    def train(folder, iters, **kwargs):
        student = pspnet()
        for head in ('decode_head', 'auxiliary_head'):
            student[head]['dropout_ratio'] = 0.0
        algorithm = distill(student=student, teacher_precision='bf16', teacher_channels_last=True)
        run(algorithm, tmp_path / folder, iters=iters, save_every=2, **kwargs)
        return torch.load(tmp_path / folder / f'iter_{iters}.pth', weights_only=False)

    whole = train('whole', 4)
    train('parts', 2)
    parts = train('parts', 4, resume=True)
    assert bitwise_equal(parts['state_dict'], whole['state_dict'])


def test_student_inherits_the_weights_as_they_were_loaded(tmp_path):
    state = teacher_of(pspnet()).state_dict()
    path = str(tmp_path / 'teacher.pth')
    torch.save(dict(state_dict=state), path)
    algorithm = distill(
        pair('backbone[3]'),
        teacher=pspnet(),
        teacher_ckpt=path,
        init_student=['decode_head'],
        teacher_precision='bf16',
    )
    name = 'decode_head.bottleneck.conv.weight'
    assert not torch.equal(state[name], state[name].bfloat16().float())
    algorithm.init_weights()
    assert torch.equal(algorithm.student.state_dict()[name], state[name])


# What does not mix types, or does not take any layout: MMRazor's

FKD = dict(in_channels='auto', reduction=2, mode='dot_product', sub_sample=True)
THEIRS = {
    'cwd': dict(loss=dict(type='ChannelWiseDivergence')),
    'mgd': dict(
        loss=dict(type='MGDLoss'),
        student_connector=dict(
            type='MGDConnector', student_channels='auto', teacher_channels='auto', lambda_mgd=0.5
        ),
    ),
    'fkd': dict(
        loss=dict(type='FBKDLoss'),
        student_connector=dict(type='FBKDStudentConnector', **FKD),
        teacher_connector=dict(type='FBKDTeacherConnector', **FKD),
    ),
}


@pytest.mark.parametrize('amp', [False, True])
@pytest.mark.parametrize('name', THEIRS)
def test_losses_and_connectors_of_mmrazor(name, amp):
    algorithm = distill(
        distiller=feature_distiller(**THEIRS[name]),
        teacher_precision='bf16',
        teacher_channels_last=True,
    ).train()
    with torch.autocast('cpu', dtype=torch.bfloat16, enabled=amp):
        losses = algorithm(images(), samples(), mode='loss')
    total(losses).backward()
    (loss,) = [value for key, value in losses.items() if key.startswith('distill')]
    assert loss.isfinite() and loss > 0
    assert all(p.grad.isfinite().all() for p in algorithm.distiller.parameters())


def test_recorders_of_mmrazor():
    """Their records are brought into the same form as ours."""
    recorder = dict(x=dict(type='ModuleOutputs', source='backbone'))
    distiller = dict(
        type='ConfigurableDistiller',
        student_recorders=recorder,
        teacher_recorders=recorder,
        distill_losses=dict(loss_x=dict(type='ChannelWiseDivergence')),
        loss_forward_mappings=dict(
            loss_x={
                key: dict(from_student=student, recorder='x', data_idx=3)
                for key, student in dict(preds_S=True, preds_T=False).items()
            }
        ),
    )
    algorithm = distill(
        teacher=pspnet(),
        distiller=distiller,
        teacher_precision='bf16',
        teacher_channels_last=True,
    )
    (maps,) = features(algorithm, images())
    assert len(maps) == 4
    assert all(x.dtype == torch.float32 and x.is_contiguous() for x in maps)
    assert algorithm(images(), samples(), mode='loss')['distill.loss_x'].isfinite()


@pytest.mark.parametrize(
    ('precision', 'channels_last', 'amp', 'compile_'),
    [
        ('bf16', False, True, False),
        ('bf16', True, False, False),
        ('fp16', True, False, False),
        (None, True, True, False),
        ('bf16', True, False, DYNAMO),
    ],
)
@pytest.mark.parametrize('kind', ['DCN', 'DCNv2'])
def test_operators_of_mmcv(mmdet, kind, precision, channels_last, amp, compile_):
    """The deformable convolutions of the zoo's Cascade Mask R-CNN know no bfloat16 and one layout."""
    if precision == 'fp16' and torch.__version__.startswith('2.1.'):
        pytest.skip('torch 2.1 has no float16 autocast on the CPU')
    teacher = retinanet()
    teacher['backbone'].update(
        depth=50,
        dcn=dict(type=kind, deform_groups=1, fallback_on_stride=False),
        stage_with_dcn=(False, True, False, False),
    )
    teacher['neck']['in_channels'] = [32, 64, 128, 256]
    model = teacher_of(teacher)
    paths = [pair('neck.fpn_convs.0.conv')]
    plain = distill(*paths, student=retinanet(), teacher=copy.deepcopy(model))
    fast = distill(
        *paths,
        student=retinanet(),
        teacher=model,
        teacher_precision=precision,
        teacher_channels_last=channels_last,
        teacher_compile=compile_,
    )
    (expected,), (found,) = features(plain, images(size=64)), features(fast, images(size=64), amp)
    error = (found.float() - expected).norm() / expected.norm()
    assert 1e-4 < error < BOUNDS['bf16']


def test_replacing_a_record_does_not_hide_that_it_was_overwritten():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True))
    recorder = FeatureRecorder('0')
    recorder.initialize(model)
    with recorder, torch.no_grad():
        model(images())
    recorder.convert(torch.Tensor.double)
    with pytest.raises(RuntimeError, match='overwritten in place'):
        recorder.get_record_data()


def graphs():
    """How many graphs were made since the last call."""
    count = counters['stats']['unique_graphs']
    counters.clear()
    return count


@pytest.mark.parametrize(
    ('config', 'path', 'compile_'),
    [
        (pspnet(8, 16), BOTTLENECK, True),
        (pspnet(8, 16), BOTTLENECK, DYNAMO),
        (pspnet(8, 16), 'backbone.layer2:input', DYNAMO),
        (upernet_swin(16, 12), FPN, DYNAMO),
    ],
    ids=['inductor', 'psp', 'within the backbone', 'swin'],
)
def test_compiled_features_are_the_same(config, path, compile_):
    teacher = teacher_of(config)
    student = upernet_swin() if path == FPN else pspnet()
    plain = distill(pair(path), student=student, teacher=copy.deepcopy(teacher))
    fast = distill(pair(path), student=student, teacher=teacher, teacher_compile=compile_)
    assert bitwise_equal(plain.state_dict(), fast.state_dict())
    assert list(fast.teacher.state_dict()) == list(plain.teacher.state_dict())
    graphs()
    made = []
    for size in (32, 32, 64):
        (expected,), (feature,) = (features(x, images(size=size)) for x in (plain, fast))
        torch.testing.assert_close(feature, expected, rtol=1e-4, atol=1e-4)
        made.append(graphs())
    assert made[0] > 0 and made[1] == 0
    # images to predict have any size, and come once
    data = dict(inputs=list(images(size=40)), data_samples=samples())
    fast.frozen_teacher.predict(data, fast.data_preprocessor)
    assert graphs() == 0


def test_training_with_a_compiled_teacher():
    teacher = teacher_of(pspnet(8, 16))
    found = []
    for kwargs in ({}, dict(teacher_compile=DYNAMO)):
        algorithm = distill(teacher=copy.deepcopy(teacher), **kwargs).train()
        for twin in (algorithm, copy.deepcopy(algorithm)):
            torch.manual_seed(0)
            losses = twin(images(), samples(), mode='loss')
            total(losses).backward()
            found.append((losses, twin.student.backbone.layer1[0].conv1.weight.grad))
    expected, gradient = found[0]
    for losses, grad in found[1:]:
        assert set(losses) == set(expected)
        for name in expected:
            torch.testing.assert_close(losses[name], expected[name])
        torch.testing.assert_close(grad, gradient)


def test_compiled_teacher_records_modules_only():
    method = dict(x=dict(type='MethodOutputs', source='mmseg.models.PSPHead.cls_seg'))
    with pytest.raises(ValueError, match='teacher_compile needs recorders of the outputs'):
        distill(
            teacher_compile=True,
            distiller=feature_distiller(student_recorders=method, teacher_recorders=method),
        )


def test_cuda_graphs_begin_a_step_once(monkeypatch):
    # on a GPU each compiled module would else begin one, and overwrite what it gets from the last
    plain, fast = distill(), distill(teacher_compile=DYNAMO)
    begun = []
    monkeypatch.setattr(speed, 'begin_graph_step', lambda: begun.append(None))
    plain.frozen_teacher.extract_features(images())
    assert not begun
    fast.frozen_teacher.extract_features(images())
    assert len(begun) == 1


def test_arguments_of_compile():
    with pytest.raises(TypeError, match=r"teacher_compile must be .*got 'max-autotune'"):
        distill(teacher_compile='max-autotune')


def test_unknown_precision():
    with pytest.raises(ValueError, match=r"teacher_precision must be one of .*bf16.*got 'half'"):
        distill(teacher_precision='half')


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
@pytest.mark.parametrize('precision', ['bf16', 'fp16'])
def test_features_are_the_same_on_a_gpu(precision):
    teacher = teacher_of(pspnet(8, 16))
    plain = distill(teacher=copy.deepcopy(teacher)).cuda()
    fast = distill(teacher=teacher, teacher_precision=precision, teacher_channels_last=True).cuda()
    found = []
    for algorithm in (plain, fast):
        found += algorithm.frozen_teacher.extract_features(images().cuda()).values()
    expected, feature = found
    assert feature.dtype == torch.float32 and feature.is_contiguous()
    assert (feature - expected).norm() < BOUNDS[precision] * expected.norm()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_cuda_graphs_give_the_same_features():
    teacher = teacher_of(pspnet(8, 16))
    plain = distill(teacher=copy.deepcopy(teacher)).cuda()
    fast = distill(teacher=teacher, teacher_compile=dict(mode='reduce-overhead')).cuda()
    for seed in range(5):  # the first two runs warm up and record
        found = []
        for algorithm in (plain, fast):
            inputs = images(seed=seed).cuda()
            found += algorithm.frozen_teacher.extract_features(inputs).values()
        expected, feature = found
        # convolutions in TF32
        assert (feature - expected).norm() < BOUNDS['fp16'] * expected.norm()
