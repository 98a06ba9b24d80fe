# Ours, DigitScenes: box AP 13.6.
_base_ = (
    '../quickstart/'
    'cad_neck_retinanet-r18-w32_retinanet-r18-w8_1xb16-1k_digit-scenes-64x64_200-labels.py'
)

custom_hooks = [
    dict(interval=12, type='FeatureGeometryHook'),
    dict(
        batch_size=16,
        dataset=dict(
            data_root='data/digit_scenes_64/images/train',
            pipeline=[dict(type='LoadImageFromFile'), dict(type='PackDetInputs')],
            type='UnlabelledImages',
        ),
        num_workers=0,
        type='UnlabelledImagesHook',
    ),
]
default_hooks = dict(
    checkpoint=dict(interval=500, type='ResumableCheckpointHook'), logger=dict(interval=50)
)
model = dict(
    architecture=dict(bbox_head=dict(feat_channels=64, in_channels=64), neck=dict(out_channels=64)),
    distiller=dict(
        loss=dict(_delete_=True, alpha_mgd=2e-05, type='MGDLoss'),
        student_connector=dict(
            lambda_mgd=0.65, student_channels='auto', teacher_channels='auto', type='MGDConnector'
        ),
    ),
)
train_cfg = dict(val_interval=1000)
