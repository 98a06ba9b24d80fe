# Ours, DigitScenes: mIoU 22.06.
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
        loss=dict(_delete_=True, alpha_mgd=2e-05, type='MGDLoss'),
        pairs=[dict(student='backbone.layer4', teacher='backbone.layer4')],
        student_connector=dict(
            lambda_mgd=0.75, student_channels='auto', teacher_channels='auto', type='MGDConnector'
        ),
    )
)
optim_wrapper = dict(clip_grad=dict(_delete_=True, max_norm=35, norm_type=2))
train_cfg = dict(val_interval=1000)
