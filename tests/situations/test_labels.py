"""Labels that a model itself maps or leaves out pass; those that would crash a loss do not."""

import importlib
from pathlib import Path

import pytest
import torch
from helpers import build, distill, pspnet, retinanet
from mmengine.config import ConfigDict
from mmengine.registry import DATASETS
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample
from zoo import forget_pretrained, read_theirs

from rawkd_mm.hooks import LabelRangeHook
from rawkd_mm.hooks.label_range_hook import LabelRange, box_labels, map_labels


def small(config, package='mmdet'):
    """A published model with a small backbone in place of its own, which labels do not matter to."""
    model = config.model
    forget_pretrained(model)
    for part in [model, *(v for v in model.values() if isinstance(v, dict))]:
        if isinstance(part.get('backbone'), dict):
            part.backbone = ConfigDict(
                type='ResNet', depth=18, base_channels=4, stem_channels=4, norm_cfg=dict(type='BN')
            )
    model.setdefault('_scope_', package)
    return build(model)


def hook_of(model):
    """The hook as it is in a training of a model."""

    class Runner:
        iter = 4

    Runner.model = model
    hook = LabelRangeHook()
    hook.before_train(Runner)

    def look_at(**parts):
        sample = SegDataSample(metainfo=dict(img_path='5.png'))
        if 'boxes' in parts:
            sample.gt_instances = InstanceData(labels=torch.tensor(parts['boxes']))
        if 'map' in parts:
            labels = torch.tensor(parts['map']).reshape(1, 1, -1)
            sample.gt_sem_seg = PixelData(**{parts.get('key', 'sem_seg'): labels})
        hook.before_train_iter(Runner, 0, dict(data_samples=[sample]))

    return look_at


def test_rpn_alone_on_several_classes(mmdet):
    """MMDetection's RPN sets all labels to 0 (dyabel/detpro#16)."""
    look_at = hook_of(small(read_theirs('rpn/rpn_r50_fpn_1x_coco.py', 'mmdet')))
    look_at(boxes=[0, 2, 79])


def test_rpn_trains_on_several_classes(mmdet):
    """What is let pass does not crash: the loss of an RPN on labels far beyond its one class."""
    from mmdet.structures import DetDataSample

    config = read_theirs('rpn/rpn_r50_fpn_1x_coco.py', 'mmdet').model
    forget_pretrained(config)
    config.backbone.update(depth=18, base_channels=4, stem_channels=4)
    config.neck.update(in_channels=[4, 8, 16, 32], out_channels=8)
    config.rpn_head.update(in_channels=8, feat_channels=8)
    model = build(dict(_scope_='mmdet', **config))
    sample = DetDataSample(
        metainfo=dict(img_shape=(64, 64), batch_input_shape=(64, 64), pad_shape=(64, 64))
    )
    boxes = torch.tensor([[4.0, 4, 30, 30], [20, 20, 60, 50]])
    sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([2, 79]))
    losses = model(torch.zeros(1, 3, 64, 64), [sample], mode='loss')
    assert all(torch.stack(list(x)).isfinite().all() for x in losses.values())


@pytest.mark.parametrize('label', [-1, 80])
def test_two_stage_detector_is_still_checked(mmdet, label):
    """Its RPN has one class, its classifier 80."""
    look_at = hook_of(small(read_theirs('faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', 'mmdet')))
    look_at(boxes=[0, 79])
    with pytest.raises(
        ValueError, match=rf'iteration 5: labels \[{label}\] in 5.png, .*80 classes'
    ):
        look_at(boxes=[3, label])


@pytest.mark.parametrize(
    'name',
    [
        'mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py',
        'maskformer/maskformer_r50_ms-16xb1-75e_coco.py',
    ],
)
def test_void_in_panoptic_maps_of_mask_classification(mmdet, name):
    """Every label of the map that is no stuff class is left out, 255 among them."""
    look_at = hook_of(small(read_theirs(name, 'mmdet')))
    look_at(map=[0, 79, 80, 132, 255, 200], boxes=[0, 79])
    with pytest.raises(ValueError, match=r'labels \[133\] .*133 classes, 0 to 132'):
        look_at(boxes=[133])


def test_panoptic_fpn(mmdet):
    """Maps have things, stuff and 255; boxes have things only, and 80 would crash their loss."""
    look_at = hook_of(small(read_theirs('panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py', 'mmdet')))
    look_at(map=[0, 79, 80, 132, 255], boxes=[0, 79])
    with pytest.raises(
        ValueError, match=r'labels \[133\] .*133 classes, 0 to 132 \(ignored: \[255\]'
    ):
        look_at(map=[132, 133])
    for label in (80, 132):
        with pytest.raises(ValueError, match=rf'labels \[{label}\] .*80 classes'):
            look_at(boxes=[label])


def test_panoptic_fpn_maps_things_and_void_itself(mmdet):
    """The claims of the test above, by MMDetection's own head: no label that passes crashes it."""
    from mmdet.models.seg_heads import PanopticFPNHead
    from mmdet.structures import DetDataSample

    head = PanopticFPNHead(
        num_things_classes=3,
        num_stuff_classes=2,
        in_channels=4,
        inner_channels=4,
        norm_cfg=dict(type='BN'),
        loss_seg=dict(type='mmdet.CrossEntropyLoss', ignore_index=255, loss_weight=0.5),
    )
    sample = DetDataSample()
    labels = torch.tensor([0, 2, 3, 4, 255]).repeat(4, 13)[None, :, :64].repeat(1, 16, 1)
    sample.gt_sem_seg = PixelData(sem_seg=labels)
    features = [torch.randn(1, 4, 16 >> i, 16 >> i) for i in range(4)]
    assert head.loss(features, [sample])['loss_seg'].isfinite()
    labels.fill_(5)
    with pytest.raises(Exception, match='(?i)target 5 is out of bounds|index'):
        head.loss(features, [sample])


def test_semantic_branch_of_htc(mmdet):
    """183 classes of stuff in the maps, 80 of the boxes: each is held to its own."""
    look_at = hook_of(small(read_theirs('htc/htc_r50_fpn_1x_coco.py', 'mmdet')))
    look_at(map=[0, 182, 255], boxes=[0, 79])
    with pytest.raises(ValueError, match=r'labels \[183\] .*183 classes'):
        look_at(map=[183])
    with pytest.raises(ValueError, match=r'labels \[80\] .*80 classes'):
        look_at(boxes=[80])


def test_detector_that_reads_no_map(mmdet):
    """A data set's label maps (COCO's stuff) do not matter to a Mask R-CNN."""
    look_at = hook_of(small(read_theirs('mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', 'mmdet')))
    look_at(map=[0, 170, 255], boxes=[0, 79])


def test_detector_that_is_asked_in_words(mmdet):
    """Labels of GLIP and Grounding DINO number the phrases of an image's text."""
    model = build(retinanet())
    model.language_model = torch.nn.Identity()
    assert box_labels(model) is None


def test_teachers_images_of_a_semi_supervised_training(mmdet):
    """Only the labelled images' labels count; a label is not lost because samples are a dict."""

    class Runner:
        model, iter = build(retinanet()), 0

    hook = LabelRangeHook()
    hook.before_train(Runner)
    good, bad = SegDataSample(), SegDataSample()
    good.gt_instances = InstanceData(labels=torch.tensor([4]))
    bad.gt_instances = InstanceData(labels=torch.tensor([9]))
    hook.before_train_iter(Runner, 0, dict(data_samples=dict(sup=[good], unsup_teacher=[bad])))
    with pytest.raises(ValueError, match=r'labels \[9\]'):
        hook.before_train_iter(Runner, 0, dict(data_samples=dict(sup=[bad])))


def test_reduced_zero_label():
    """ADE20K's 0 becomes 255 in the pipeline, which the heads ignore; 150 classes are left."""
    model = build(pspnet(classes=150))
    assert map_labels(model) == [LabelRange(150, frozenset({255}))]
    look_at = hook_of(model)
    look_at(map=[255, 0, 149], key='data')
    with pytest.raises(ValueError, match=r'labels \[150\] .*reduce_zero_label'):
        look_at(map=[150], key='data')


def test_another_ignored_label():
    """``ignore_index`` of a head, and what is 255 then would crash."""
    config = pspnet()
    for head in ('decode_head', 'auxiliary_head'):
        config[head]['ignore_index'] = 11
    look_at = hook_of(build(config))
    look_at(map=[0, 4, 11], key='data')
    with pytest.raises(ValueError, match=r'labels \[255\] .*ignored: \[11\]'):
        look_at(map=[255], key='data')


def test_binary_head_with_one_output():
    """``num_classes=2, out_channels=1``: labels are 0 and 1."""
    config = pspnet(classes=2)
    for head in ('decode_head', 'auxiliary_head'):
        config[head].update(out_channels=1, threshold=0.5)
        config[head]['loss_decode'].update(use_sigmoid=True)
    look_at = hook_of(build(config))
    look_at(map=[0, 1, 255], key='data')
    with pytest.raises(ValueError, match=r'labels \[2\] .*2 classes'):
        look_at(map=[2], key='data')


@pytest.mark.parametrize(
    'name',
    [
        'mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py',
        'maskformer/maskformer_r50-d32_8xb2-160k_ade20k-512x512.py',
    ],
)
def test_void_of_mask_classification_in_mmseg(mmdet, name):
    """Its heads derive from MMDetection's and remove ``ignore_index`` themselves."""
    look_at = hook_of(small(read_theirs(name), 'mmseg'))
    look_at(map=[0, 149, 255], key='data')
    with pytest.raises(ValueError, match=r'labels \[150\] .*150 classes'):
        look_at(map=[150], key='data')


def test_student_of_a_distillation_counts(mmdet):
    """Not its teacher."""
    algorithm = distill(student=pspnet(classes=3), teacher=pspnet(8, 16, classes=9))
    look_at = hook_of(algorithm)
    look_at(map=[0, 2, 255], key='data')
    with pytest.raises(ValueError, match='3 classes'):
        look_at(map=[3], key='data')


def classes_of(config):
    """The classes of a config's training data, None if it does not name them; of boxes, things."""
    dataset = (config.get('train_dataloader') or {}).get('dataset') or {}
    while 'dataset' in dataset or 'datasets' in dataset:
        dataset = dataset.get('dataset') or dataset['datasets'][0]
    named = (dataset.get('metainfo') or {}).get('classes')
    if named is None and dataset.get('type'):
        scope = config.get('default_scope')
        with DATASETS.switch_scope_and_registry(scope) as registry:
            kind = registry.get(dataset['type'])
        info = getattr(kind, 'METAINFO', None) or {}
        named = info.get('thing_classes') or info.get('classes')
    return None if named is None else (1 if isinstance(named, str) else len(named))


def families(package):
    """One config of each folder that the package publishes."""
    root = Path(importlib.import_module(package).__file__).parent / '.mim/configs'
    found = {}
    for path in sorted(root.glob('*/*.py')):
        if path.parent.name not in ('_base_', 'common'):
            found.setdefault(path.parent.name, f'{path.parent.name}/{path.name}')
    return found


def check_family(package, name):
    """Every class of the data that a model is published with may occur; gives whether it was seen."""
    if name.startswith('vpd/'):
        return False  # learns from depth maps, not from labels
    config = read_theirs(name, package)
    classes = classes_of(config)
    model = small(config, package)
    if package == 'mmseg':
        (allowed,) = map_labels(model) or [None]
        assert allowed is None or 255 in allowed.ignored, name
    else:
        allowed = box_labels(model)
    if classes and allowed:
        assert allowed.classes >= classes, f'{name}: {classes} classes of data, {allowed}'
    return bool(classes and allowed)


@pytest.mark.parametrize('package', ['mmseg', 'mmdet'])
def test_no_published_training_is_stopped(mmdet, package):
    """A sample; all families in the slow test."""
    sample = dict(
        mmseg=['ann', 'knet', 'pidnet', 'pspnet', 'segformer', 'stdc'],
        mmdet=['cascade_rcnn', 'fcos', 'rpn', 'solo', 'yolox', 'queryinst'],
    )[package]
    there = families(package)
    assert [name for name in sample if check_family(package, there[name])]


@pytest.mark.slow
@pytest.mark.parametrize('package', ['mmseg', 'mmdet'])
def test_no_published_family_is_stopped(mmdet, package):
    """One config of every folder; those that do not build with another backbone are few."""
    seen, unbuilt = [], {}
    for folder, name in families(package).items():
        try:
            seen += [folder] * check_family(package, name)
        except AssertionError as error:
            if str(error).startswith(f'{folder}/'):
                raise
            unbuilt[folder] = repr(error)
        except Exception as error:
            unbuilt[folder] = repr(error)
    print(f'{package}: {len(seen)} seen; not built: {unbuilt}')
    assert len(seen) >= dict(mmseg=35, mmdet=70)[package]
