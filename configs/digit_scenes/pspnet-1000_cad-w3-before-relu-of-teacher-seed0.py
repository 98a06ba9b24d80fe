# Ours, DigitScenes: mIoU 54.70.
_base_ = (
    '../quickstart/'
    'cad_bottleneck_pspnet-r18-w12_pspnet-r18-w4_1xb16-1k_digit-scenes-48x48_50-labels.py'
)

custom_hooks = [
    dict(interval=12, type='FeatureGeometryHook'),
    dict(
        batch_size=16,
        dataset=dict(
            data_root='data/digit_scenes/images/train',
            pipeline=[dict(type='LoadImageFromFile'), dict(type='PackSegInputs')],
            type='UnlabelledImages',
        ),
        num_workers=0,
        type='UnlabelledImagesHook',
    ),
]
default_hooks = dict(checkpoint=dict(interval=500), logger=dict(interval=50))
model = dict(
    distiller=dict(
        pairs=[dict(student='decode_head.bottleneck', teacher='decode_head.bottleneck.bn')]
    )
)
train_cfg = dict(val_interval=1000)
