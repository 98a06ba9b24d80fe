"""Checkpoints of older versions and of other programs load as MMEngine loads them."""

import importlib
import inspect
import pkgutil
import re

import pytest
import torch
from helpers import bitwise_equal, distill, feature_distiller, pair, pspnet
from helpers import build as build_model
from mmengine.config import ConfigDict
from mmengine.runner import load_checkpoint
from zoo import forget_pretrained, read_theirs

from rawkd_mm.training import CheckpointError, load_all_weights

NECK = pair('neck[0]', loss=dict(type='LADLoss'))


def published(name):
    """A published model of mmdet, without weights to begin with."""
    config = read_theirs(name, 'mmdet').model
    forget_pretrained(config)
    return ConfigDict(_scope_='mmdet', **config)


def weights_of(config, seed=1):
    """Weights of a model, none of which is an initial value; buffers that are fixed stay."""
    torch.manual_seed(seed)
    weights = build_model(config).state_dict()
    for value in weights.values():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) + 0.1)
    return weights


def renamed(weights, pattern, replacement, versions=True):
    """The same under other names, as an older version has saved them."""
    result = type(weights)((re.sub(pattern, replacement, k), v) for k, v in weights.items())
    assert list(result) != list(weights)
    if versions:
        result._metadata = {k: dict(version=1) for k in weights._metadata}
    return result


def saved(path, weights, **kwargs):
    torch.save(dict(state_dict=weights, **kwargs), path)
    return str(path)


def check_as_mmengine(teacher, path, config, besides=()):
    """The teacher's tensors are those that MMEngine's load_checkpoint gives the same model.

    But for those whose name ends so, which are not there in MMEngine's.
    """
    expected = build_model(config)
    load_checkpoint(expected, path, map_location='cpu')
    expected = expected.state_dict()
    found = teacher.state_dict()
    assert list(found) == list(expected)
    different = {n for n in expected if not torch.equal(found[n], expected[n])}
    assert different == {n for n in expected if n.endswith(tuple(besides))}


def distilled(config, path, *pairs, **kwargs):
    distiller = feature_distiller(*pairs, dry_run_shape=(3, 128, 128))
    return distill(student=config, teacher=config, teacher_ckpt=path, distiller=distiller, **kwargs)


@pytest.mark.parametrize('versions', [True, False])
@pytest.mark.parametrize(
    'name',
    [
        'dcn/faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py',
        'dcnv2/faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco.py',
    ],
)
def test_deformable_convolutions(tmp_path, mmdet, name, versions):
    """Old checkpoints call the offsets ``conv2_offset``; MMCV's modules rename them.

    MMEngine's own ``load_checkpoint`` of today keeps the old names from the modules, so that the
    offsets stay 0 there, with a line in the log: all else is compared with it.
    """
    config = published(name)
    weights = weights_of(config)
    old = renamed(weights, r'conv2\.conv_offset', 'conv2_offset', versions)
    path = saved(tmp_path / 'old.pth', old)
    algorithm = distilled(config, path, NECK)
    offsets = ('conv_offset.weight', 'conv_offset.bias')
    check_as_mmengine(algorithm.teacher, path, config, besides=offsets)
    assert algorithm.frozen_teacher.absent == []
    assert bitwise_equal(algorithm.teacher.state_dict(), weights)


def test_missing_offsets_are_still_an_error(tmp_path, mmdet):
    """Strict as before: what runs must be there, under whichever name."""
    config = published('dcn/faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py')
    old = renamed(weights_of(config), r'conv2\.conv_offset', 'conv2_offset')
    del old['backbone.layer3.2.conv2_offset.weight']
    path = saved(tmp_path / 'old.pth', old)
    with pytest.raises(
        CheckpointError, match=r'1 are missing \(backbone\.layer3\.2\.conv2\.conv_offset\.weight\)'
    ):
        distilled(config, path, NECK)


def test_offsets_of_another_shape_are_still_an_error(tmp_path, mmdet):
    config = published('dcn/faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py')
    old = renamed(weights_of(config), r'conv2\.conv_offset', 'conv2_offset')
    name = 'backbone.layer3.2.conv2_offset.bias'
    old[name] = old[name][:-1].clone()
    path = saved(tmp_path / 'old.pth', old)
    with pytest.raises(
        CheckpointError,
        match=r'0 are missing and 1 have another shape '
        r'\(backbone\.layer3\.2\.conv2\.conv_offset\.bias: \(17,\), the model has \(18,\)\)',
    ):
        distilled(config, path, NECK)


def test_names_of_the_version_that_is_saved_are_not_renamed(tmp_path, mmdet):
    """The versions of the modules count: version 2 has no old names, so that these are missing."""
    config = published('dcn/faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py')
    weights = weights_of(config)
    old = renamed(weights, r'conv2\.conv_offset', 'conv2_offset', versions=False)
    old._metadata = weights._metadata
    with pytest.raises(CheckpointError, match='26 are missing .*conv2.conv_offset.weight'):
        distilled(config, saved(tmp_path / 'old.pth', old), NECK)


def test_heads_without_anchors(tmp_path, mmdet):
    """Old checkpoints of FCOS call its convolutions ``fcos_cls``; the head renames them.

    The student inherits the head, so that it must be there.
    """
    config = published('fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py')
    old = renamed(
        weights_of(config), r'bbox_head\.conv_(cls|reg|centerness)', r'bbox_head.fcos_\1', False
    )
    path = saved(tmp_path / 'old.pth', old)
    algorithm = distilled(config, path, NECK, init_student=['bbox_head'])
    check_as_mmengine(algorithm.teacher, path, config)
    algorithm.init_weights()
    assert torch.equal(
        algorithm.student.bbox_head.conv_cls.weight, old['bbox_head.fcos_cls.weight']
    )


def test_standardised_convolutions(tmp_path, mmdet):
    """DetectoRS computes what plain ResNet weights lack (ConvAWS): that is not missing."""
    config = published('detectors/cascade-rcnn_r50-sac_1x_coco.py')
    plain = weights_of(config)
    for name in [n for n in plain if n.endswith(('.weight_gamma', '.weight_beta'))]:
        del plain[name]
    path = saved(tmp_path / 'plain.pth', plain)
    algorithm = distilled(config, path, NECK)
    check_as_mmengine(algorithm.teacher, path, config)
    gamma = algorithm.teacher.backbone.layer2[0].conv2.weight_gamma
    weight = algorithm.teacher.backbone.layer2[0].conv2.weight
    expected = torch.sqrt(weight.flatten(1).var(dim=1) + 1e-5)
    torch.testing.assert_close(gamma.flatten(), expected)


def test_every_module_that_renames_is_known(mmdet):
    """A new one in mmcv, mmseg or mmdet makes this fail: is it loaded as MMEngine loads it?"""
    found = set()
    for package in ('mmcv', 'mmseg.models', 'mmdet.models'):
        module = importlib.import_module(package)
        for _, name, _ in pkgutil.walk_packages(module.__path__, f'{package}.'):
            if name in importlib.sys.modules:
                for kind in vars(importlib.sys.modules[name]).values():
                    if inspect.isclass(kind) and kind.__module__.startswith(
                        ('mmcv', 'mmseg', 'mmdet')
                    ):
                        if '_load_from_state_dict' in vars(kind):
                            found.add(kind.__name__)
    assert found == {
        'DeformConv2dPack',
        'ModulatedDeformConv2dPack',
        'ConvAWS2d',
        'AnchorFreeHead',
        'VFNetHead',  # switches AnchorFreeHead's renaming off
        'SingleStageDetector',  # an RPN's weights as those of its head
        'TwoStageDetector',  # the reverse
        'SemiBaseDetector',  # a detector's weights for its student and teacher
        'Mask2FormerVideo',  # a panoptic head's as a tracking head's
    }


def test_single_stage_weights_in_a_two_stage_teacher(tmp_path, mmdet):
    """MMDetection's detector renames ``bbox_head`` to ``rpn_head`` while it loads."""
    config = published('faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py')
    weights = renamed(weights_of(config), r'^rpn_head\.', 'bbox_head.')
    for name in [n for n in weights if n.startswith('roi_head.')]:
        del weights[name]
    path = saved(tmp_path / 'single.pth', weights)
    algorithm = distilled(config, path, NECK, init_student=['rpn_head'])
    there = algorithm.teacher.rpn_head.rpn_conv.weight
    assert torch.equal(there, weights['bbox_head.rpn_conv.weight'])


def test_versions_are_kept_below_a_prefix(tmp_path, mmdet):
    """Saved from MMRazor's algorithm: the versions stand below the prefix, too."""
    config = published('dcn/faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py')
    weights = weights_of(config)
    old = renamed(weights, r'conv2\.conv_offset', 'conv2_offset', versions=False)
    below = type(old)((f'architecture.{k}', v) for k, v in old.items())
    below._metadata = {f'architecture.{k}': v for k, v in weights._metadata.items()}
    path = saved(tmp_path / 'student.pth', below)
    with pytest.raises(CheckpointError, match='26 are missing'):
        distilled(config, path, NECK)
    below._metadata = {k: dict(version=1) for k in below._metadata}
    path = saved(tmp_path / 'old_student.pth', below)
    teacher = distilled(config, path, NECK).teacher
    name = 'layer2.0.conv2.conv_offset.weight'
    there = teacher.backbone.state_dict()[name]
    assert torch.equal(there, weights[f'backbone.{name}'])


def test_evaluation_keeps_versions(mmdet):
    """tools/test.py loads a student; an older one's names are renamed there as well."""
    config = published('dcn/faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py')
    weights = weights_of(config)
    old = renamed(weights, r'conv2\.conv_offset', 'conv2_offset')
    model = build_model(config)
    load_all_weights(model, dict(state_dict=old))
    found = model.state_dict()
    assert all(torch.equal(found[n], weights[n]) for n in weights)
    old._metadata = weights._metadata
    with pytest.raises(CheckpointError, match='26 of the model FasterRCNN'):
        load_all_weights(model, dict(state_dict=old))


# Checkpoints of other programs

SMALL = pspnet(8, 16)


@pytest.fixture(scope='module')
def small():
    return weights_of(SMALL)


def teacher_from(path, content, log):
    """The weights of a teacher that was loaded from a file, and what the log said."""
    torch.save(content, path)
    log.clear()
    algorithm = distill(teacher_ckpt=str(path))
    return algorithm.teacher.state_dict(), [x for x in log if 'Loaded the teacher' in x][0]


@pytest.fixture
def log(monkeypatch):
    lines = []
    where = 'rawkd_mm.teachers.weights.print_log'
    monkeypatch.setattr(where, lambda text, *_, **__: lines.append(text))
    return lines


@pytest.mark.parametrize(
    'key', ['model', 'model_state_dict', 'net', 'state_dict_ema', 'model_ema', 'ema_state_dict']
)
def test_weights_below_another_key(tmp_path, small, log, key):
    """Written by Detectron2, DETR, timm and others; the log says which was taken."""
    found, line = teacher_from(tmp_path / 'other.pth', {key: small, 'epoch': 3}, log)
    assert all(torch.equal(found[n], small[n]) for n in small)
    assert f'other.pth, from its {key!r}: ' in line


def test_trained_weights_come_before_their_average(tmp_path, small, log):
    average = {name: torch.zeros_like(value) for name, value in small.items()}
    content = dict(model_ema=average, model=small, optimizer={})
    found, line = teacher_from(tmp_path / 'both.pth', content, log)
    assert all(torch.equal(found[n], small[n]) for n in small)
    assert "from its 'model', not from 'model_ema': " in line


def test_mmengines_own_key_comes_first(tmp_path, small, log):
    """With MMEngine's EMAHook ``state_dict`` is what was evaluated, and MMEngine loads it."""
    other = {f'module.{name}': torch.zeros_like(value) for name, value in small.items()}
    content = dict(ema_state_dict=other, model=other, state_dict=small)
    found, line = teacher_from(tmp_path / 'ema.pth', content, log)
    assert all(torch.equal(found[n], small[n]) for n in small)
    assert 'ema.pth: ' in line


def test_unknown_keys_are_named(tmp_path, small):
    path = tmp_path / 'unknown.pth'
    torch.save(dict(generator=dict(small), epoch=3, args=dict(lr=0.1)), path)
    with pytest.raises(CheckpointError) as error:
        distill(teacher_ckpt=str(path))
    message = str(error.value)
    assert (
        "is no checkpoint: expected a dict of tensors, or one under the key 'state_dict'" in message
    )
    first, second, third = list(small)[:3]
    assert (
        f"it has 'generator' (dict of {first!r}, {second!r}, {third!r}), 'epoch' (int), " in message
    )
    assert "'args' (dict of 'lr')" in message


def test_student_to_evaluate_below_another_key(small):
    model = build_model(SMALL)
    load_all_weights(model, dict(model=small))
    assert all(torch.equal(v, small[n]) for n, v in model.state_dict().items())
    with pytest.raises(CheckpointError, match=r"it has 'generator' \(dict of"):
        load_all_weights(model, dict(generator=small))
