# MMRazor's loss and connectors. Its weights are those for two-stage detectors; these are the ones that
# the authors of FKD published for one-stage detectors.
# The connectors pool by 2 and, once more, by maxpool_stride: together 8, 4, 2, 2, 2 as in the
# released code. MMRazor's own config, with a maxpool_stride of 8, 4, 2, 2, pools twice as much.
# assumption: all five maps; MMRazor's only config is a two-stage one
method = dict(
    note="FKD's published values for one-stage detectors",
    model=dict(
        distiller=dict(
            loss=dict(
                type='FBKDLoss',
                mask_l2_weight=4e-4,
                channel_weight=2e-2,
                spatial_weight=2e-2,
                nonloacl_weight=4e-4,
            ),
            # the finest level first; further levels have the connectors of the last
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
                for i, (reduction, stride) in enumerate([(4, 4), (4, 2), (2, 1), (2, 1), (2, 1)])
            ],
        ),
    ),
)
