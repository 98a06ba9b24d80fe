_base_ = '../_base_/pairs/cascade-mask-rcnn-x101_faster-rcnn-r50_coco.py'

# MMRazor's loss, connectors and values, which are the published ones for two-stage detectors.
model = dict(
    distiller=dict(
        loss=dict(
            type='FBKDLoss',
            mask_l2_weight=7e-5,
            channel_weight=4e-3,
            spatial_weight=4e-3,
            nonloacl_weight=7e-5,
        ),
        pairs=[
            dict(
                student=f'neck.fpn_convs.{i}.conv',
                teacher=f'neck.fpn_convs.{i}.conv',
                student_connector=dict(
                    type='FBKDStudentConnector',
                    in_channels='auto',
                    reduction=reduction,
                    mode='dot_product',
                    sub_sample=True,
                    maxpool_stride=stride,
                ),
                teacher_connector=dict(
                    type='FBKDTeacherConnector',
                    in_channels='auto',
                    reduction=reduction,
                    mode='dot_product',
                    sub_sample=True,
                    maxpool_stride=stride,
                ),
            )
            for i, (reduction, stride) in enumerate([(4, 8), (4, 4), (2, 2), (2, 2)])
        ],
    ),
)
