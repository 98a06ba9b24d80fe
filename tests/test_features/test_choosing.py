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
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope
from mmseg.registry import MODELS
from zoo import read_theirs

from rawkd_mm.compat import has_mmcv_ops
from rawkd_mm.features import (
    AutoFeatureError,
    FeatureSource,
    blank_samples,
    dry_run,
    find_features,
    find_memory,
    list_features,
    match_features,
    measure_feature,
)
from rawkd_mm.features.choosing import Feature
from rawkd_mm.features.probe import without_traces

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
# What runs several times: a dropout for three maps (DANet), a head in a training iteration (PointRend).
RUN_SEVERAL_TIMES = {
    'DAHead': (head('DAHead', pam_channels=4), 'dropout:input[run=2]', 'dropout:input[run=2]'),
    'PointHead': (
        [
            FCN,
            head(
                'PointHead',
                ALL,
                num_fcs=1,
                coarse_pred_each_layer=True,
                norm_cfg=dict(type='BN1d'),
            ),
        ],
        '0.convs[run=0]',
        '0.convs',
    ),
}
# What the masks are products of, for heads that classify no positions.
MASK_CLASSIFICATION = {'Mask2FormerHead', 'MaskFormerHead'}
# Those that need weights of other projects; the last has neither classes nor masks.
WITH_OTHERS_WEIGHTS = {'SideAdapterCLIPHead', 'VPDDepthHead'}
# On a backbone of its own: a transformer's tokens.
ON_VIT = {'DPTHead': 'project', 'SegmenterMaskTransformerHead': 'patch_proj:tokens'}
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
    known = {*FOUND, *WITH_BACKBONE, *RUN_SEVERAL_TIMES, *ON_VIT, *NO_HEADS}
    known |= {*MASK_CLASSIFICATION, *WITH_OTHERS_WEIGHTS}
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
    feature = found[source.run or 0]
    assert (len(found) == 1 or source.run is not None) and feature.dim() == 4
    with torch.no_grad():
        assert torch.equal(classifier(feature), logits[-1])


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


@pytest.mark.parametrize('role', ['student', 'teacher'])
@pytest.mark.parametrize('name', RUN_SEVERAL_TIMES)
def test_what_runs_several_times(name, role):
    needs_ops(name)
    config, *paths = RUN_SEVERAL_TIMES[name]
    model = segmentor(config)
    (feature,) = find_features(model, role, IMAGE)
    assert feature.source == FeatureSource.parse(f'decode_head.{paths[role == "teacher"]}')
    check_it_is_what_is_classified(model, feature.source, head_path(feature.source))


@pytest.mark.parametrize('name', RUN_SEVERAL_TIMES)
def test_the_run_of_a_training_is_the_one_whose_loss_is_computed(name):
    """The distilled feature is the one that the main classifier gets for its loss, in training too."""
    needs_ops(name)
    config, path, _ = RUN_SEVERAL_TIMES[name]
    student = segmentor_config(config)
    if isinstance(config, list):
        student.update(type='CascadeEncoderDecoder', num_stages=len(config))
        student['train_cfg'] = ConfigDict(
            num_points=8, oversample_ratio=3, importance_sample_ratio=0.75
        )
    source = f'decode_head.{path}'
    distiller = feature_distiller(dict(student=source, teacher='decode_head.bottleneck'))
    algorithm = distill(student=student, distiller=distiller).train()
    head = algorithm.student.decode_head
    head = head[0] if isinstance(config, list) else head
    head.dropout.p = 0.0  # what is classified is then what was given to it
    classified = []
    head.conv_seg.register_forward_hook(lambda m, args, out: classified.append(args[0]))
    losses = algorithm(images(size=64), samples(size=64), mode='loss')
    (found,) = algorithm.distiller.last_comparison.pairs.values()
    assert torch.equal(found.student, classified[0])
    (key,) = [k for k in losses if k.startswith('distill')]
    assert losses[key].isfinite() and 'run' in key


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
        head('SegmenterMaskTransformerHead'), in_channels=8, in_index=0, num_heads=2,
        embed_dims=8, num_layers=1, norm_cfg=dict(type='LN'),
    )  # fmt: skip


@pytest.mark.parametrize('role', ['student', 'teacher'])
def test_segmenters_masks_are_products_of_its_tokens(role):
    config = pspnet()
    config.pop('auxiliary_head')
    config['backbone'] = dict(
        type='VisionTransformer', img_size=64, patch_size=16, embed_dims=8, num_layers=2,
        num_heads=2, out_indices=(1,), final_norm=True, with_cls_token=True,
    )  # fmt: skip
    config['decode_head'] = segmenter()
    model = build(config).eval()
    (feature,) = find_features(model, role, (3, 64, 96))
    assert feature.source.text == 'decode_head.patch_proj:tokens'
    assert (feature.shape, feature.stride) == ((8, 4, 6), 16)
    found = []
    head = model.decode_head
    handles = [
        module.register_forward_hook(lambda m, args, out: found.append(out))
        for module in (head.patch_proj, head.classes_proj)
    ]
    inputs = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        masks = model(inputs, mode='tensor')
    for handle in handles:
        handle.remove()
    source = feature.source
    capture = dry_run(model, (3, 64, 64), [source], role).capture
    with torch.no_grad(), capture.record(model) as recording:
        model(inputs, mode='tensor')
    pixels = torch.nn.functional.normalize(capture.features(recording, role)[source], dim=1)
    classes = torch.nn.functional.normalize(found[1], dim=2)
    products = torch.einsum('bkc,bchw->bhwk', classes, pixels)
    torch.testing.assert_close(head.mask_norm(products).permute(0, 3, 1, 2), masks)


def mask_former(kind):
    """A segmentor of mask classification, narrow, from the published config."""
    file = dict(
        Mask2FormerHead='mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py',
        MaskFormerHead='maskformer/maskformer_r50-d32_8xb2-160k_ade20k-512x512.py',
    )[kind]
    model = read_theirs(file).model
    model.backbone.update(depth=18, base_channels=8, stem_channels=8, init_cfg=None)
    model.backbone.pop('pretrained', None)
    model.decode_head.in_channels = [8, 16, 32, 64]
    return build(model)


@pytest.mark.usefixtures('mmdet')
@pytest.mark.parametrize('kind', sorted(MASK_CLASSIFICATION))
def test_mask_features_and_memory(kind):
    model = mask_former(kind).eval()
    (feature,) = find_features(model, 'teacher', (3, 128, 64))
    assert feature.source.text == 'decode_head.pixel_decoder[0]'
    assert (feature.shape, feature.stride) == ((256, 32, 16), 4)
    memory = find_memory(model, 'teacher', (3, 128, 64))
    if kind == 'MaskFormerHead':
        assert [(f.source.text, f.stride) for f in memory] == [('decode_head.pixel_decoder[1]', 32)]
    else:
        assert [(f.source.text, f.stride) for f in memory] == [
            (f'decode_head.pixel_decoder[1][{i}]', s) for i, s in ((2, 8), (1, 16), (0, 32))
        ]
    # masks of a query are what the map gives of the query's embedding
    source, head = feature.source, model.decode_head
    seen = []
    handle = head.mask_embed.register_forward_hook(lambda m, args, out: seen.append(out))
    capture = dry_run(model, (3, 64, 64), [source], 'teacher').capture
    sample = blank_samples(torch.zeros(1, 3, 128, 64))
    with torch.no_grad(), capture.record(model) as recording:
        features = model.extract_feat(torch.randn(1, 3, 128, 64))
        _, masks = head(features, sample)
    handle.remove()
    found = capture.features(recording, 'teacher')[source]
    last = seen[-1][-1] if seen[-1].dim() == 4 else seen[-1]
    torch.testing.assert_close(torch.einsum('bqc,bchw->bqhw', last, found), masks[-1])


@pytest.mark.usefixtures('mmdet')
@pytest.mark.parametrize(
    ('config', 'texts'),
    [
        ('detr/detr_r18_8xb2-500e_coco.py', ['encoder:tokens']),
        (
            'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
            [f'encoder:tokens[{i}]' for i in range(4)],
        ),
    ],
)
def test_memory_of_detectors_with_queries(config, texts):
    """The levels are where the encoder was told that they begin."""
    published = read_theirs(config, 'mmdet').model
    published.backbone.update(depth=18, base_channels=8, init_cfg=None)
    published.neck.in_channels = [8 * c // 64 // (4 if 'r50' in config else 1)
                                  for c in published.neck.in_channels]  # fmt: skip
    published['_scope_'] = 'mmdet'
    model = build(published).eval()
    model.init_weights()
    assert all(f.source.module == 'neck' for f in find_features(model, 'student', (3, 96, 64)))
    memory = find_memory(model, 'student', (3, 96, 64))
    assert [feature.source.text for feature in memory] == texts
    seen = {}

    def keep(module, args, kwargs, output):
        seen.update(kwargs, output=output)

    model.encoder.register_forward_hook(keep, with_kwargs=True)
    inputs = torch.randn(2, 3, 64, 128)
    capture = dry_run(model, (3, 64, 64), [f.source for f in memory], 'student').capture
    with torch.no_grad(), capture.record(model) as recording:
        model(inputs, blank_samples(inputs), mode='tensor')
    shapes = seen.get('spatial_shapes', torch.tensor([[2, 4]])).tolist()
    assert sum(rows * columns for rows, columns in shapes) == seen['output'].shape[1]
    begin = 0
    for feature, (rows, columns) in zip(memory, shapes, strict=True):
        end = begin + rows * columns
        expected = seen['output'][:, begin:end].reshape(2, rows, columns, -1).permute(0, 3, 1, 2)
        assert torch.equal(capture.features(recording, 'student')[feature.source], expected)
        begin = end


def test_heads_that_classify_neither_positions_nor_masks_have_the_backbones_maps():
    model = segmentor(head('PSPHead', pool_scales=(1, 2)))
    model.decode_head = type('VPDDepthHead', (torch.nn.Module,), {'forward': lambda self, x: x})()
    found = find_features(model, 'teacher', IMAGE)
    assert [f.source.text for f in found] == [f'backbone[{i}]' for i in range(4)]


@pytest.mark.usefixtures('mmdet')
def test_detectors_without_a_neck_have_the_backbones_maps():
    config = faster_rcnn()
    config.pop('neck')
    model = build(dict(config, neck=None))
    found = find_features(model, 'student', (3, 128, 128))
    assert [f.stride for f in found] == [4, 8, 16, 32]


def test_what_has_no_part_that_sees_the_image_is_refused():
    class Other(BaseModel):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 1)

        def forward(self, inputs, data_samples=None, mode='tensor'):
            return self.conv(inputs)

    with pytest.raises(AutoFeatureError, match='Other can be chosen.*--features STUDENT=TEACHER'):
        find_features(Other(), 'teacher', IMAGE)


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


def test_levels_without_a_common_stride_give_the_nearest_two():
    student, teacher = made(4, 8), made(16, 32)
    pairs, alone = match_features(student, teacher)
    assert pairs == [(student[1], teacher[0])]
    assert alone == ["the student's neck[0]", "the teacher's neck[1]"]


@pytest.mark.parametrize('stride', [4, 64])
def test_one_map_of_a_teacher_has_the_nearest_level_of_the_student(stride):
    student, (teacher,) = made(8, 16, 32), made(stride)
    pairs, _ = match_features(student, [teacher])
    assert pairs == [(student[0 if stride == 4 else 2], teacher)]


def test_single_features_are_paired_whatever_their_strides():
    assert match_features(made(4), made(32)) == ([(made(4)[0], made(32)[0])], [])


def test_measure():
    model = build(pspnet())
    feature = measure_feature(model, 'backbone[1]', IMAGE)
    assert feature == Feature(FeatureSource('backbone', 1), (8, 8, 8), 8.0)
    with pytest.raises(ValueError, match="no module 'backbone.layer9'"):
        measure_feature(model, 'backbone.layer9', IMAGE)


@pytest.mark.usefixtures('mmdet')
def test_a_student_with_branches_has_the_stage_before_them():
    """TridentNet's last stage gives three maps of an image in training."""
    config = read_theirs('tridentnet/tridentnet_r50-caffe_1x_coco.py', 'mmdet').model
    config.backbone.update(base_channels=8, init_cfg=None)
    config.rpn_head.update(in_channels=128, feat_channels=8)
    config.roi_head.shared_head.init_cfg = None
    config['_scope_'] = 'mmdet'
    model = build(config)
    statistics = {name: value.clone() for name, value in model.named_buffers()}
    (feature,) = find_features(model, 'student', (3, 64, 96))
    assert (feature.source.text, feature.shape) == ('backbone.layer2', (64, 8, 12))
    (of_teacher,) = find_features(model, 'teacher', (3, 64, 96))
    assert (of_teacher.source.text, of_teacher.shape) == ('backbone[0]', (128, 4, 6))
    assert all(torch.equal(statistics[n], value) for n, value in model.named_buffers())
    found = {}
    for name in ('layer2', 'layer3'):
        model.backbone.get_submodule(name).register_forward_hook(
            lambda m, args, out, name=name: found.update({name: len(out)})
        )
    model.train()
    model.backbone(torch.zeros(2, 3, 64, 64))
    assert found == dict(layer2=2, layer3=6)


@pytest.mark.usefixtures('mmdet')
def test_levels_are_found_without_the_head():
    """A cascade's heads take minutes for an empty image on a CPU."""
    model, ran = build(retinanet()), []
    for name in ('neck', 'bbox_head'):
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
    assert len(find_features(model, 'student', (3, 128, 128))) == 5
    assert ran == ['neck']


def test_a_dry_run_leaves_no_cache():
    """SAN's text encoder keeps what it made of the classes: weights that are loaded later count."""
    pytest.importorskip('ftfy')
    with DefaultScope.overwrite_default_scope('mmseg'):  # of its activation
        encoder = MODELS.build(
            dict(
                type='CLIPTextEncoder',
                dataset_name=None,
                vocabulary=['cat', 'dog'],
                templates=['a {}'],
                embed_dims=8,
                num_layers=1,
                num_heads=2,
                output_dims=4,
            )
        )
    with torch.no_grad():
        for value in (encoder.positional_embedding, encoder.text_projection):
            value.normal_()
    with without_traces(encoder):
        before = encoder()
    with torch.no_grad():
        encoder.text_projection.normal_()
    assert not torch.allclose(encoder()[:2], before[:2])


def sequences(model, shape):
    """Names and shapes of what is listed as no map; and of the maps made of tokens."""
    listed = list_features(model, shape, repeats=1)
    others = {f.feature.source.text: f.feature.shape for f in listed if not f.is_map}
    tokens = {f.feature.source.text: f.feature.shape for f in listed if f.feature.source.is_tokens}
    assert all(f.feature.stride > 0 for f in listed if f.is_map)
    return others, tokens, {f.feature.source.text for f in listed}


@pytest.mark.usefixtures('mmdet')
@pytest.mark.parametrize(
    'name', ['detr/detr_r18_8xb2-500e_coco.py', 'dino/dino-4scale_r50_8xb2-12e_coco.py']
)
def test_queries_of_detectors_are_listed_as_no_maps(name):
    config = read_theirs(name, 'mmdet').model
    widths = [8 * c // 64 for c in config.neck.in_channels]
    config.backbone.update(base_channels=8, init_cfg=None)
    config.neck.in_channels = widths
    config.update(num_queries=60, _scope_='mmdet')
    config.encoder.num_layers = 2
    model = build(config)
    model.init_weights()
    others, tokens, names = sequences(model, (3, 96, 64))
    number = 2 if 'detr_' in name else 4
    assert [t for t in tokens if t.startswith('encoder:')] == (
        ['encoder:tokens'] if number == 2 else [f'encoder:tokens[{i}]' for i in range(4)]
    )
    layers = config.decoder.num_layers
    # all layers' queries one behind the other
    decoder = 'decoder' if 'decoder' in others else 'decoder[0]'
    assert others[decoder] == (layers, 60, 256)
    assert others[f'decoder.layers.{layers - 1}'] == (60, 256)
    assert f'decoder.layers.{layers - 1}:tokens' not in names


@pytest.mark.usefixtures('mmdet')
def test_queries_of_mask_classification_are_listed_as_no_maps():
    model = mask_former('Mask2FormerHead').eval()
    others, _, names = sequences(model, (3, 128, 64))
    number = model.decode_head.num_queries
    assert others['decode_head.cls_embed'] == (number, model.decode_head.num_classes + 1)
    assert others['decode_head.transformer_decoder.layers.0'] == (number, 256)
    assert 'decode_head.pixel_decoder[0]' in names


def test_regions_are_no_maps_of_an_image(mmdet):
    model = build(faster_rcnn())
    listed = list_features(model, (3, 64, 64), repeats=1)
    assert not [f for f in listed if f.feature.source.module.startswith('roi_head.bbox_roi')]
    assert [f for f in listed if f.feature.source.module == 'neck']
