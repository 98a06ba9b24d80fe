"""The size at which the teacher sees the images, and what of its features belongs to them."""

import pytest
import torch
import torch.nn.functional as F
from helpers import distill, feature_distiller, images, pair, preprocessor, pspnet, samples
from mmengine.registry import DefaultScope
from torch import nn

from rawkd_mm.teachers import TeacherInput

PATH = 'backbone[0]'
IMAGES = dict(mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3))


PATCHES = dict(type='TorchTeacher', factory=f'{__name__}.build_patches', images=IMAGES, divisor=16)


def build_patches():
    net = nn.Conv2d(3, 4, 16, stride=16)
    weight = torch.randn(net.weight.shape, generator=torch.Generator().manual_seed(0))
    net.weight.data.copy_(weight)
    return net


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope('mmseg'):
        yield


def of_patches(teacher_input=None, **kwargs):
    distiller = feature_distiller(pair('decode_head.bottleneck', 'features[0]'))
    student = pspnet(data_preprocessor=preprocessor(mean=[1.0] * 3, std=[2.0] * 3))
    return distill(
        teacher=dict(PATCHES),
        distiller=distiller,
        student=student,
        teacher_input=teacher_input,
        **kwargs,
    )


def feature_of(algorithm, x, data_samples=None):
    (feature,) = algorithm.frozen_teacher.extract_features(x, data_samples).values()
    return feature


def normalised(algorithm, x):
    return algorithm.frozen_teacher.renormalize(x, None)


def big(height, width, n=2):
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(1))


# What the teacher sees


@pytest.mark.parametrize(
    ('setting', 'size', 'expected'),
    [
        (None, (50, 70), (64, 80)),
        (dict(scale=1.5), (64, 96), (96, 144)),
        (dict(scale=0.5), (64, 96), (32, 48)),
        (dict(size=48), (64, 128), (48, 96)),
        (dict(size=(32, 48)), (64, 128), (32, 48)),
        (dict(divisor=32), (50, 70), (64, 96)),
    ],
)
def test_resized_images(setting, size, expected):
    algorithm = of_patches(setting)
    x = big(*size)
    resized = F.interpolate(
        normalised(algorithm, x), expected, mode='bilinear', align_corners=False, antialias=True
    )
    found = feature_of(algorithm, x)
    torch.testing.assert_close(found, algorithm.teacher.network(resized), rtol=1e-4, atol=1e-4)
    assert found.shape[2:] == tuple(side // 16 for side in expected)


def test_images_of_a_teacher_that_is_called_by_itself():
    teacher = of_patches().teacher
    x = big(50, 70)
    resized = F.interpolate(x, (64, 80), mode='bilinear', align_corners=False, antialias=True)
    assert torch.equal(teacher(x)[0], teacher.network(resized))


def test_a_teacher_of_mmseg_sees_larger_images_too():
    plain = distill(pair(PATH), seed=2)
    larger = distill(pair(PATH), seed=2, teacher_input=dict(scale=2))
    x = images(size=32)
    doubled = F.interpolate(x, (64, 64), mode='bilinear', align_corners=False, antialias=True)
    assert torch.equal(feature_of(larger, x), feature_of(plain, doubled))
    assert larger.train().loss(x, samples())['distill.loss_cad_backbone.0'].isfinite()


def test_nothing_is_changed_where_nothing_needs_to_be():
    algorithm = of_patches()
    x = big(64, 96)
    assert torch.equal(
        feature_of(algorithm, x), algorithm.teacher.network(normalised(algorithm, x))
    )


@pytest.mark.parametrize(
    ('height', 'cells'), [(64, 4), (71, 4), (72, 4), (73, 5), (79, 5), (80, 5)]
)
def test_padding_is_cut_off(height, cells):
    algorithm = of_patches(dict(fit='pad'))
    x = big(height, 96)
    padded = F.pad(normalised(algorithm, x), (0, 0, 0, -height % 16))
    expected = algorithm.teacher.network(padded)[:, :, :cells]
    found = feature_of(algorithm, x)
    assert found.shape == (2, 4, cells, 6)
    torch.testing.assert_close(found, expected)


def test_padded_parts_of_a_batch_are_the_teachers_padding():
    algorithm = of_patches(dict(scale=2))
    x = big(32, 48)
    batch = samples()
    batch[0].set_metainfo(dict(img_shape=(32, 48)))
    batch[1].set_metainfo(dict(img_shape=(16, 40)))
    x[1, :, 16:], x[1, :, :, 40:] = 7.0, -7.0  # whatever the student's padding is
    seen = algorithm.frozen_teacher._images(x, batch)
    assert seen.shape == (2, 3, 64, 96)
    assert not seen[1, :, 32:].any() and not seen[1, :, :, 80:].any()
    assert seen[0].all() and seen[1, :, :32, :80].all()


def test_the_samples_tell_the_teachers_sizes():
    setting = TeacherInput(scale=2.0, divisor=16, fit='pad')
    (sample, _) = samples(size=20)
    sample.set_metainfo(
        dict(img_shape=(15, 20), batch_input_shape=(20, 20), scale_factor=(0.5, 0.25))
    )
    (scaled,) = setting.samples([sample], (20, 20))
    assert scaled.img_shape == (30, 40) and scaled.batch_input_shape == (48, 48)
    assert scaled.scale_factor == (1.0, 0.5)
    assert not hasattr(scaled, 'gt_sem_seg') and sample.img_shape == (15, 20)


def test_a_detector_as_the_teacher(mmdet):
    from helpers import retinanet

    pairs = feature_distiller(pair('neck[0]'))
    plain, larger = (
        distill(
            student=retinanet(),
            teacher=retinanet(16),
            distiller=pairs,
            seed=3,
            teacher_input=setting,
        )
        for setting in (None, dict(scale=2))
    )
    x = big(64, 64)
    doubled = F.interpolate(x, (128, 128), mode='bilinear', align_corners=False, antialias=True)
    torch.testing.assert_close(feature_of(larger, x), feature_of(plain, doubled))


@pytest.mark.parametrize(
    'settings', [dict(teacher_precision='bf16'), dict(teacher_channels_last=True)]
)
def test_with_speed_settings(settings):
    algorithm, plain = of_patches(dict(fit='pad'), **settings), of_patches(dict(fit='pad'))
    x = big(50, 70)
    found, expected = feature_of(algorithm, x), feature_of(plain, x)
    assert found.dtype == torch.float32 and found.is_contiguous()
    assert (found - expected).norm() < 2e-2 * expected.norm()


# Bad input


@pytest.mark.parametrize(
    ('setting', 'error', 'message'),
    [
        (1.5, TypeError, r'dict\(scale=1.5\)'),
        (dict(scal=1.5), TypeError, r"got {'scal': 1.5}"),
        (dict(scale=0), ValueError, 'scale must be above 0, got 0'),
        (dict(scale=float('nan')), ValueError, 'scale must be above 0, got nan'),
        (dict(scale=2, size=64), ValueError, 'either scale or size'),
        (dict(size=0), ValueError, r'shorter side or \(height, width\)'),
        (dict(size=(1, 2, 3)), ValueError, r'shorter side or \(height, width\)'),
        (dict(divisor=0), ValueError, 'at least 1, got 0'),
        (dict(fit='crop'), ValueError, "one of .*'pad'.*got 'crop'"),
        (dict(size=50, fit='none'), ValueError, 'no multiple of divisor=16'),
    ],
)
def test_wrong_settings(setting, error, message):
    with pytest.raises(error, match=message):
        of_patches(setting)


def test_a_size_that_does_not_fit_and_may_not_be_changed():
    algorithm = of_patches(dict(fit='none'))
    feature_of(algorithm, big(64, 96))
    with pytest.raises(ValueError, match='images of 50x96 pixels.*no multiples of divisor=16'):
        feature_of(algorithm, big(50, 96))


def test_tokens_cannot_be_cut_off():
    timm = pytest.importorskip('timm')
    assert timm
    config = dict(
        type='TimmTeacher',
        model='vit_tiny_patch16_224',
        kwargs=dict(embed_dim=16, depth=1, num_heads=2),
    )
    tokens = pair('decode_head.bottleneck', 'network.blocks.0', align=dict(type='TokensOfMap'))
    distiller = feature_distiller(tokens, loss=dict(type='LADLoss'))
    from rawkd_mm.registry import register_model

    @register_model
    class TokensOfMap(nn.Module):
        def forward(self, x):
            x = F.adaptive_avg_pool2d(x, 4).flatten(2).transpose(1, 2)
            return F.pad(x, (0, 8, 1, 0))

    algorithm = distill(teacher=config, distiller=distiller, teacher_input=dict(fit='pad'))
    with pytest.raises(ValueError, match=r"'network.blocks.0' has the shape .*fit='resize'"):
        feature_of(algorithm, big(50, 50))


def test_losses_of_the_teacher_want_the_students_size():
    recorders = dict(
        head=dict(type='MethodOutputs', source='mmseg.models.decode_heads.PSPHead.cls_seg')
    )
    distiller = dict(
        type='ConfigurableDistiller',
        student_recorders=recorders,
        teacher_recorders=recorders,
        distill_losses=dict(loss_a=dict(type='L2Loss')),
        loss_forward_mappings=dict(
            loss_a=dict(
                s_feature=dict(recorder='head', from_student=True),
                t_feature=dict(recorder='head', from_student=False),
            )
        ),
    )
    with pytest.raises(ValueError, match='teacher_input=.*needs recorders of the outputs'):
        distill(distiller=distiller, teacher_input=dict(scale=2))
