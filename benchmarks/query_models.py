#!/usr/bin/env python
"""Measure whether models with queries learn from a teacher, on DigitScenes.

Three pairs, each a published config made small: Mask2Former of MMSegmentation (semantic, mIoU),
Mask2Former of MMDetection (instances, mask AP) and DINO (boxes, box AP). The teacher is wider and has
the labels of 4000 scenes, the student has those of 400. With LAD and CAD it also sees 4000 other
scenes without labels, 16 beside 16 labelled ones in an iteration. The features are those that
make_distill_config.py --features auto chooses. All methods of one seed have the same initial student,
the same labelled scenes and the same order of them.

The published configs begin with backbones of ImageNet. Here the teacher begins with that of the
quickstart's PSPNet, and the student with that of a narrow PSPNet which had the labels of 4000 further
scenes.

    python benchmarks/query_models.py --jobs 2      # trains what the CSV lacks, teachers first
    python benchmarks/query_models.py --summary     # table of the CSV
"""

import argparse
import copy
import functools
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import few_labels
from few_labels import BATCH, ROOT, TEACHERS_SCENES

RESULTS = ROOT / 'benchmarks' / 'results' / 'query_models.csv'
MODELS = ROOT / 'work_dirs' / 'query_models'
DATA = ROOT / 'data' / 'digit_scenes_64_few_labels'
UNLABELLED = 4000
METHODS = dict(teacher='teacher', alone='student alone', lad='LAD', cad='CAD')
# Pair -> what it is called, and what of a validation counts, with what makes percent of it.
PAIRS = dict(
    backbone=('PSPNet, whose backbone the students begin with', 'mIoU', 1),
    semantic=('Mask2Former, semantic', 'mIoU', 1),
    instance=('Mask2Former, instances', 'coco/segm_mAP', 100),
    boxes=('DINO, boxes', 'coco/bbox_mAP', 100),
)
QUERY_PAIRS = [pair for pair in PAIRS if pair != 'backbone']
OF_POSITIONS = ('backbone', 'semantic')  # segment scenes of 48x48, the others have 64x64
METRIC = 'metric'
QUERIES = 20
POINTS = 256  # of which a mask's loss is computed
RATE = 2e-3
TEACHERS_PSPNET = 'pspnet_r18-w12_1xb16-4k_digit-scenes-48x48.py'
STUDENTS_PSPNET = 'pspnet_r18-w4_1xb16-4k_digit-scenes-48x48.py'
RETINANET = 'retinanet_r18-w8_1xb16-3k_digit-scenes-64x64.py'  # for its data
SEMANTIC = 'mmseg::mask2former/mask2former_r50_8xb2-90k_cityscapes-512x1024.py'
INSTANCE = 'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py'
BOXES = 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'


class Task(NamedTuple):
    """One training.

    Attributes:
        pair: Key of ``PAIRS``.
        method: Key of ``METHODS``.
        features: 'auto' or 'memory', as make_distill_config.py has it.
        labels: Number of labelled scenes.
        unlabelled: Number of unlabelled scenes.
        iterations: How long.
        seed: Of the student, the labelled scenes and their order.
    """

    pair: str
    method: str
    features: str
    labels: int
    unlabelled: int
    iterations: int
    seed: int

    @property
    def cost(self) -> float:
        """Roughly, in what an iteration of a student alone costs."""
        return self.iterations * dict(teacher=1.6, alone=1).get(self.method, 2.4)


def grid(labels: int, iterations: int, seeds: list[int], pairs: list[str], memory: bool) -> list:
    """Give the trainings of the students."""
    ways = [('alone', 'auto', 0), ('lad', 'auto', UNLABELLED), ('cad', 'auto', UNLABELLED)]
    if memory:
        ways += [(method, 'memory', UNLABELLED) for method in ('lad', 'cad')]
    return [
        Task(pair, method, features, labels, unlabelled, iterations, seed)
        for pair in pairs
        for seed in seeds
        for method, features, unlabelled in ways
    ]


def backbone(role: str) -> tuple[dict, list[int]]:
    """Give a pretrained backbone with maps of stride 4 alone, and their channels."""
    from mmengine.config import Config

    name = STUDENTS_PSPNET if role == 'student' else TEACHERS_PSPNET
    cfg = copy.deepcopy(few_labels.read(name)).model.backbone
    file = trained('backbone')
    if role == 'teacher':
        file = ROOT / 'configs' / 'quickstart' / 'weights' / f'{Path(name).stem}.pth'
    cfg.update(type='mmseg.ResNetV1c', norm_cfg=dict(type='BN', requires_grad=True))
    cfg.init_cfg = dict(type='Pretrained', checkpoint=str(file), prefix='backbone.')
    channels = [cfg.base_channels * 2**stage for stage in range(4)]
    return Config(cfg).to_dict() | dict(_delete_=True), channels


def mask2former_head(maps: list[int], channels: int) -> dict:
    """Give what makes a Mask2FormerHead small: two encoder layers, three decoder layers, 20 queries."""
    attention = dict(embed_dims=channels, num_heads=4)
    feed_forward = dict(embed_dims=channels, feedforward_channels=2 * channels)
    encoder = dict(num_layers=2, layer_cfg=dict(self_attn_cfg=attention, ffn_cfg=feed_forward))
    layer = dict(self_attn_cfg=attention, cross_attn_cfg=attention, ffn_cfg=feed_forward)
    encoding = dict(num_feats=channels // 2)
    return dict(
        in_channels=maps,
        strides=[4, 4, 4, 4],
        feat_channels=channels,
        out_channels=channels,
        num_queries=QUERIES,
        pixel_decoder=dict(
            norm_cfg=dict(num_groups=8), encoder=encoder, positional_encoding=encoding
        ),
        positional_encoding=encoding,
        transformer_decoder=dict(num_layers=3, layer_cfg=layer),
    )


@functools.cache
def published(name: str):
    from rawkd_mm.training import load_config

    return load_config(name).model


def semantic(role: str, channels: int) -> tuple[str, dict]:
    """Give the published config and its changes."""
    pretrained, maps = backbone(role)
    head = mask2former_head(maps, channels)
    head.update(num_classes=11, loss_cls=dict(class_weight=[1.0] * 11 + [0.1]))
    head['train_cfg'] = dict(num_points=POINTS)
    images = dict(size=(48, 48), test_cfg=dict(size_divisor=48))
    return SEMANTIC, dict(data_preprocessor=images, backbone=pretrained, decode_head=head)


def instance(role: str, channels: int) -> tuple[str, dict]:
    """Give the published config and its changes."""
    pretrained, maps = backbone(role)
    numbers = dict(num_things_classes=10, num_stuff_classes=0)
    head = dict(mask2former_head(maps, channels), **numbers)
    head['loss_cls'] = dict(class_weight=[1.0] * 10 + [0.1])
    return INSTANCE, dict(
        data_preprocessor=dict(batch_augments=None),
        backbone=pretrained,
        panoptic_head=head,
        panoptic_fusion_head=numbers,
        train_cfg=dict(num_points=POINTS),
        test_cfg=dict(max_per_image=QUERIES),
    )


def boxes(role: str, channels: int) -> tuple[str, dict]:
    """Give the published config and its changes."""
    pretrained, maps = backbone(role)
    pretrained['out_indices'] = (1, 2, 3)
    attention = dict(embed_dims=channels, num_heads=4)
    deformable = dict(attention, num_levels=3)
    ffn = dict(embed_dims=channels, feedforward_channels=2 * channels)
    layer = dict(self_attn_cfg=attention, cross_attn_cfg=deformable, ffn_cfg=ffn)
    return BOXES, dict(
        num_queries=QUERIES,
        num_feature_levels=3,
        backbone=pretrained,
        neck=dict(
            in_channels=maps[1:],
            out_channels=channels,
            norm_cfg=dict(num_groups=8),
            num_outs=3,
        ),
        encoder=dict(num_layers=2, layer_cfg=dict(self_attn_cfg=deformable, ffn_cfg=ffn)),
        decoder=dict(num_layers=3, layer_cfg=layer),
        positional_encoding=dict(num_feats=channels // 2),
        bbox_head=dict(num_classes=10, embed_dims=channels),
        dn_cfg=dict(group_cfg=dict(num_dn_queries=QUERIES)),
        test_cfg=dict(max_per_img=QUERIES),
    )


def model(pair: str, role: str) -> dict:
    """Give the teacher or the student of a pair."""
    from mmengine.config import Config

    makers = dict(semantic=semantic, instance=instance, boxes=boxes)
    name, changes = makers[pair](role, 64 if role == 'teacher' else 32)
    cfg = Config(dict(model=copy.deepcopy(published(name)).to_dict()))
    cfg.merge_from_dict(dict(model=changes))
    return cfg.model.to_dict()


@functools.cache
def chosen_pairs(pair: str, features: str) -> list[dict]:
    """Give the pairs of features that make_distill_config.py would write."""
    from mmengine.config import ConfigDict
    from mmengine.registry import DefaultScope
    from mmseg.registry import MODELS

    from rawkd_mm.features import find_features, find_memory, match_features

    find = find_memory if features == 'memory' else find_features
    scope = 'mmseg' if pair == 'semantic' else 'mmdet'
    with DefaultScope.overwrite_default_scope(scope):
        found = [
            find(MODELS.build(ConfigDict(model(pair, role), _scope_=scope)), role)
            for role in ('student', 'teacher')
        ]
    pairs, _ = match_features(*found)
    return [dict(student=s.source.text, teacher=t.source.text) for s, t in pairs]


def data(cfg, task: Task) -> None:
    """Set the scenes of a training."""
    chosen = few_labels.labelled_scenes(task.labels, task.seed).tolist()
    loader = dict(num_workers=0, batch_size=BATCH)
    if task.pair in OF_POSITIONS:
        unlabelled = dict(type='ScenesInMemory', split='train', start=TEACHERS_SCENES)
        unlabelled.update(count=task.unlabelled, has_labels=False)
        scenes = dict(type='ScenesInMemory', split='train', count=task.labels, seed=task.seed)
        if task.pair == 'backbone':
            scenes.update(start=TEACHERS_SCENES + UNLABELLED, seed=None)
        sampler = dict(type='InfiniteSampler', shuffle=True)
        cfg.train_dataloader = dict(**loader, sampler=sampler, dataset=scenes)
        cfg.val_dataloader = dict(
            **loader,
            sampler=dict(type='DefaultSampler', shuffle=False),
            dataset=dict(type='ScenesInMemory', split='val', count=300),
        )
    else:
        unlabelled = dict(
            type='UnlabelledImages',
            data_root=str(DATA / 'images' / 'train'),
            indices=list(range(TEACHERS_SCENES, TEACHERS_SCENES + task.unlabelled)),
            pipeline=[dict(type='LoadImageFromFile'), dict(type='PackDetInputs')],
        )
        for part in (cfg.train_dataloader, cfg.val_dataloader):
            part.update(loader, persistent_workers=False)
            part.dataset.data_root = str(DATA)
        cfg.train_dataloader.dataset.indices = chosen
        if task.pair == 'instance':
            for step in cfg.train_dataloader.dataset.pipeline:
                if step['type'] == 'LoadAnnotations':
                    step['with_mask'] = True
        metric = 'segm' if task.pair == 'instance' else 'bbox'
        cfg.val_evaluator.update(ann_file=str(DATA / 'coco' / 'val.json'), metric=metric)
    cfg.custom_hooks = []
    if task.unlabelled:
        hook = dict(type='UnlabelledImagesHook', dataset=unlabelled, batch_size=BATCH)
        cfg.custom_hooks = [dict(hook, num_workers=0)]


def config(task: Task, folder: str):
    """Give the config of a training."""
    name = STUDENTS_PSPNET if task.pair in OF_POSITIONS else RETINANET
    cfg = copy.deepcopy(few_labels.read(name))
    data(cfg, task)
    few_labels.set_schedule(cfg, task.iterations, task.seed, folder)
    cfg.experiment_name = 'queries'
    if task.pair == 'backbone':
        return cfg
    cfg.model = model(task.pair, 'teacher' if task.method == 'teacher' else 'student')
    if task.method in ('lad', 'cad'):
        cfg.model = dict(
            type='FrozenTeacherDistill',
            architecture=cfg.model,
            teacher=model(task.pair, 'teacher'),
            teacher_ckpt=str(trained(task.pair)),
            distiller=dict(
                type='FeatureDistiller',
                loss=dict(type=f'{task.method.upper()}Loss', loss_weight=3.0),
                pairs=chosen_pairs(task.pair, task.features),
            ),
        )
    cfg.optim_wrapper = dict(
        type='OptimWrapper',
        optimizer=dict(type='AdamW', lr=RATE, weight_decay=0.01),
        clip_grad=dict(max_norm=1.0, norm_type=2),
    )
    cfg.param_scheduler[0].eta_max = RATE
    return cfg


def trained(name: str) -> Path:
    """Give where the teacher of a pair lies, or the pretrained student: 'backbone'."""
    return MODELS / f'{name}.pth'


def train(task: Task, _: object = None) -> float:
    """Run a training; gives the metric of its pair on the 300 validation scenes, in percent."""
    import torch

    from rawkd_mm.training import build_runner

    with tempfile.TemporaryDirectory() as folder:
        runner = build_runner(config(task, folder))
        runner.train()
        if task.method == 'teacher' or task.pair == 'backbone':
            MODELS.mkdir(parents=True, exist_ok=True)
            torch.save(dict(state_dict=runner.model.state_dict()), trained(task.pair))
        _, metric, percent = PAIRS[task.pair]
        return percent * float(runner.message_hub.get_scalar(f'val/{metric}').current())


def prepare(pairs: list[str], jobs: int) -> None:
    """Make the scenes and import everything, for trainings that are forked."""
    import torch

    torch.set_num_threads(1)
    few_labels.make_scenes(UNLABELLED + TEACHERS_SCENES, jobs)
    if set(pairs) - {'semantic'}:
        from digit_scenes_generator import DigitScenesOptions, generate

        generate(DATA, DigitScenesOptions(train=TEACHERS_SCENES + UNLABELLED), jobs)
    import mmdet.models  # noqa: F401
    import mmseg.models  # noqa: F401

    import rawkd_mm  # noqa: F401 (registers)

    few_labels.register()


def summarise(file: Path) -> None:
    """Print the table of a CSV and write it beside it."""
    groups = {}
    for task, row in few_labels.finished(file, Task).items():
        groups.setdefault(task._replace(seed=-1), {})[task.seed] = float(row[METRIC])
    lines = [
        '| pair | method | features | labels | iterations | seeds | result | gain over alone |',
        '|' + '---|' * 8,
    ]
    pairs, methods = list(PAIRS), list(METHODS)

    def place(group: Task) -> tuple:
        return pairs.index(group.pair), methods.index(group.method), group

    for group in sorted(groups, key=place):
        name, metric, _ = PAIRS[group.pair]
        values = groups[group]
        alone = groups.get(group._replace(method='alone', features='auto', unlabelled=0), {})
        gains = [value - alone[seed] for seed, value in values.items() if seed in alone]
        is_distilled = group.method in ('lad', 'cad')
        gain = few_labels.with_spread(gains, '+.1f') if is_distilled else ''
        unit = metric.removeprefix('coco/').replace('_mAP', ' AP')
        lines.append(
            f'| {name} | {METHODS[group.method]} | {group.features if gain else ""} | {group.labels} | '
            f'{group.iterations} | {len(values)} | '
            f'{few_labels.with_spread(values.values(), ".1f")} {unit} | {gain} |'
        )
    few_labels.save_table(lines, file)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--pairs', nargs='+', choices=QUERY_PAIRS, default=QUERY_PAIRS, help='default: all'
    )
    parser.add_argument('--labels', type=int, default=400, help="of the student's (default 400)")
    parser.add_argument(
        '--iters', type=int, default=400, help="the students' iterations (default 400)"
    )
    parser.add_argument(
        '--teacher-iters', type=int, default=800, help="the teachers' iterations (default 800)"
    )
    parser.add_argument(
        '--backbone-iters', type=int, default=1500, help='iterations of the PSPNet (default 1500)'
    )
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2], help='default: 0 1 2')
    parser.add_argument('--memory', action='store_true', help='also what --features memory chooses')
    parser.add_argument('--jobs', type=int, default=1, help='trainings side by side (default 1)')
    parser.add_argument('--out', type=Path, default=RESULTS, help=f'the CSV (default {RESULTS})')
    parser.add_argument('--summary', action='store_true', help='print what the CSV has')
    args = parser.parse_args()
    if args.summary:
        summarise(args.out)
        return
    prepare(args.pairs, args.jobs)
    fields = (*Task._fields, METRIC, 'seconds')
    go_on = functools.partial(few_labels.run, train=train, teacher=None, jobs=args.jobs)
    go_on = functools.partial(go_on, file=args.out, minutes=1e9, fields=fields, metric=METRIC)
    done = few_labels.finished(args.out, Task)
    first = [Task('backbone', 'alone', 'auto', TEACHERS_SCENES, 0, args.backbone_iters, 0)]
    first += [
        Task(pair, 'teacher', 'auto', TEACHERS_SCENES, 0, args.teacher_iters, 0)
        for pair in args.pairs
    ]
    students = grid(args.labels, args.iters, args.seeds, args.pairs, args.memory)
    failed = go_on([t for t in first if t not in done or not trained(t.pair).is_file()])
    students = [task for task in students if task not in done and trained(task.pair).is_file()]
    print(f'{len(students)} students to train, {len(done)} trainings done', flush=True)
    sys.exit(1 if failed + go_on(students) else 0)


if __name__ == '__main__':
    main()
