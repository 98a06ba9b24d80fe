"""Which features are chosen: for every decode head that mmseg has, and for necks."""

import copy

import pytest
import torch
from helpers import (
    build,
    distill,
    faster_rcnn,
    feature_distiller,
    images,
    pspnet,
    retinanet,
    samples,
)
from mmengine.config import ConfigDict
from mmseg.registry import MODELS

from rawkd_mm.compat import has_mmcv_ops
from rawkd_mm.features import (
    AutoFeatureError,
    FeatureSource,
    find_features,
    match_features,
    measure_feature,
)
from rawkd_mm.features.choosing import Feature

IMAGE = (3, 64, 64)
CLASSES = 5
WIDTHS = (4, 8, 16, 32)  # of the backbone's maps, of strides 4, 8, 8, 8


def head(kind, levels=3, **kwargs):
    """A head on one map of the backbone (a number) or on several (a list)."""
    if isinstance(levels, list):
        where = dict(in_index=levels, in_channels=[WIDTHS[i] for i in levels])
    else:
        where = dict(in_index=levels, in_channels=WIDTHS[levels])
    given = dict(
        type=kind,
        channels=8,
        num_classes=CLASSES,
        norm_cfg=dict(type='BN'),
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True),
    )
    return {**given, **where, **kwargs}


ALL = [0, 1, 2, 3]
FCN = head('FCNHead', 2, num_convs=1, concat_input=False)
KERNEL_UPDATE = dict(
    type='KernelUpdateHead',
    num_classes=CLASSES,
    num_ffn_fcs=2,
    num_heads=2,
    num_mask_fcs=1,
    feedforward_channels=8,
    in_channels=8,
    out_channels=8,
    dropout=0.0,
    conv_kernel_size=1,
    ffn_act_cfg=dict(type='ReLU', inplace=True),
    with_ffn=True,
    feat_transform_cfg=dict(conv_cfg=dict(type='Conv2d'), act_cfg=None),
    kernel_updator_cfg=dict(
        type='KernelUpdator',
        in_channels=8,
        feat_channels=8,
        out_channels=8,
        act_cfg=dict(type='ReLU', inplace=True),
        norm_cfg=dict(type='LN'),
    ),
)

# What is found in each head, or why nothing is. A list of heads is a cascade.
FOUND = {
    'ANNHead': (head('ANNHead', [2, 3], project_channels=4), 'context'),
    'APCHead': (head('APCHead', pool_scales=(1, 2)), 'bottleneck'),
    'ASPPHead': (head('ASPPHead', dilations=(1, 2)), 'bottleneck'),
    'CCHead': (head('CCHead', recurrence=1), 'conv_cat'),
    'DMHead': (head('DMHead', filter_sizes=(1, 3)), 'bottleneck'),
    'DNLHead': (head('DNLHead'), 'conv_cat'),
    'DepthwiseSeparableASPPHead': (
        head('DepthwiseSeparableASPPHead', dilations=(1, 2), c1_in_channels=4, c1_channels=4),
        'sep_bottleneck',
    ),
    'DepthwiseSeparableFCNHead': (
        head('DepthwiseSeparableFCNHead', num_convs=2, concat_input=False), 'convs',
    ),
    'EMAHead': (head('EMAHead', ema_channels=8, num_bases=4, num_stages=1), 'conv_cat'),
    'EncHead': (
        head('EncHead', [1, 2, 3], num_codes=4, use_se_loss=False, add_lateral=False),
        'enc_module[1]',
    ),
    'FCNHead': (head('FCNHead', num_convs=0, concat_input=False, channels=32), 'convs'),
    'FPNHead': (head('FPNHead', ALL, feature_strides=[4, 8, 8, 8]), 'dropout:input'),
    'GCHead': (head('GCHead'), 'conv_cat'),
    'ISAHead': (head('ISAHead', isa_channels=4, down_factor=(4, 4)), 'out_conv'),
    'IterativeDecodeHead': (
        dict(
            type='IterativeDecodeHead',
            num_stages=1,
            kernel_update_head=[KERNEL_UPDATE],
            kernel_generate_head=head('PSPHead', pool_scales=(1, 2)),
        ),
        'kernel_generate_head.bottleneck',
    ),
    'LRASPPHead': (head('LRASPPHead', [0, 1, 3], branch_channels=(4, 4),
             input_transform='multiple_select'), 'conv_ups.conv_up0'),
    'LightHamHead': (
        head('LightHamHead', [1, 2, 3], ham_channels=8, ham_kwargs=dict(MD_R=4)), 'align',
    ),
    'NLHead': (head('NLHead'), 'conv_cat'),
    'OCRHead': ([FCN, head('OCRHead', ocr_channels=4)], '1.object_context_block'),
    'PSAHead': (head('PSAHead', mask_size=(8, 8)), 'bottleneck'),
    'PSPHead': (head('PSPHead', pool_scales=(1, 2)), 'bottleneck'),
    'SETRMLAHead': (head('SETRMLAHead', [1, 2, 3, 3], mla_channels=2), 'dropout:input'),
    'SETRUPHead': (
        head('SETRUPHead', num_convs=1, up_scale=2, kernel_size=1, init_cfg=None), 'up_convs.0',
    ),
    'STDCHead': (
        head('STDCHead', num_convs=1, concat_input=False, boundary_threshold=0.1), 'convs',
    ),
    'SegformerHead': (head('SegformerHead', ALL), 'fusion_conv'),
    'UPerHead': (head('UPerHead', ALL, pool_scales=(1, 2)), 'fpn_bottleneck'),
}  # fmt: skip
WITH_BACKBONE = {
    'DDRHead': (dict(type='DDRNet'), 'head'),
    'PIDHead': (dict(type='PIDNet', num_stem_blocks=1, num_branch_blocks=1), 'i_head.act'),
}
# With the reason why they are refused as students.
FOUND_IN_TEACHERS = {
    'DAHead': (head('DAHead', pam_channels=4), 'conv_seg:input', 'runs 3 times'),
    'PointHead': (
        [FCN, head('PointHead', ALL, num_fcs=1, coarse_pred_each_layer=True)],
        '0.convs',
        'runs that head twice',
    ),
}
REFUSED = {
    'Mask2FormerHead': 'classifies queries',
    'MaskFormerHead': 'classifies queries',
    'SegmenterMaskTransformerHead': 'embeddings of patches with embeddings of classes',
    'SideAdapterCLIPHead': 'compares mask proposals',
    'VPDDepthHead': 'has no classes',
}
# On a backbone of its own: a transformer's tokens.
ON_VIT = {'DPTHead': 'project'}
# Parts of heads.
NO_HEADS = {'KernelUpdateHead', 'KernelUpdator'}


def segmentor(config):
    """A real segmentor with such a head, on a narrow ResNet."""
    model = pspnet()
    model.pop('auxiliary_head')
    model['backbone']['strides'] = (1, 2, 1, 1)
    model['backbone']['norm_cfg'] = dict(type='BN')
    if isinstance(config, list):
        model.update(
            type='CascadeEncoderDecoder',
            num_stages=len(config),
            train_cfg=ConfigDict(num_points=8, oversample_ratio=3, importance_sample_ratio=0.75),
        )
    model['decode_head'] = copy.deepcopy(config)
    torch.manual_seed(0)
    return build(model)


def vit(config):
    model = pspnet()
    model.pop('auxiliary_head')
    model['backbone'] = dict(
        type='VisionTransformer', img_size=64, patch_size=16, embed_dims=8, num_layers=4,
        num_heads=2, out_indices=(0, 1, 2, 3), final_norm=False, with_cls_token=True,
        output_cls_token=True,
    )  # fmt: skip
    model['decode_head'] = config
    return build(model)


def test_every_head_of_mmseg_is_known():
    registered = {
        name
        for name, kind in MODELS.module_dict.items()
        if kind.__module__.startswith('mmseg.models.decode_heads')
    }
    known = {*FOUND, *WITH_BACKBONE, *FOUND_IN_TEACHERS, *REFUSED, *ON_VIT, *NO_HEADS}
    assert registered == known


def needs_ops(name):
    if name in ('PSAHead', 'CCHead', 'PointHead') and not has_mmcv_ops():
        pytest.skip('the compiled operators of MMCV are not installed')


def check_it_is_what_is_classified(model, source, head_path, image=IMAGE):
    """The classifier makes of the feature what the head makes of the image."""
    for part in model.modules():
        # a classifier of zeros would agree with everything
        if isinstance(part, torch.nn.Conv2d):
            torch.nn.init.normal_(part.weight, std=0.1)
    model.eval()
    found, logits = [], []
    module = model.get_submodule(source.module)
    if source.is_input:
        handle = module.register_forward_pre_hook(lambda m, args: found.append(args[0].clone()))
    else:
        handle = module.register_forward_hook(lambda m, args, out: found.append(
            (out if source.index is None else out[source.index]).clone()))  # fmt: skip
    classifier = model.get_submodule(head_path).conv_seg
    other = classifier.register_forward_hook(lambda m, args, out: logits.append(out.clone()))
    with torch.no_grad():
        try:
            model(torch.randn(1, *image), mode='tensor')
        except TypeError:
            assert head_path.endswith('.0')  # PointRend's tensor mode is unfinished
    handle.remove()
    other.remove()
    assert len(found) == 1 and found[0].dim() == 4
    with torch.no_grad():
        assert torch.equal(classifier(found[0]), logits[-1])


def head_path(source):
    """Path of the head that has the classifier."""
    parts = source.module.split('.')
    nested = parts[1] in ('0', '1', 'kernel_generate_head')
    return '.'.join(parts[: 1 + nested])


@pytest.mark.parametrize('role', ['student', 'teacher'])
@pytest.mark.parametrize('name', FOUND)
def test_the_last_feature_before_the_classifier(name, role):
    needs_ops(name)
    config, path = FOUND[name]
    model = segmentor(config)
    before = {module: module.training for module in model.modules()}
    # LRASPP pools over 49x49 positions
    image = (3, 400, 400) if name == 'LRASPPHead' else IMAGE
    (feature,) = find_features(model, role, image)
    assert feature.source == FeatureSource.parse(f'decode_head.{path}')
    assert feature.stride == image[1] / feature.shape[1]
    assert {module: module.training for module in model.modules()} == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    if name == 'IterativeDecodeHead':
        return  # its kernels go on where the classifier ends
    check_it_is_what_is_classified(model, feature.source, head_path(feature.source), image)


@pytest.mark.parametrize('name', WITH_BACKBONE)
def test_heads_with_their_own_backbones(name):
    backbone, path = WITH_BACKBONE[name]
    model = pspnet()
    model.pop('auxiliary_head')
    model['backbone'] = dict(channels=8, ppm_channels=8, norm_cfg=dict(type='BN'), **backbone)
    model['decode_head'] = dict(head(name), in_channels=32)
    model = build(model)
    (feature,) = find_features(model, 'student', IMAGE)
    assert feature.source == FeatureSource.parse(f'decode_head.{path}')
    check_it_is_what_is_classified(model, feature.source, 'decode_head')


@pytest.mark.parametrize('name', FOUND_IN_TEACHERS)
def test_heads_of_teachers_only(name):
    needs_ops(name)
    config, path, reason = FOUND_IN_TEACHERS[name]
    model = segmentor(config)
    (feature,) = find_features(model, 'teacher', IMAGE)
    assert feature.source == FeatureSource.parse(f'decode_head.{path}')
    check_it_is_what_is_classified(model, feature.source, head_path(feature.source))
    with pytest.raises(AutoFeatureError, match=reason):
        find_features(model, 'student', IMAGE)


def test_da_head_without_dropout_can_be_a_student():
    model = segmentor(head('DAHead', pam_channels=4, dropout_ratio=0))
    (feature,) = find_features(model, 'student', IMAGE)
    assert feature.source == FeatureSource('decode_head.conv_seg', is_input=True)


def test_heads_on_tokens():
    config = dict(
        head('DPTHead', embed_dims=8, post_process_channels=[4, 4, 4, 4]),
        in_channels=[8, 8, 8, 8], in_index=[0, 1, 2, 3], input_transform='multiple_select',
    )  # fmt: skip
    model = vit(config)
    (feature,) = find_features(model, 'student', IMAGE)
    assert feature.source == FeatureSource('decode_head.project')
    check_it_is_what_is_classified(model, feature.source, 'decode_head')


def segmenter():
    return dict(
        head('SegmenterMaskTransformerHead'), in_channels=8, in_index=3, num_heads=2,
        embed_dims=8, num_layers=1,
    )  # fmt: skip


@pytest.mark.parametrize('name', REFUSED)
def test_heads_without_a_classified_map_are_refused(name):
    """Those that need weights of other projects are stood in for by their name alone."""
    if name == 'SegmenterMaskTransformerHead':
        model = vit(segmenter())
    else:
        model = segmentor(head('PSPHead', pool_scales=(1, 2)))
        model.decode_head = type(name, (torch.nn.Module,), {})()
    with pytest.raises(AutoFeatureError, match=REFUSED[name]) as error:
        find_features(model, 'student', IMAGE)
    assert name in str(error.value) and '--features STUDENT=TEACHER' in str(error.value)


def test_what_is_no_segmentor_and_has_no_neck_is_refused():
    with pytest.raises(AutoFeatureError, match='neither one of mmseg'):
        find_features(build(pspnet()).backbone, 'teacher', IMAGE)


def test_a_feature_is_the_input_of_a_module_in_training_too():
    """The student's feature before dropout, and not what dropout makes of it."""
    student = segmentor_config(FOUND['FPNHead'][0])
    algorithm = distill(
        student=student,
        distiller=feature_distiller(
            dict(student='decode_head.dropout:input', teacher='decode_head.bottleneck')
        ),
    ).train()
    seen = []
    algorithm.student.decode_head.dropout.register_forward_hook(
        lambda m, args, out: seen.extend([args[0], out])
    )
    losses = algorithm(images(size=64), samples(size=64), mode='loss')
    assert not torch.equal(*seen)
    (name,) = [k for k in losses if k.startswith('distill')]
    assert name == 'distill.loss_cad_decode_head.dropout.input'
    gradient = torch.autograd.grad(losses[name], seen[0], retain_graph=True)[0]
    assert gradient.abs().sum() > 0
    with pytest.raises(RuntimeError):  # what is behind the dropout has no part in it
        torch.autograd.grad(losses[name], seen[1])


def segmentor_config(config):
    model = pspnet()
    model.pop('auxiliary_head')
    model['backbone']['norm_cfg'] = dict(type='BN')
    model['decode_head'] = copy.deepcopy(config)
    return model


@pytest.mark.usefixtures('mmdet')
def test_levels_of_necks():
    one, two = build(retinanet()), build(faster_rcnn())
    image = (3, 256, 256)
    features = [find_features(m, r, image) for m, r in ((one, 'student'), (two, 'teacher'))]
    assert [f.source.text for f in features[0]] == [f'neck[{i}]' for i in range(5)]
    assert [f.stride for f in features[0]] == [8, 16, 32, 64, 128]
    assert [f.stride for f in features[1]] == [4, 8, 16, 32, 64]
    pairs, alone = match_features(*features)
    assert [(a.source.text, b.source.text) for a, b in pairs] == [
        (f'neck[{i}]', f'neck[{i + 1}]') for i in range(4)
    ]
    assert alone == ["the student's neck[4]", "the teacher's neck[0]"]


def made(*strides):
    return [Feature(FeatureSource('neck', i), (4, 64, 64), s) for i, s in enumerate(strides)]


def test_levels_without_a_common_stride_are_refused():
    with pytest.raises(AutoFeatureError, match='strides 4, 8, the teacher of 16, 32, and none'):
        match_features(made(4, 8), made(16, 32))


def test_single_features_are_paired_whatever_their_strides():
    assert match_features(made(4), made(32)) == ([(made(4)[0], made(32)[0])], [])


def test_measure():
    model = build(pspnet())
    feature = measure_feature(model, 'backbone[1]', IMAGE)
    assert feature == Feature(FeatureSource('backbone', 1), (8, 8, 8), 8.0)
    with pytest.raises(ValueError, match="no module 'backbone.layer9'"):
        measure_feature(model, 'backbone.layer9', IMAGE)
