"""Hooks that published configs of mmseg and mmdet name work on a distilled student as on one alone.

Each goes through its switch in a short training of two epochs of real images. Public reports:
open-mmlab/mmrazor#184 and #130 (YOLOX's hook found no ``bbox_head``).
"""

import copy
import json
import re
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from zoo import read_theirs

from rawkd_mm.training import build_runner

CLASSES = ('a', 'b', 'c')
META = dict(classes=CLASSES)
LOAD = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]
RESIZE = dict(type='Resize', scale=(64, 64), keep_ratio=True)
PACK = dict(
    type='PackDetInputs',
    meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip'),
)
HOOKS_OF_CONFIGS = {
    'YOLOXModeSwitchHook', 'PipelineSwitchHook', 'SyncNormHook', 'SyncBuffersHook', 'EMAHook',
    'NumClassCheckHook', 'CheckInvalidLossHook', 'MeanTeacherHook', 'DetVisualizationHook',
    'SegVisualizationHook', 'TrackVisualizationHook', 'GroundingVisualizationHook',
}  # fmt: skip
DEFAULT_HOOKS = {
    'CheckpointHook', 'LoggerHook', 'ParamSchedulerHook', 'IterTimerHook', 'DistSamplerSeedHook',
}  # fmt: skip


def test_these_are_the_hooks_of_published_configs(mmdet):
    """A new hook of another version of mmseg or mmdet is noticed here."""
    import mmseg

    found = set()
    for package in (mmseg, mmdet):
        for path in (Path(package.__file__).parent / '.mim' / 'configs').rglob('*.py'):
            found |= set(re.findall(r"type='(?:mm\w+\.)?(\w+Hook)'", path.read_text()))
    assert found - DEFAULT_HOOKS <= HOOKS_OF_CONFIGS


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Four images with two boxes each, in COCO's format."""
    root = tmp_path_factory.mktemp('boxes')
    generator = np.random.default_rng(0)
    images, boxes = [], []
    for i in range(4):
        cv2.imwrite(str(root / f'{i}.png'), generator.integers(0, 255, (64, 64, 3), dtype=np.uint8))
        images.append(dict(id=i, file_name=f'{i}.png', height=64, width=64))
        for k, (x, y, w, h) in enumerate(((8, 10, 32, 30), (30, 30, 20, 20))):
            boxes.append(
                dict(
                    id=2 * i + k, image_id=i, category_id=1 + (i + k) % 3, bbox=[x, y, w, h],
                    area=w * h, iscrowd=0,
                )
            )  # fmt: skip
    categories = [dict(id=i + 1, name=name) for i, name in enumerate(CLASSES)]
    whole = dict(images=images, annotations=boxes, categories=categories)
    (root / 'coco.json').write_text(json.dumps(whole))
    return root


@cache
def published_yolox():
    return read_theirs('yolox/yolox_tiny_8xb8-300e_coco.py', 'mmdet')


def yolox(width=0.125, channels=16):
    cfg = copy.deepcopy(published_yolox())
    stages = [int(round(c * width)) for c in (256, 512, 1024)]
    cfg.merge_from_dict(
        dict(
            model=dict(
                data_preprocessor=dict(batch_augments=None),
                backbone=dict(widen_factor=width),
                neck=dict(in_channels=stages, out_channels=channels),
                bbox_head=dict(num_classes=3, in_channels=channels, feat_channels=channels),
            )
        )
    )
    return cfg.model


def training(data, folder, hooks, distilled=True, dataset=None, watching=(), **kwargs):
    """A YOLOX for two epochs, distilled or alone, with these custom hooks."""
    coco = dict(
        type='CocoDataset', data_root=str(data), ann_file='coco.json', data_prefix=dict(img=''),
        metainfo=META,
    )  # fmt: skip
    student = yolox()
    model = student
    if distilled:
        model = dict(
            type='FrozenTeacherDistill',
            architecture=student,
            teacher=yolox(0.25, 32),
            allow_random_teacher=True,
            distiller=dict(
                type='FeatureDistiller',
                loss=dict(type='CADLoss'),
                pairs=[dict(student='neck[0]', teacher='neck[0]')],
            ),
        )
    loader = dict(batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False))
    cfg = Config(
        dict(
            default_scope='mmdet',
            model=model,
            work_dir=str(folder),
            train_dataloader=dict(
                loader, dataset=dataset or dict(coco, pipeline=[*LOAD, RESIZE, PACK])
            ),
            val_dataloader=dict(
                loader, dataset=dict(coco, test_mode=True, pipeline=[LOAD[0], RESIZE, LOAD[1], PACK])
            ),
            val_evaluator=dict(
                type='CocoMetric', ann_file=str(data / 'coco.json'), metric='bbox'
            ),
            train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=2, val_interval=1),
            val_cfg=dict(type='ValLoop'),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=1e-3)),
            custom_hooks=hooks,
            visualizer=dict(
                type='DetLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')]
            ),
            experiment_name=f'hooks{folder.name}{distilled}',
            log_level='WARNING',
            launcher='none',
            randomness=dict(seed=0),
            **kwargs,
        ),
        format_python_code=False,  # takes longer than the training
    )  # fmt: skip
    runner = build_runner(cfg)
    for hook in (Losses(), *watching):
        runner.register_hook(hook)
    runner.train()
    return runner


class Losses(Hook):
    """Keeps the names of the losses of each epoch, in the runner."""

    def before_train(self, runner):
        runner.found = {}

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        runner.found.setdefault(runner.epoch, set()).update(outputs)


def student_of(runner):
    return getattr(runner.model, 'student', runner.model)


@pytest.mark.usefixtures('mmdet')
class TestDetector:
    def test_mode_switch_of_yolox(self, data, tmp_path):
        mixed = dict(
            type='MultiImageMixDataset',
            dataset=dict(
                type='CocoDataset', data_root=str(data), ann_file='coco.json',
                data_prefix=dict(img=''), metainfo=META, pipeline=LOAD,
            ),
            pipeline=[
                dict(type='Mosaic', img_scale=(32, 32), pad_val=114.0), RESIZE,
                dict(type='FilterAnnotations', min_gt_bbox_wh=(1, 1), keep_empty=False), PACK,
            ],
        )  # fmt: skip
        hook = dict(type='YOLOXModeSwitchHook', num_last_epochs=0, skip_type_keys=('Mosaic',))
        for distilled, prefix in ((False, ''), (True, 'student.')):
            runner = training(data, tmp_path / str(distilled), [hook], distilled, mixed)
            assert student_of(runner).bbox_head.use_l1 is True
            assert f'{prefix}loss_l1' not in runner.found[0]
            assert f'{prefix}loss_l1' in runner.found[1]
            assert runner.train_dataloader.dataset._skip_type_keys == ('Mosaic',)
        assert any(name.startswith('distill.') for name in runner.found[1])

    def test_pipeline_switch_of_rtmdet(self, data, tmp_path):
        small = [*LOAD, dict(type='Resize', scale=(32, 32), keep_ratio=True), PACK]
        sizes = Sizes()
        hook = dict(type='PipelineSwitchHook', switch_epoch=1, switch_pipeline=small)
        training(data, tmp_path, [hook], watching=[sizes])
        assert sizes.found == {0: {(64, 64)}, 1: {(32, 32)}}

    def test_averages_of_weights_are_the_students(self, data, tmp_path):
        ema = dict(
            type='EMAHook',
            ema_type='ExpMomentumEMA',
            momentum=0.2,
            update_buffers=True,
            priority=49,
        )
        found = []
        for distilled in (False, True):
            folder = tmp_path / str(distilled)
            runner = training(data, folder, [copy.deepcopy(ema)], distilled)
            averaged = next(h for h in runner.hooks if type(h).__name__ == 'EMAHook').ema_model
            found.append(averaged.module.state_dict())
            assert all(torch.isfinite(v).all() for v in found[-1].values())
        names = [[n for n in state if not n.startswith('distiller.')] for state in found]
        assert names[0] == names[1]
        averages = [v for n, v in found[1].items() if n.endswith('running_mean')]
        assert any(v.abs().sum() > 0 for v in averages)  # of buffers too

    @pytest.mark.parametrize(
        'name', ['SyncNormHook', 'SyncBuffersHook', 'NumClassCheckHook', 'CheckInvalidLossHook']
    )
    def test_checks_and_synchronisation(self, data, tmp_path, name):
        runner = training(data, tmp_path, [dict(type=name)])
        assert set(runner.found) == {0, 1}

    def test_a_wrong_number_of_classes_is_found_in_the_student(self, data, tmp_path, monkeypatch):
        monkeypatch.setitem(META, 'classes', CLASSES[:2])
        with pytest.raises(AssertionError, match='num_classes'):
            training(data, tmp_path, [dict(type='NumClassCheckHook')])

    def test_epoch_info_reaches_the_student(self, data, tmp_path, monkeypatch):
        from mmdet.models import YOLOX

        epochs = []
        monkeypatch.setattr(
            YOLOX, 'set_epoch', lambda self, epoch: epochs.append((self, epoch)), raising=False
        )
        runner = training(data, tmp_path, [dict(type='SetEpochInfoHook')])
        assert [epoch for _, epoch in epochs] == [0, 1]
        assert all(model is runner.model.student for model, _ in epochs)

    def test_pictures_of_the_students_detections(self, data, tmp_path):
        hooks = dict(visualization=dict(type='DetVisualizationHook', draw=True, interval=1))
        training(data, tmp_path, [], default_hooks=hooks)
        assert list(tmp_path.rglob('vis_image/*.png'))

    def test_a_hook_that_trains_a_teacher_is_refused(self, data, tmp_path):
        """mmdet's MeanTeacherHook would write the student's weights into the frozen teacher."""
        with pytest.raises(ValueError, match='MeanTeacherHook.*EMAHook'):
            training(data, tmp_path, [dict(type='MeanTeacherHook')])


class Sizes(Hook):
    """Height and width of the images of each epoch."""

    def __init__(self):
        self.found = {}

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        sizes = {tuple(image.shape[1:]) for image in data_batch['inputs']}
        self.found.setdefault(runner.epoch, set()).update(sizes)
