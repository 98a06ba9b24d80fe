# The values of configs/_base_/methods/mgd_segmentation.py, on the last map of the backbone.
_base_ = './lad.py'

model = dict(
    distiller=dict(
        loss=dict(_delete_=True, type='MGDLoss', alpha_mgd=2e-5),
        student_connector=dict(
            type='MGDConnector',
            student_channels='auto',
            teacher_channels='auto',
            lambda_mgd=0.75,
        ),
        pairs=[dict(student='backbone.layer4', teacher='backbone.layer4')],
    )
)
optim_wrapper = dict(clip_grad=dict(_delete_=True, max_norm=35, norm_type=2))
