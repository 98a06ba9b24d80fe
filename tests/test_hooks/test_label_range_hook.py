"""A training stops on a label that is none of the model's classes."""

import pytest
import torch
from helpers import distill, faster_rcnn, feature_distiller, pair, retinanet, run, samples
from mmengine.registry import DATASETS
from mmengine.structures import InstanceData


@DATASETS.register_module(force=True)
class Labelled(torch.utils.data.Dataset):
    """Images whose labels are those of a segmentor of five classes, but for one image's corner."""

    metainfo = dict(classes=tuple('abcde'), palette=None)

    def __init__(self, label, index=2):
        self.label, self.index = label, index

    def __len__(self):
        return 8

    def __getitem__(self, index):
        (sample,) = samples(1, seed=index)
        if index == self.index:
            sample.set_metainfo(dict(img_path=f'images/{index}.png'))
            sample.gt_sem_seg.data[0, 3, 4] = self.label
        return dict(inputs=torch.zeros(3, 32, 32, dtype=torch.uint8), data_samples=sample)


def train(tmp_path, label, model=None):
    loader = dict(
        batch_size=2,
        num_workers=0,
        sampler=dict(type='InfiniteSampler', shuffle=False),
        dataset=dict(type='Labelled', label=label),
    )
    hooks = [dict(type='LabelRangeHook')]
    return run(model or distill(), tmp_path, hooks=hooks, loader=loader)


@pytest.mark.parametrize(
    'label',
    [
        pytest.param(5, id='label one too high'),
        pytest.param(-1, id='negative label'),
        pytest.param(254, id='another ignored label'),
    ],
)
def test_label_of_no_class(tmp_path, label):
    with pytest.raises(ValueError) as error:
        train(tmp_path, label)
    message = str(error.value)
    assert message.startswith(f'iteration 2: labels [{label}] in images/2.png, but the model has 5')
    assert 'classes, 0 to 4 (ignored: [255])' in message
    assert 'reduce_zero_label' in message


@pytest.mark.parametrize('label', [0, 4, 255])
def test_label_that_may_be(tmp_path, label):
    assert train(tmp_path, label).iter == 4


def test_students_classes_count(tmp_path):
    from helpers import pspnet

    algorithm = distill(teacher=pspnet(8, 16, classes=9))
    with pytest.raises(ValueError, match=r'labels \[7\] .*the model has 5 classes'):
        train(tmp_path, 7, algorithm)


@pytest.mark.parametrize('dtype', [torch.int64, torch.uint8, torch.int16])
@pytest.mark.parametrize('ignored', [(), (255,), (-100, 255)])
def test_against_sets(dtype, ignored):
    """Maps of random labels, of which few are wrong, with an independent way to find those."""
    from rawkd_mm.hooks.label_range_hook import LabelRange, _check

    lowest = 0 if dtype == torch.uint8 else -100
    choices = [label for label in (lowest, -1, 0, 1, 4, 5, 254, 255) if label >= lowest]
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(60):
        few = [choices[i] for i in torch.randint(len(choices), (2,), generator=generator)] + [0, 4]
        picked = torch.randint(len(few), (1, 6, 5), generator=generator)
        labels = torch.tensor(few, dtype=dtype)[picked]
        wrong = sorted(set(labels.flatten().tolist()) - set(range(5)) - set(ignored))
        seen.add(bool(wrong))
        if wrong:
            with pytest.raises(ValueError) as error:
                _check(labels, LabelRange(5, frozenset(ignored)), None, 1)
            assert f'labels {wrong} in an image' in str(error.value)
        else:
            _check(labels, LabelRange(5, frozenset(ignored)), None, 1)
    assert seen == {True, False}
    _check(torch.zeros(0, dtype=dtype), LabelRange(5), None, 1)  # an image without objects


def test_labels_of_boxes(mmdet):
    from helpers import build
    from mmdet.structures import DetDataSample

    from rawkd_mm.hooks import LabelRangeHook

    class Runner:
        model, iter = build(retinanet()), 6

    hook = LabelRangeHook()
    hook.before_train(Runner)
    sample = DetDataSample(metainfo=dict(img_path='7.jpg'))
    for label in (0, 4):
        sample.gt_instances = InstanceData(labels=torch.tensor([label]))
        hook.before_train_iter(Runner, 0, dict(data_samples=[sample]))
    sample.gt_instances = InstanceData(labels=torch.tensor([1, 5]))
    with pytest.raises(ValueError, match=r'iteration 7: labels \[5\] in 7.jpg, .*5 classes'):
        hook.before_train_iter(Runner, 0, dict(data_samples=[sample]))


def test_model_without_classes_is_left_alone():
    from rawkd_mm.hooks import LabelRangeHook

    class Runner:
        model, iter = torch.nn.Conv2d(1, 1, 1), 0

    hook = LabelRangeHook()
    hook.before_train(Runner)
    assert hook._boxes is None and hook._maps == []
    hook.before_train_iter(Runner, 0, dict(data_samples=samples(classes=100)))


@DATASETS.register_module(force=True)
class Boxes(torch.utils.data.Dataset):
    """Images with one object of COCO's last class."""

    metainfo = dict(classes=('object',), palette=None)

    def __len__(self):
        return 8

    def __getitem__(self, index):
        from mmdet.structures import DetDataSample

        sample = DetDataSample(
            metainfo=dict(img_shape=(64, 64), ori_shape=(64, 64), pad_shape=(64, 64))
        )
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor([[4.0, 4.0, 40.0, 50.0]]), labels=torch.tensor([79])
        )
        return dict(inputs=torch.zeros(3, 64, 64, dtype=torch.uint8), data_samples=sample)


def region_proposals():
    """Config of an RPN that is trained alone, on the backbone and the neck of a Faster R-CNN."""
    whole = faster_rcnn()
    parts = {key: whole[key] for key in ('_scope_', 'data_preprocessor', 'backbone', 'neck')}
    return dict(
        parts,
        type='RPN',
        rpn_head=whole['rpn_head'],
        train_cfg=dict(rpn=whole['train_cfg']['rpn']),
        test_cfg=dict(rpn=whole['test_cfg']['rpn']),
    )


def test_an_rpn_learns_from_objects_of_any_class(tmp_path, mmdet):
    """MMDetection sets the labels to 0 inside, behind this check."""
    loader = dict(
        batch_size=2,
        num_workers=0,
        sampler=dict(type='InfiniteSampler', shuffle=False),
        dataset=dict(type='Boxes'),
    )
    distiller = feature_distiller(*[pair(f'neck[{i}]') for i in range(3)])
    algorithm = distill(student=region_proposals(), teacher=region_proposals(), distiller=distiller)
    hooks = [dict(type='LabelRangeHook')]
    assert run(algorithm, tmp_path, hooks=hooks, loader=loader, iters=2).iter == 2
    with pytest.raises(ValueError, match=r'labels \[79\]'):
        run(faster_rcnn(), tmp_path, hooks=hooks, loader=loader, iters=2)
