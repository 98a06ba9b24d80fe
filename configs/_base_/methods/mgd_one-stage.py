# The values are those of the paper for one-stage detectors.
_base_ = './mgd_segmentation.py'

method = dict(
    note='the published values for one-stage detectors',
    model=dict(
        init_student=['neck', 'bbox_head'],  # of RetinaNet: they begin with the teacher's weights
        distiller=dict(
            loss=dict(alpha_mgd=2e-5),
            student_connector=dict(lambda_mgd=0.65),
            pairs=[
                dict(student=f'neck.fpn_convs.{i}.conv', teacher=f'neck.fpn_convs.{i}.conv')
                for i in range(5)
            ],
        ),
    ),
)
