"""Small real models, data and runs that several test files use."""

import contextlib
import copy
import json
import os
import sys
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from mmengine.runner.checkpoint import get_state_dict
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import nn

import rawkd_mm  # noqa: F401 (registers)
from rawkd_mm.hooks import NonFiniteLossError
from rawkd_mm.training import build_runner, leave_processes

# Models as small as these run fastest in one thread.
torch.set_num_threads(1)

BOTTLENECK = 'decode_head.bottleneck'
CLASSES = 5


def preprocessor(**kwargs):
    """Config of mmseg's data_preprocessor."""
    given = dict(mean=[1.0, 2.0, 3.0], std=[2.0, 2.0, 2.0], bgr_to_rgb=True, size=(32, 32))
    return dict(type='SegDataPreProcessor', **{**given, **kwargs})


def _head(kind, channels_in, index, channels, classes, weight, **kwargs):
    return dict(
        type=kind,
        in_channels=channels_in,
        in_index=index,
        channels=channels,
        num_classes=classes,
        norm_cfg=dict(type='SyncBN'),
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', loss_weight=weight, avg_non_ignore=True),
        **kwargs,
    )


def pspnet(width=4, channels=8, classes=CLASSES, strides=(1, 2, 1, 1), **kwargs):
    """Config of a PSPNet-R18 with an auxiliary head, all of it narrow."""
    return dict(
        type='EncoderDecoder',
        data_preprocessor=kwargs.pop('data_preprocessor', preprocessor()),
        backbone=dict(
            type='ResNetV1c',
            depth=18,
            stem_channels=8,
            base_channels=width,
            num_stages=4,
            out_indices=(0, 1, 2, 3),
            dilations=(1, 1, 2, 4),
            strides=strides,
            norm_cfg=dict(type='SyncBN'),
            norm_eval=False,
            style='pytorch',
            contract_dilation=True,
            **kwargs.pop('backbone', {}),
        ),
        decode_head=_head(
            'PSPHead', width * 8, 3, channels, classes, 1.0, pool_scales=(1, 2), dropout_ratio=0.5
        ),
        auxiliary_head=_head('FCNHead', width * 4, 2, channels, classes, 0.4, num_convs=1),
        train_cfg=dict(),
        test_cfg=ConfigDict(mode='whole'),
        **kwargs,
    )


def upernet_swin(width=8, channels=8, classes=CLASSES):
    """Config of an UPerNet-Swin with strong drop path, narrow and shallow."""
    return dict(
        type='EncoderDecoder',
        data_preprocessor=preprocessor(),
        backbone=dict(
            type='SwinTransformer',
            pretrain_img_size=32,
            embed_dims=width,
            patch_size=4,
            window_size=4,
            depths=(2, 2),
            num_heads=(1, 2),
            strides=(4, 2),
            out_indices=(0, 1),
            drop_path_rate=0.8,
            patch_norm=True,
        ),
        decode_head=_head(
            'UPerHead',
            [width, width * 2],
            [0, 1],
            channels,
            classes,
            1.0,
            pool_scales=(1, 2),
            dropout_ratio=0.5,
        ),
        train_cfg=dict(),
        test_cfg=ConfigDict(mode='whole'),
    )


def retinanet(channels=16, width=8, classes=CLASSES, **kwargs):
    """Config of a RetinaNet-R18, narrow; needs mmdet."""
    return dict(
        _scope_='mmdet',
        type='RetinaNet',
        data_preprocessor=kwargs.pop(
            'data_preprocessor', dict(type='DetDataPreprocessor', pad_size_divisor=32)
        ),
        backbone=dict(
            type='ResNet',
            depth=18,
            stem_channels=8,
            base_channels=width,
            out_indices=(0, 1, 2, 3),
            norm_cfg=dict(type='BN'),
            style='pytorch',
        ),
        neck=dict(
            type='FPN',
            in_channels=[width, width * 2, width * 4, width * 8],
            out_channels=channels,
            start_level=1,
            add_extra_convs='on_input',
            num_outs=5,
        ),
        bbox_head=dict(
            type='RetinaHead',
            num_classes=classes,
            in_channels=channels,
            stacked_convs=1,
            feat_channels=channels,
            anchor_generator=dict(
                type='AnchorGenerator',
                octave_base_scale=4,
                scales_per_octave=3,
                ratios=[0.5, 1.0, 2.0],
                strides=[8, 16, 32, 64, 128],
            ),
            bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
            loss_cls=dict(type='FocalLoss', use_sigmoid=True),
            loss_bbox=dict(type='L1Loss'),
        ),
        train_cfg=dict(
            assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0),
            sampler=dict(type='PseudoSampler'),
            allowed_border=-1,
            pos_weight=-1,
        ),
        test_cfg=dict(nms_pre=100, score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5)),
        **kwargs,
    )


def faster_rcnn(channels=16, width=8, classes=CLASSES):
    """Config of a Faster R-CNN on the same backbone; needs mmdet."""
    config = retinanet(channels, width, classes)
    anchors = dict(
        type='AnchorGenerator', scales=[8], ratios=[0.5, 1.0], strides=[4, 8, 16, 32, 64]
    )
    nms = dict(type='nms', iou_threshold=0.7)
    config.update(
        type='FasterRCNN',
        neck=dict(
            type='FPN',
            in_channels=config['neck']['in_channels'],
            out_channels=channels,
            num_outs=5,
        ),
        rpn_head=dict(
            type='RPNHead',
            in_channels=channels,
            feat_channels=channels,
            anchor_generator=anchors,
            bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
            loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True),
            loss_bbox=dict(type='L1Loss'),
        ),
        roi_head=dict(
            type='StandardRoIHead',
            bbox_roi_extractor=dict(
                type='SingleRoIExtractor',
                roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=0),
                out_channels=channels,
                featmap_strides=[4, 8, 16, 32],
            ),
            bbox_head=dict(
                type='Shared2FCBBoxHead',
                in_channels=channels,
                fc_out_channels=16,
                roi_feat_size=7,
                num_classes=classes,
                bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
                loss_cls=dict(type='CrossEntropyLoss'),
                loss_bbox=dict(type='L1Loss'),
            ),
        ),
        train_cfg=dict(
            rpn=dict(
                assigner=dict(
                    type='MaxIoUAssigner', pos_iou_thr=0.7, neg_iou_thr=0.3, min_pos_iou=0.3
                ),
                sampler=dict(type='RandomSampler', num=16, pos_fraction=0.5),
                allowed_border=-1,
                pos_weight=-1,
            ),
            rpn_proposal=dict(nms_pre=100, max_per_img=20, nms=nms, min_bbox_size=0),
            rcnn=dict(
                assigner=dict(
                    type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.5
                ),
                sampler=dict(type='RandomSampler', num=16, pos_fraction=0.25),
                pos_weight=-1,
            ),
        ),
        test_cfg=dict(
            rpn=dict(nms_pre=100, max_per_img=20, nms=nms, min_bbox_size=0),
            rcnn=dict(score_thr=0.05, nms=nms, max_per_img=10),
        ),
    )
    config.pop('bbox_head')
    return ConfigDict(config)


@contextlib.contextmanager
def unset_parameters_are_nan():
    """Parameters that a constructor leaves unset are NaN here, so that no test passes by chance.

    Deformable DETR and others set some in ``init_weights`` only. Before torch 2.2 they keep what the
    memory had.
    """
    before = torch.are_deterministic_algorithms_enabled()
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=only_warns)


def build(config):
    """Build a model as a config with default_scope='mmseg' does."""
    with unset_parameters_are_nan():
        return MODELS.build({'_scope_': 'mmseg', **copy.deepcopy(config)})


def pair(student=BOTTLENECK, teacher=None, **kwargs):
    """One pair of features, by default the same path in both models."""
    return dict(student=student, teacher=student if teacher is None else teacher, **kwargs)


def feature_distiller(*pairs, loss=None, **kwargs):
    """Config of a FeatureDistiller, by default CAD on the bottlenecks."""
    loss = dict(type='CADLoss') if loss is None else loss
    return dict(type='FeatureDistiller', loss=loss, pairs=list(pairs or [pair()]), **kwargs)


def distill(*pairs, student=None, teacher=None, distiller=None, seed=0, **kwargs):
    """Build a FrozenTeacherDistill of small PSPNets, with a random teacher unless told."""
    torch.manual_seed(seed)
    if 'teacher_ckpt' not in kwargs:
        kwargs.setdefault('allow_random_teacher', True)
    return build(
        dict(
            type=kwargs.pop('type', 'FrozenTeacherDistill'),
            architecture=pspnet() if student is None else student,
            teacher=pspnet(8, 16) if teacher is None else teacher,
            distiller=feature_distiller(*pairs) if distiller is None else distiller,
            **kwargs,
        )
    )


def train_statistics(model, size=32, seed=3):
    """Give a model's BatchNorm other statistics than the initial ones."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator))
            module.running_var.copy_(
                torch.rand(module.running_var.shape, generator=generator) + 0.5
            )
    return model


def images(n=2, size=32, seed=0, channels=3):
    """Normalised images, shape (n, channels, size, size)."""
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(seed))


def samples(n=2, size=32, seed=0, classes=CLASSES):
    """Data samples of segmentation with random label maps."""
    generator = torch.Generator().manual_seed(seed)
    result = []
    for _ in range(n):
        sample = SegDataSample(metainfo=dict(img_shape=(size, size), ori_shape=(size, size)))
        labels = torch.randint(0, classes, (1, size, size), generator=generator)
        sample.gt_sem_seg = PixelData(data=labels)
        result.append(sample)
    return result


class Watch:
    """Records outputs of modules at once, in copies, and the names of all modules that run."""

    def __init__(self, model, *paths):
        self.model = model
        self.outputs = {path: [] for path in paths}
        self.ran = []
        self._handles = []
        for name, module in model.named_modules():
            self._handles.append(
                module.register_forward_pre_hook(lambda *_, name=name: self.ran.append(name))
            )
            if name in paths:
                # before all other hooks, one of which ends the teacher's forward
                hook = module.register_forward_hook(self._recorder(name), prepend=True)
                self._handles.append(hook)

    def _recorder(self, name):
        def hook(module, inputs, output):
            output = output if isinstance(output, torch.Tensor) else tuple(output)
            copied = (
                output.detach().clone()
                if isinstance(output, torch.Tensor)
                else tuple(o.detach().clone() for o in output)
            )
            self.outputs[name].append(copied)

        return hook

    def __getitem__(self, path):
        assert len(self.outputs[path]) == 1, f'{path}: {len(self.outputs[path])} outputs'
        return self.outputs[path][0]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for handle in self._handles:
            handle.remove()


def total(losses):
    """What is backpropagated of a dict of losses."""
    values = [
        v if isinstance(v, torch.Tensor) else sum(v) for k, v in losses.items() if 'loss' in k
    ]
    return sum(v.mean() for v in values)


@DATASETS.register_module(force=True)
class RandomScenes(torch.utils.data.Dataset):
    """Random uint8 images with label maps; item i is always the same."""

    metainfo = dict(classes=tuple('abcde'), palette=None)

    def __init__(self, length=16, size=32):
        self.length = length
        self.size = size

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        image = torch.randint(0, 256, (3, self.size, self.size), generator=generator)
        return dict(inputs=image.to(torch.uint8), data_samples=samples(1, self.size, seed=index)[0])


def run(model, work_dir, iters=4, batch=2, hooks=(), epochs=None, **kwargs):
    """Train with MMEngine's Runner, data in a fixed order; gives the runner."""
    schedule = (
        dict(by_epoch=True, max_epochs=epochs)
        if epochs
        else dict(by_epoch=False, max_iters=iters, val_interval=10**6)
    )
    default_hooks = dict(
        logger=dict(type='LoggerHook', interval=1),
        checkpoint=dict(
            type='CheckpointHook',
            interval=kwargs.pop('save_every', 10**6),
            by_epoch=bool(epochs),
            save_last=kwargs.pop('save_last', True),
        ),
        sampler_seed=dict(type='DistSamplerSeedHook'),
    )
    runner = Runner(
        model=model,
        work_dir=str(work_dir),
        train_cfg=schedule,
        train_dataloader=kwargs.pop('loader', None)
        or dict(
            batch_size=batch,
            num_workers=0,
            sampler=dict(type='DefaultSampler' if epochs else 'InfiniteSampler', shuffle=False),
            dataset=dict(type='RandomScenes', length=kwargs.pop('length', 16)),
        ),
        optim_wrapper=kwargs.pop(
            'optim_wrapper',
            dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.05, momentum=0.9)),
        ),
        default_hooks=default_hooks,
        custom_hooks=list(hooks),
        default_scope='mmseg',
        experiment_name=f'test{next(_counter)}',
        randomness=dict(seed=0),
        log_level='WARNING',
        **kwargs,
    )
    runner.train()
    return runner


def _count():
    number = os.getpid() * 1000
    while True:
        number += 1
        yield number


_counter = _count()


def count_runs(model):
    """A list that grows by one with every forward of a model."""
    runs = []
    model.register_forward_pre_hook(lambda *_: runs.append(1))
    return runs


def scalars(work_dir):
    """The lines of the JSON scalars file of a run."""
    (path,) = Path(work_dir).glob('*/vis_data/scalars.json')
    return [json.loads(line) for line in path.read_text().splitlines()]


def bitwise_equal(a, b):
    """Whether two state dicts have the same names and the very same values."""
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


def main(folder):
    """What one of two processes finds out; conftest.py runs it and hands the tests the files.

    All of it in one place because starting two processes takes ten seconds.
    """
    rank = int(os.environ['RANK'])
    torch.distributed.init_process_group('gloo')
    found = dict(
        stopped=_stop_in_two_processes(folder),
        geometry=_geometry_of_two(folder, rank),
        non_finite=_non_finite_in_one_of_two(folder, rank),
        sanity=_sanity_of_two(folder),
        headless=_headless_teachers_of_two(folder),
        sync_bn=_sync_batchnorm_in_two_processes(folder),
    )
    torch.save(found, Path(folder) / f'rank{rank}.pth')
    leave_processes()


_DISTRIBUTED = dict(
    launcher='pytorch',
    env_cfg=dict(dist_cfg=dict(backend='gloo')),
    cfg=dict(
        model_wrapper_cfg=dict(
            type='MMDistributedDataParallel', device_ids=None, find_unused_parameters=False
        )
    ),
)


def _bn(config):
    """The config with BN in place of SyncBN, which does not train in CPU processes."""
    config = json.loads(json.dumps(config).replace('SyncBN', 'BN'))
    return dict(config, test_cfg=ConfigDict(config['test_cfg']))


def _stop_in_two_processes(folder):
    mask = dict(type='MGDConnector', student_channels='auto', teacher_channels='auto')
    masked = pair('backbone[2]', loss=dict(type='MGDLoss'), student_connector=mask)
    algorithm = distill(pair(), pair('backbone[3]'), masked, student=_bn(pspnet()))
    runs = count_runs(algorithm.teacher)
    before = copy.deepcopy(algorithm.student.state_dict())
    runner = run(
        algorithm,
        Path(folder) / 'stopped',
        epochs=3,
        length=8,
        hooks=[dict(type='mmrazor.StopDistillHook', stop_epoch=1)],
        **_DISTRIBUTED,
    )
    wrapper = runner.model
    state = wrapper.state_dict()
    other = copy.deepcopy(wrapper.module)
    for parameter in other.parameters():
        torch.nn.init.zeros_(parameter)
    fresh = type(wrapper)(module=other)
    result = fresh.load_state_dict(state)
    return dict(
        wrapper=type(wrapper).__name__,
        iterations=runner.iter,
        runs=len(runs),
        before=before,
        state=state,
        own_state=get_state_dict(wrapper),
        plain=list(build(pspnet()).state_dict()),
        missing=result.missing_keys,
        unexpected=result.unexpected_keys,
        reloaded=fresh.state_dict(),
        teacher=algorithm.teacher.state_dict(),
    )


def _sync_batchnorm_in_two_processes(folder):
    """Train a student with SyncBN, of which two are recorded, with the Runner of the tools."""
    norms = ('backbone.layer4.1.bn1', 'decode_head.bottleneck.bn')
    model = dict(
        type='FrozenTeacherDistill',
        architecture=pspnet(),
        teacher=pspnet(8, 16),
        distiller=feature_distiller(*map(pair, norms)),
        allow_random_teacher=True,
    )
    dataset = dict(type='RandomScenes')
    sampler = dict(type='InfiniteSampler', shuffle=False)
    config = dict(
        model=model,
        work_dir=str(Path(folder) / 'sync_bn'),
        launcher='pytorch',
        train_cfg=dict(by_epoch=False, max_iters=2),
        train_dataloader=dict(batch_size=2, num_workers=0, sampler=sampler, dataset=dataset),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.05)),
        default_hooks=dict(checkpoint=None),
        default_scope='mmseg',
        experiment_name='sync_bn',
        randomness=dict(seed=0),
        log_level='WARNING',
    )
    runner = build_runner(Config(config))
    algorithm, states, losses = runner.model.module, [], []
    algorithm.register_forward_pre_hook(
        lambda *_: states.append(copy.deepcopy(algorithm.student.state_dict()))
    )
    algorithm.register_forward_hook(lambda module, inputs, output: losses.append(output))
    runner.train()
    return dict(
        wrapper=type(runner.model).__name__,
        in_config=has_sync_batchnorm(build(model)),
        in_training=has_sync_batchnorm(algorithm),
        losses=[sorted(n for n in x if n.startswith('distill.loss')) for x in losses],
        finite=all(bool(total(x).isfinite()) for x in losses),
        first=states[0],
        last=algorithm.student.state_dict(),
    )


def has_sync_batchnorm(model):
    return any(isinstance(m, nn.SyncBatchNorm) for m in model.modules())


def _geometry_of_two(folder, rank):
    """Log the geometry in both processes, and compute it from this one's own features."""
    algorithm = distill(teacher=pspnet(8, 8), student=_bn(pspnet()))
    spy = GeometrySpy(algorithm)
    work_dir = Path(folder) / 'geometry'
    run(algorithm, work_dir, iters=3, hooks=[spy, _geometry_hook(2)], **_DISTRIBUTED)
    torch.distributed.barrier()
    return dict(own=spy.values, logged=scalars(work_dir) if rank == 0 else None)


class BreakTeacher(Hook):
    """Makes the teacher's features infinite from the second iteration on."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        """Overwrite a weight."""
        if runner.iter == 1:
            runner.model.module.teacher.backbone.stem[0].weight.fill_(float('inf'))


def _non_finite_in_one_of_two(folder, rank):
    hooks = [BreakTeacher()] * rank + [dict(type='NonFiniteLossHook')]
    try:
        run(distill(student=_bn(pspnet())), Path(folder) / 'bad', hooks=hooks, **_DISTRIBUTED)
    except NonFiniteLossError as error:
        torch.distributed.barrier()
        return str(error)


def _sanity_of_two(folder):
    """What a good teacher and a wrong one are told, with images for both processes."""
    found = []
    for name, path in zip(('good', 'wrong'), teachers(Path(folder))):
        algorithm = distill(student=_bn(pspnet()), teacher_ckpt=path)
        hook = dict(type='TeacherSanityHook', images=5, expected=dict(mIoU=100.0))
        try:
            run(
                algorithm,
                Path(folder) / name,
                hooks=[hook],
                iters=1,
                **validation(batch=2),
                **_DISTRIBUTED,
            )
        except ValueError as error:
            found.append(str(error))
        else:
            found.append('')
        torch.distributed.barrier()
    return found


def _headless_teachers_of_two(folder):
    """What is told of a trained teacher without a head, of an untrained one, and of 5 images."""
    from small_networks import own_teacher, random_state, save, trained_state

    from rawkd_mm.hooks import teacher_features

    found, looked_at = [], []
    check = teacher_features._problems

    def spy(images, feature, min_rank):
        looked_at.append((len(images), feature.effective_rank, feature.mean_cosine))
        return check(images, feature, min_rank)

    teacher_features._problems = spy
    broken = {
        **trained_state(),
        'layers.21.weight': trained_state()['layers.21.weight'] * float('nan'),
    }
    for name, state in dict(good=trained_state(), untrained=random_state(), broken=broken).items():
        own = Path(folder) / f'{name}{os.environ["RANK"]}'
        own.mkdir()
        algorithm = distill(
            pair(teacher='features[0]'),
            student=_bn(pspnet()),
            teacher=own_teacher(),
            teacher_ckpt=save(state, own),
        )
        try:
            run(
                algorithm,
                Path(folder) / f'headless_{name}',
                hooks=[dict(type='TeacherSanityHook', images=5)],
                iters=1,
                **validation(batch=2),
                **_DISTRIBUTED,
            )
        except ValueError as error:
            found.append(str(error))
        else:
            found.append('')
        torch.distributed.barrier()
    teacher_features._problems = check
    return found, looked_at


_TEACHER = (8, 16)


def teachers(folder, **kwargs):
    """Checkpoints of the teacher that the labels of TeachersScenes are from, and of another.

    Args:
        folder (Path): Where to.
        **kwargs: What the checkpoints have besides, ``meta`` for example.
    """
    paths = []
    for seed in (21, 22):
        torch.manual_seed(seed)
        model = train_statistics(build(pspnet(*_TEACHER)), seed=seed)
        paths.append(str(Path(folder) / f'teacher_{seed}_{os.getpid()}.pth'))
        torch.save(dict(state_dict=model.state_dict(), **kwargs), paths[-1])
    return paths


@DATASETS.register_module(force=True)
class TeachersScenes(RandomScenes):
    """Random images whose labels are what a teacher says, which for it are easy."""

    def __init__(self, length=8, size=32, classes='abcde'):
        super().__init__(length, size)
        self.metainfo = dict(classes=tuple(classes), palette=None)
        torch.manual_seed(21)
        self.teacher = train_statistics(build(pspnet(*_TEACHER)), seed=21).eval()

    def __getitem__(self, index):
        item = super().__getitem__(index)
        batch = dict(inputs=[item['inputs']], data_samples=[item['data_samples'].clone()])
        with torch.no_grad():
            (predicted,) = self.teacher.val_step(batch)
        item['data_samples'].gt_sem_seg = PixelData(data=predicted.pred_sem_seg.data)
        return item


def validation(batch=1, **kwargs):
    """Arguments of run() for a validation on TeachersScenes, that never takes place in training."""
    return dict(
        val_dataloader=dict(
            batch_size=batch,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=False),
            dataset=dict(type='TeachersScenes', **kwargs),
        ),
        val_evaluator=dict(type='IoUMetric', iou_metrics=['mIoU']),
        val_cfg=dict(type='ValLoop'),
    )


def _geometry_hook(interval):
    return dict(type='FeatureGeometryHook', interval=interval)


class GeometrySpy(Hook):
    """Computes from independent records what the FeatureGeometryHook should log.

    Written in float64 from the formulas of the supplement's Eq. (10).
    """

    priority = 'VERY_HIGH'

    def __init__(self, algorithm, student=BOTTLENECK, teacher=BOTTLENECK):
        self.algorithm = algorithm
        self.student = student
        self.teacher = teacher
        self.values = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        """Watch this iteration's features."""
        self._watches = (
            Watch(self.algorithm.student, self.student),
            Watch(self.algorithm.teacher, self.teacher),
        )
        self._connectors = copy.deepcopy(self.algorithm.distiller.connectors)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        """Compute what they tell."""
        for watch in self._watches:
            watch.__exit__()
        student, teacher = self._watches[0][self.student], self._watches[1][self.teacher]
        for connector in self._connectors.values():
            student = connector(student).detach()
        s, t = student.double().flatten(1), teacher.double().flatten(1)
        n, m, size = s.norm(dim=1), t.norm(dim=1), s.shape[1]
        cosine = (s * t).sum(1) / (n * m)
        values = dict(
            n=n,
            m=m,
            mn_over_N=m * n / size,
            cos_theta=cosine,
            magnitude_term=(m - n) ** 2 / size,
            angular_term=2 * m * n * (1 - cosine) / size,
        )
        self.values.append({name: value.mean().item() for name, value in values.items()})


if __name__ == '__main__':
    main(sys.argv[1])


def capture_log(monkeypatch, level=None):
    """Give a list that collects what MMEngine logs during a test, of one level only if told."""
    lines = []
    handle = MMLogger.callHandlers

    def call_handlers(self, record):
        if level in (None, record.levelno):
            lines.append(record.getMessage())
        handle(self, record)

    monkeypatch.setattr(MMLogger, 'callHandlers', call_handlers)
    return lines
