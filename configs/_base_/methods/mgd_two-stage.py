# The values are those of the paper for two-stage detectors.
_base_ = './mgd_segmentation.py'

method = dict(
    note='the published values for two-stage detectors',
    model=dict(
        distiller=dict(
            loss=dict(alpha_mgd=5e-7),
            student_connector=dict(lambda_mgd=0.45),
            pairs=[
                dict(student=f'neck.fpn_convs.{i}.conv', teacher=f'neck.fpn_convs.{i}.conv')
                for i in range(4)
            ],
        ),
    ),
)
