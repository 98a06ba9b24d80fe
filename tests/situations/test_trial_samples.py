"""One iteration on made-up images, for every kind of annotation that a model learns from.

Report: open-mmlab/mmdetection#10093 (a panoptic student).
"""

import copy
import os
import warnings

import pytest
import torch
from calling import make_distill_config
from helpers import build, faster_rcnn, feature_distiller, pair, pspnet
from mmengine.config import ConfigDict
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import MODELS, DefaultScope
from mmengine.utils import get_installed_path

from rawkd_mm import distill_config
from rawkd_mm.training import (
    TrialError,
    UsageError,
    load_config,
    made_up_batch,
    made_up_images,
    replace_sync_batchnorm,
    run_one_iteration,
    training_images,
)
from rawkd_mm.training.one_iteration import _first_iteration

SGD = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=1e-4))
CLIPPED = {**SGD, 'clip_grad': dict(max_norm=0.1)}
pytestmark = pytest.mark.usefixtures('mmdet')
WIDTHS = {256: 32, 512: 64, 1024: 128, 2048: 256}


def narrow(config):
    """A published model on ResNet-50 with an eighth of the backbone's width and one transformer layer.

    In place.
    """

    def walk(value):
        if not isinstance(value, dict):
            return
        numbers = value.get('in_channels')
        if isinstance(numbers, list) and set(numbers) <= set(WIDTHS):
            value['in_channels'] = [WIDTHS[n] for n in numbers]
        if 'num_layers' in value and 'layer_cfg' in value:
            value['num_layers'] = 1
        if 'num' in value and 'pos_fraction' in value:  # of the regions that a RoI head learns from
            value['num'] = 16
        for item in value.values():
            for one in item if isinstance(item, list) else [item]:
                walk(one)

    config['backbone'].update(base_channels=8, stem_channels=8, init_cfg=None, frozen_stages=-1)
    for key, value in config.items():
        if key in ('neck', 'train_cfg', 'encoder', 'decoder') or key.endswith('_head'):
            walk(value)
    return config


def published(name):
    cfg = load_config(f'mmdet::{name}')
    config = {'_scope_': 'mmdet', **narrow(cfg.model)}
    if cfg.get('data_preprocessor'):
        config.setdefault('data_preprocessor', cfg.data_preprocessor)
    return config


def trained(config, size=(128, 128), source='backbone[3]', optim_wrapper=CLIPPED):
    """Distil a model from its twin for one iteration; gives the losses by name."""
    torch.manual_seed(0)
    algorithm = MODELS.build(
        dict(
            type='FrozenTeacherDistill',
            architecture=copy.deepcopy(config),
            teacher=copy.deepcopy(config),
            data_preprocessor=copy.deepcopy(config['data_preprocessor']),
            allow_random_teacher=True,
            distiller=feature_distiller(pair(source)),
            _scope_='mmdet',
        )
    )
    algorithm.init_weights()
    with DefaultScope.overwrite_default_scope('mmdet'):
        return run_one_iteration(algorithm, optim_wrapper, size)


# Config, size of the images, a loss that is there only if its annotation was understood.
KINDS = {
    'panoptic': ('maskformer/maskformer_r50_ms-16xb1-75e_coco.py', 128, 'student.loss_mask'),
    'panoptic, points': ('mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py', 128,
                         'student.loss_mask'),
    'instances of queries': ('mask2former/mask2former_r50_8xb2-lsj-50e_coco.py', 128,
                             'student.loss_dice'),
    'panoptic, two branches': ('panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py', 128,
                               'student.loss_seg'),
    'semantic branch': ('htc/htc_r50_fpn_1x_coco.py', 128, 'student.loss_semantic_seg'),
    'instances, no boxes': ('solo/solo_r50_fpn_1x_coco.py', 128, 'student.loss_mask'),
    'boxes for masks': ('boxinst/boxinst_r50_fpn_ms-90k_coco.py', 128,
                        'student.loss_mask_project'),
    'given proposals': ('fast_rcnn/fast-rcnn_r50_fpn_1x_coco.py', 128, 'student.loss_bbox'),
    'proposals only': ('rpn/rpn_r50_fpn_1x_coco.py', 128, 'student.loss_rpn_cls'),
    'queries': ('detr/detr_r50_8xb2-150e_coco.py', 128, 'student.loss_iou'),
    'queries, many': ('dino/dino-4scale_r50_8xb2-12e_coco.py', 256, 'student.dn_loss_cls'),
}  # fmt: skip


@pytest.mark.parametrize('kind', KINDS)
def test_one_iteration(kind):
    """Published models of MMDetection, an eighth as wide (mmdetection#10093)."""
    name, size, needed = KINDS[kind]
    if kind == 'boxes for masks':
        pytest.importorskip('skimage')  # MMDetection converts colours with it
    config = published(name)
    last = len(config['backbone']['out_indices']) - 1
    losses = trained(config, (size, size), f'backbone[{last}]')
    assert losses[f'distill.loss_cad_backbone.{last}'] > 0
    assert losses[needed] > 0, losses


@pytest.mark.parametrize(
    ('name', 'things', 'classes', 'shape'),
    [
        ('maskformer/maskformer_r50_ms-16xb1-75e_coco.py', 80, 133, (64, 96)),
        ('panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py', 80, 133, (64, 96)),
        ('htc/htc_r50_fpn_1x_coco.py', 80, 183, (8, 12)),  # the branch learns from an eighth
        ('scnet/scnet_r50_fpn_1x_coco.py', 80, 183, (8, 12)),
        ('rpn/rpn_r50_fpn_1x_coco.py', 1, 1, (64, 96)),
        ('mask2former/mask2former_r50_8xb2-lsj-50e_coco.py', 80, 80, (64, 96)),
    ],
)
def test_annotations_are_of_the_models_classes(name, things, classes, shape):
    model = MODELS.build(published(name))
    images, samples = made_up_images(model, (64, 96), 40)
    assert {image.shape for image in images} == {(3, 64, 96)}
    labels = torch.cat([sample.gt_instances.labels for sample in samples])
    maps = torch.cat([sample.gt_sem_seg.sem_seg for sample in samples])
    assert maps.shape == (40, *shape)
    assert 0 <= labels.min() and labels.max() < things and labels.max() >= 0.8 * (things - 1)
    assert 0 <= maps.min() and maps.max() < classes and maps.max() >= 0.9 * (classes - 1)


def test_images_are_what_the_training_makes_of_them():
    """Normalised as the data_preprocessor does; its fixed size gives way to the trial's."""
    model = build(pspnet(classes=3))
    (inputs, samples), (raw, _) = made_up_batch(model, (16, 24)), made_up_images(model, (16, 24))
    assert inputs.shape == (2, 3, 16, 24) and model.data_preprocessor.size == (32, 32)
    expected = (raw[1].flip(0).float() - torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)) / 2
    torch.testing.assert_close(inputs[1], expected)
    labels = torch.stack([sample.gt_sem_seg.data for sample in samples])
    assert labels.shape == (2, 1, 16, 24) and labels.unique().tolist() == [0, 1, 2]


@pytest.mark.parametrize(('divisor', 'shape'), [(640, (16, 24)), (16, (16, 32))])
def test_a_divisor_larger_than_the_images_is_a_fixed_size(divisor, shape):
    """SAN pads to multiples of 640, which its crops of 640 pixels are."""
    config = dict(type='SegDataPreProcessor', size_divisor=divisor)
    model = build(pspnet(data_preprocessor=config))
    inputs, _ = made_up_batch(model, (16, 24))
    assert inputs.shape == (2, 3, *shape)
    assert model.data_preprocessor.size_divisor == divisor


def test_a_model_without_preprocessor_gets_a_batch():
    model = build(pspnet(data_preprocessor=None))
    assert type(model.data_preprocessor) is BaseDataPreprocessor
    inputs, samples = made_up_batch(model, (16, 24), images=3)
    assert inputs.shape == (3, 3, 16, 24) and len(samples) == 3
    assert inputs.abs().max() < 2 and inputs.std() == pytest.approx(1, abs=0.02)


def test_what_takes_two_kinds_of_images_is_said():
    """Semi-supervised detectors: no samples are made up for them."""
    preprocessor = MODELS.build(
        dict(
            type='MultiBranchDataPreprocessor',
            data_preprocessor=dict(type='DetDataPreprocessor'),
            _scope_='mmdet',
        )
    )
    takes = 'labelled and unlabelled images at once'
    with pytest.raises(TrialError, match=f'FasterRCNN takes {takes} .*--no-check'):
        made_up_batch(build(faster_rcnn()), (64, 64), preprocessor=preprocessor)


def test_an_iteration_leaves_nothing_behind():
    """What it tells the model about the training is no longer told afterwards."""
    from mmengine.logging import MessageHub

    hub = MessageHub.get_current_instance()
    before = dict(hub.runtime_info)
    config = faster_rcnn()
    config.train_cfg.rpn.sampler.add_gt_as_proposals = False
    trained(config, source='neck[0]', optim_wrapper=SGD)
    assert dict(hub.runtime_info) == before


def test_small_images_that_fail_are_tried_larger(tmp_path, monkeypatch):
    """DINO chooses 900 queries from the positions of an image, which a small one lacks."""
    from calling import call

    text = """
_base_ = 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'
model = dict(
    num_queries=300, encoder=dict(num_layers=1), decoder=dict(num_layers=1),
    backbone=dict(base_channels=8, stem_channels=8, init_cfg=None, frozen_stages=-1),
    neck=dict(in_channels=[64, 128, 256]))
train_dataloader = dict(dataset=dict(pipeline=[dict(type='Resize', scale=(192, 192))]))
"""
    (tmp_path / 'dino.py').write_text(text)
    monkeypatch.setattr(distill_config.models, 'CPU_SIZE', 64)
    cfg = load_config(str(tmp_path / 'dino.py'))
    with DefaultScope.overwrite_default_scope('mmdet'):
        torch.save(MODELS.build(cfg.model).state_dict(), tmp_path / 'dino.pth')
    args = ['--student', 'dino.py', '--teacher', 'dino.py', '--teacher-ckpt', 'dino.pth']
    args = [*args, '--method', 'cad', '-o', 'out.py']
    log = call(make_distill_config, *args, folder=tmp_path)
    assert 'Features, of an image of 64x64' in log
    assert 'One iteration on 2 made-up images of 192x192 ran' in log
    # and if that fails as well, it says so
    (tmp_path / 'dino.py').write_text(text.replace('192', '96'))
    log = call(make_distill_config, *args, '--force', folder=tmp_path, fails=True)
    assert 'one iteration on 2 made-up images of 96x96 failed' in log


def families(package):
    root = os.path.join(get_installed_path(package), '.mim', 'configs')
    return [f'{package}::{f}' for f in sorted(os.listdir(root)) if not f.startswith('_')]


# What needs more than one image, more than a CPU, or files; by a part of the error.
NOT_HERE = (
    'is not installed',
    'not found',  # an operator that MMCV has on GPUs only: "implementation for device cpu"
    'only one of size and size_divisor should be valid',  # so does the training itself
)


@pytest.mark.slow
@pytest.mark.parametrize('family', [*families('mmseg'), *families('mmdet')])
def test_published_families(family):
    """A config of each folder of both packages: its task's losses are finite on such a batch."""
    if family == 'mmseg::san':
        pytest.skip('it can only begin with pretrained weights: random ones give no finite scores')
    package, _, folder = family.partition('::')
    path = os.path.join(get_installed_path(package), '.mim', 'configs', folder)
    small = [f for f in os.listdir(path) if f.endswith('.py')]
    small.sort(key=lambda f: (not any(x in f for x in ('r18', 'r50', 'tiny', '-t_')), len(f), f))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            cfg = distill_config.read_config(f'{family}/{small[0]}', 'student')
            model = distill_config.build_alone(cfg, 'student')
        except UsageError as error:
            pytest.skip(f'not installed, or needs files: {error}')
        model.init_weights()
    replace_sync_batchnorm(model)
    model.train()
    before = made_up_images(model, (32, 32))
    assert len(before[0]) == 2
    images = training_images(cfg)
    sizes = [(256, 256), images[:2] if images else (800, 1344)]
    for size in sizes:
        try:
            with _first_iteration(), DefaultScope.overwrite_default_scope(package):
                losses = model(*made_up_batch(model, size), mode='loss')
            break
        except TrialError as error:
            pytest.skip(str(error))
        except Exception as error:
            if any(text in str(error) for text in NOT_HERE):
                pytest.skip(str(error))
            if size == sizes[-1]:
                raise
    total, _ = model.parse_losses(losses)
    assert total.isfinite()


def test_errors_say_which_images(monkeypatch):
    """What fails is said with the images' size."""
    config = faster_rcnn()
    config['rpn_head']['anchor_generator']['strides'] = [4, 8]
    with pytest.raises(TrialError, match='2 made-up images of 64x96 failed: AssertionError'):
        trained(ConfigDict(config), (64, 96), 'neck[0]', SGD)
