# With the labels of 50 of the 4000 images; all of them, without labels, are seen by the distillation.
_base_ = './lad_bottleneck_pspnet-r18-w12_pspnet-r18-w4_1xb16-4k_digit-scenes-48x48.py'

train_dataloader = dict(dataset=dict(indices=50))
param_scheduler = [
    dict(type='OneCycleLR', eta_max=1e-2, total_steps=1000, pct_start=0.1, by_epoch=False)
]
train_cfg = dict(max_iters=1000, val_interval=250)
default_hooks = dict(checkpoint=dict(interval=250), logger=dict(interval=25))
custom_hooks = [
    dict(type='FeatureGeometryHook', interval=25),
    dict(
        type='UnlabelledImagesHook',
        batch_size=16,
        num_workers=0,
        dataset=dict(
            type='UnlabelledImages',
            data_root='data/digit_scenes/images/train',
            pipeline=[dict(type='LoadImageFromFile'), dict(type='PackSegInputs')],
        ),
    ),
]
