_base_ = '../_base_/pairs/retinanet-x101_retinanet-r50_coco.py'

model = dict(
    init_student=['neck', 'bbox_head'],  # they begin with the teacher's weights
    distiller=dict(
        loss=dict(
            # The paper's values for RetinaNet; its released config has gamma=5e-4.
            type='FGDLoss',
            alpha=1e-3,
            beta=5e-4,
            gamma=1e-3,
            lambda_=5e-6,
            temperature=0.5,
        ),
        student_connector=dict(type='GlobalContextConnector', in_channels='auto'),
        teacher_connector=dict(type='GlobalContextConnector', in_channels='auto'),
        pairs=[
            dict(student=f'neck.fpn_convs.{i}.conv', teacher=f'neck.fpn_convs.{i}.conv')
            for i in range(5)
        ],
    ),
)
optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))
