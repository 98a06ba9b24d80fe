_base_ = '../_base_/pairs/cascade-mask-rcnn-x101_mask-rcnn-r50_coco.py'

# MMRazor's loss and connectors, with the weights published for two-stage detectors.
# The connectors pool by 2 and, once more, by maxpool_stride: together 8, 4, 2, 2 as in the
# released code. MMRazor's own config, with a maxpool_stride of 8, 4, 2, 2, pools twice as much.
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
            for i, (reduction, stride) in enumerate([(4, 4), (4, 2), (2, 1), (2, 1)])
        ],
    ),
)
