_base_ = '../../students/retinanet_r50_fpn_8xb2-2x_coco.py'

model = dict(
    _delete_=True,
    type='FrozenTeacherDistill',
    architecture=_base_.model,
    teacher=dict(
        cfg_path='mmdet::retinanet/retinanet_x101-64x4d_fpn_1x_coco.py',
        pretrained=False,
    ),
    teacher_ckpt='https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_x101_64x4d_fpn_1x_coco/retinanet_x101_64x4d_fpn_1x_coco_20200130-366f5af1.pth',
    distiller=dict(
        type='FeatureDistiller',
        # all maps of the neck; their losses are summed
        pairs=[dict(student=f'neck[{i}]', teacher=f'neck[{i}]') for i in range(5)],
    ),
)
custom_hooks = [
    # the published metric of the teacher; on a few images it deviates
    dict(type='TeacherSanityHook', expected={'coco/bbox_mAP': 0.410}),
    dict(type='NonFiniteLossHook'),
]
