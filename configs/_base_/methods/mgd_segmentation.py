# MMRazor's loss and connector, which draws a new mask in each iteration, the same for all channels of
# an image; as the released code. The values are published for the last map of the backbone.
method = dict(
    note='the published values for segmentation (the last map of the backbone)',
    model=dict(
        distiller=dict(
            loss=dict(type='MGDLoss', alpha_mgd=2e-5),
            student_connector=dict(
                type='MGDConnector',
                student_channels='auto',
                teacher_channels='auto',
                lambda_mgd=0.75,
            ),
        ),
    ),
    optim_wrapper=dict(clip_grad=dict(max_norm=35, norm_type=2)),
)
