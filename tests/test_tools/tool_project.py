"""A small project folder with data and configs, in which the tools are started."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / 'tools'

# PSPNet on 32x32. Nothing depends on how a batch is split over processes: the backbone's SyncBN
# uses its running statistics, the head has GN.
STUDENT = """
custom_imports = dict(imports=['rawkd_mm'], allow_failed_imports=False)
default_scope = 'mmseg'
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True, pad_val=0, seg_pad_val=255, size=(32, 32)),
    backbone=dict(
        type='ResNetV1c', depth=18, base_channels=4, num_stages=4, out_indices=(0, 1, 2, 3),
        strides=(1, 1, 1, 1), dilations=(1, 1, 1, 1), norm_cfg=norm_cfg, norm_eval=True),
    decode_head=dict(
        type='PSPHead', in_channels=32, in_index=3, channels=8, pool_scales=(1, 2),
        dropout_ratio=0, num_classes=11, norm_cfg=dict(type='GN', num_groups=2),
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'))
data_root = '{{ fileDirname }}/data'
pipeline = [
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
train_dataloader = dict(
    batch_size=8, num_workers=0, sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='DigitScenesDataset', data_root=data_root, pipeline=pipeline,
        data_prefix=dict(img_path='images/train', seg_map_path='annotations/train')))
val_dataloader = dict(
    batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='DigitScenesDataset', data_root=data_root, pipeline=pipeline,
        data_prefix=dict(img_path='images/val', seg_map_path='annotations/val')))
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
tta_model = dict(type='SegTTAModel')
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='TestTimeAug', transforms=[
        [dict(type='Resize', scale_factor=r, keep_ratio=True) for r in (1.0, 1.5)],
        [dict(type='LoadAnnotations')],
        [dict(type='PackSegInputs')]])]
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=5e-3))
param_scheduler = [
    dict(type='PolyLR', power=0.9, eta_min=0, begin=0, end=8, by_epoch=False)]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=4, val_interval=4)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=1, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'))
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'))
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='SegLocalVisualizer', vis_backends=vis_backends, name='visualizer')
log_processor = dict(by_epoch=False, window_size=1)
randomness = dict(seed=0)
auto_scale_lr = dict(enable=False, base_batch_size=8)
"""

# Twice as wide, and its BN normalises with the batch.
TEACHER = """
_base_ = './student.py'
model = dict(
    backbone=dict(base_channels=8, norm_eval=False),
    decode_head=dict(in_channels=64, channels=16, norm_cfg=dict(_delete_=True, type='SyncBN')))
"""

DISTILLATION = """
_base_ = './student.py'
model = dict(
    _delete_=True,
    type='FrozenTeacherDistill',
    architecture=dict(cfg_path='{{ fileDirname }}/student.py'),
    teacher=dict(cfg_path='{{ fileDirname }}/teacher.py', pretrained=False),
    teacher_ckpt='{{ fileDirname }}/runs/teacher/iter_4.pth',
    distiller=dict(
        type='FeatureDistiller',
        loss=dict(type='LADLoss', loss_weight=3.0),
        pairs=[dict(student='decode_head.bottleneck', teacher='decode_head.bottleneck')]))
custom_hooks = [dict(type='FeatureGeometryHook', interval=2)]
# without it Adam turns the rounding of small gradients into steps of its learning rate
optim_wrapper = dict(optimizer=dict(eps=1e-3))
"""


class Project:
    """A folder with configs, data and runs; every tool is started in it."""

    def __init__(self, folder: Path, fast_python: Path) -> None:
        self.folder = folder
        self.fast_python = fast_python
        self.run(TOOLS / 'dataset_converters' / 'digit_scenes.py',
                 '--root', 'data', '--train', '32', '--val', '16', '--size', '32',
                 '--workers', '1')  # fmt: skip
        for name, text in dict(student=STUDENT, teacher=TEACHER, distillation=DISTILLATION).items():
            (folder / f'{name}.py').write_text(text)

    def run(self, tool, *args, fails=False, cwd=None, fresh=False, **environment) -> str:
        """Start a tool; gives what it printed.

        Its processes have everything imported already (see fork_server.py), unless ``fresh``.
        """
        python = sys.executable if fresh else str(self.fast_python)
        command = [str(tool), *map(str, args)]
        if Path(tool).suffix == '.py':
            command.insert(0, python)
            # several threads wait for each other, for seconds, where other programs run as well
            environment.setdefault('OMP_NUM_THREADS', '1')
        env = {k: v for k, v in os.environ.items() if k not in ('LOCAL_RANK', 'OMP_NUM_THREADS')}
        env |= dict(PYTHON=python, CUDA_VISIBLE_DEVICES='') | environment
        done = subprocess.run(
            command,
            cwd=cwd or self.folder,
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=300,
        )
        if (done.returncode != 0) != fails:
            pytest.fail(f'{command} ended with {done.returncode}:\n{done.stdout[-6000:]}')
        return done.stdout

    def run_mmseg(self, tool, *args, **kwargs) -> str:
        """Start one of mmseg's own tools, in an environment that has rawkd_mm."""
        return self._run_of('mmseg', tool, *args, **kwargs)

    def run_mmdet(self, tool, *args, **kwargs) -> str:
        """Start one of mmdet's."""
        return self._run_of('mmdet', tool, *args, **kwargs)

    def _run_of(self, package, tool, *args, **kwargs) -> str:
        folder = Path(importlib.util.find_spec(package).origin).parent / '.mim' / 'tools'
        return self.run(folder / tool, *args, PYTHONPATH=str(ROOT), **kwargs)

    def losses(self, work_dir) -> list:
        """The total loss of each iteration, as logged."""
        return [entry['loss'] for entry in self.scalars(work_dir) if 'loss' in entry]

    def scalars(self, work_dir) -> list:
        (file,) = (self.folder / work_dir).glob('*/vis_data/scalars.json')
        return [json.loads(line) for line in file.read_text().splitlines()]

    def metrics(self, work_dir) -> dict:
        return json.loads((self.folder / work_dir / 'test_metrics.json').read_text())['metrics']

    def weights(self, checkpoint) -> dict:
        import torch

        return torch.load(self.folder / checkpoint, map_location='cpu', weights_only=False)[
            'state_dict'
        ]

    def copy_of_interrupted(self, work_dir, copy) -> None:
        """The work dir as it was after iteration 2, somewhere else."""
        (self.folder / copy).mkdir(parents=True)
        shutil.copy(self.folder / work_dir / 'iter_2.pth', self.folder / copy)
        pointer = (self.folder / work_dir / 'last_checkpoint').read_text()
        (self.folder / copy / 'last_checkpoint').write_text(re.sub('iter_4', 'iter_2', pointer))
