# Ours, DigitScenes: box AP 16.0.
_base_ = (
    '../quickstart/'
    'cad_neck_retinanet-r18-w32_retinanet-r18-w8_1xb16-1k_digit-scenes-64x64_200-labels.py'
)

custom_hooks = [dict(interval=12, type='FeatureGeometryHook')]
default_hooks = dict(
    checkpoint=dict(interval=500, type='ResumableCheckpointHook'), logger=dict(interval=50)
)
model = dict(
    architecture=dict(bbox_head=dict(feat_channels=64, in_channels=64), neck=dict(out_channels=64)),
    distiller=dict(
        loss=dict(
            _delete_=True,
            alpha=0.001,
            beta=0.0005,
            gamma=0.001,
            lambda_=5e-06,
            temperature=0.5,
            type='FGDLoss',
        ),
        student_connector=dict(in_channels='auto', type='GlobalContextConnector'),
        teacher_connector=dict(in_channels='auto', type='GlobalContextConnector'),
    ),
)
train_cfg = dict(val_interval=1000)
