# From 200 labelled images, and all 4000 without their labels.
_base_ = './lad_bottleneck_pspnet-r18-w12_pspnet-r18-w4_1xb16-4k_digit-scenes-48x48.py'

train_dataloader = dict(dataset=dict(indices=200))
custom_hooks = [
    dict(type='FeatureGeometryHook', interval=50),
    dict(
        type='UnlabelledImagesHook',
        batch_size=16,
        dataset=dict(
            type='UnlabelledImages',
            data_root='data/digit_scenes/images/train',
            pipeline=[dict(type='LoadImageFromFile'), dict(type='PackSegInputs')],
        ),
    ),
]
