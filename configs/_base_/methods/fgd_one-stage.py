# The paper's values for RetinaNet; its released config has gamma=5e-4.
_base_ = './fgd_two-stage.py'

method = dict(
    note="the paper's values for one-stage detectors",
    model=dict(
        init_student=['neck', 'bbox_head'],  # of RetinaNet: they begin with the teacher's weights
        distiller=dict(
            loss=dict(alpha=1e-3, beta=5e-4, gamma=1e-3, lambda_=5e-6),
            pairs=[
                dict(student=f'neck.fpn_convs.{i}.conv', teacher=f'neck.fpn_convs.{i}.conv')
                for i in range(5)
            ],
        ),
    ),
)
