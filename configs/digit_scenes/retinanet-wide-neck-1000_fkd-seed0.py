# Ours, DigitScenes: box AP 13.0.
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
        loss=dict(
            _delete_=True,
            channel_weight=0.02,
            mask_l2_weight=0.0004,
            nonloacl_weight=0.0004,
            spatial_weight=0.02,
            type='FBKDLoss',
        ),
        pairs=[
            dict(
                student='neck[0]',
                student_connector=dict(
                    in_channels='auto',
                    maxpool_stride=4,
                    mode='dot_product',
                    reduction=2,
                    sub_sample=False,
                    type='FBKDStudentConnector',
                ),
                teacher='neck[0]',
                teacher_connector=dict(
                    in_channels='auto',
                    maxpool_stride=4,
                    mode='dot_product',
                    reduction=2,
                    sub_sample=False,
                    type='FBKDTeacherConnector',
                ),
            ),
            dict(
                student='neck[1]',
                student_connector=dict(
                    in_channels='auto',
                    maxpool_stride=2,
                    mode='dot_product',
                    reduction=2,
                    sub_sample=False,
                    type='FBKDStudentConnector',
                ),
                teacher='neck[1]',
                teacher_connector=dict(
                    in_channels='auto',
                    maxpool_stride=2,
                    mode='dot_product',
                    reduction=2,
                    sub_sample=False,
                    type='FBKDTeacherConnector',
                ),
            ),
            dict(
                student='neck[2]',
                student_connector=dict(
                    in_channels='auto',
                    maxpool_stride=1,
                    mode='dot_product',
                    reduction=2,
                    sub_sample=False,
                    type='FBKDStudentConnector',
                ),
                teacher='neck[2]',
                teacher_connector=dict(
                    in_channels='auto',
                    maxpool_stride=1,
                    mode='dot_product',
                    reduction=2,
                    sub_sample=False,
                    type='FBKDTeacherConnector',
                ),
            ),
        ],
    ),
)
train_cfg = dict(val_interval=1000)
