# DigitScenes as boxes. This makes it (any size will do):
#   python tools/dataset_converters/digit_scenes.py --root data/digit_scenes_64 --size 64
# No flips: a mirrored digit is not that digit any more.
dataset_type = 'CocoDataset'
data_root = 'data/digit_scenes_64'
metainfo = dict(classes=tuple(f'digit {digit}' for digit in range(10)))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale_factor=1.0, keep_ratio=True),  # the detector asks for a scale_factor
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
train_dataloader = dict(
    batch_size=16,
    num_workers=0,  # reading so small an image takes less than handing it over
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='coco/train.json',
        data_prefix=dict(img='images/train'),
        metainfo=metainfo,
        pipeline=train_pipeline,
    ),
)
# All images have one size, so that whole batches can be tested.
val_dataloader = dict(
    batch_size=16,
    num_workers=0,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='coco/val.json',
        data_prefix=dict(img='images/val'),
        metainfo=metainfo,
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='CocoMetric', ann_file=f'{data_root}/coco/val.json', metric='bbox')
test_evaluator = val_evaluator
