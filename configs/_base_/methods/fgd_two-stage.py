# The paper's values for two-stage detectors.
method = dict(
    note="the paper's values for two-stage detectors",
    model=dict(
        distiller=dict(
            loss=dict(
                type='FGDLoss',
                alpha=5e-5,
                beta=2.5e-5,
                gamma=5e-5,
                lambda_=5e-7,
                temperature=0.5,
            ),
            student_connector=dict(type='GlobalContextConnector', in_channels='auto'),
            teacher_connector=dict(type='GlobalContextConnector', in_channels='auto'),
            pairs=[
                dict(student=f'neck.fpn_convs.{i}.conv', teacher=f'neck.fpn_convs.{i}.conv')
                for i in range(4)
            ],
        ),
    ),
    optim_wrapper=dict(clip_grad=dict(max_norm=35, norm_type=2)),
)
