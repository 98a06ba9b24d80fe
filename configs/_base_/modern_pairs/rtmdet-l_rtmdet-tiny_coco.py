_base_ = ['mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py', '../custom_imports.py']

model = dict(
    _delete_=True,
    type='FrozenTeacherDistill',
    architecture=_base_.model,
    teacher=dict(
        cfg_path='mmdet::rtmdet/rtmdet_l_8xb32-300e_coco.py',
        pretrained=False,
    ),
    teacher_ckpt='https://download.openmmlab.com/mmdetection/v3.0/rtmdet/rtmdet_l_8xb32-300e_coco/rtmdet_l_8xb32-300e_coco_20220719_112030-5a0be7c4.pth',
    # assumption: all maps of the neck
    distiller=dict(
        type='FeatureDistiller',
        pairs=[dict(student=f'neck[{i}]', teacher=f'neck[{i}]') for i in range(3)],
    ),
)
custom_hooks = [
    # the student's own
    *_base_.custom_hooks,
    # the published metric of the teacher; on a few images it deviates
    dict(type='TeacherSanityHook', expected={'coco/bbox_mAP': 0.513}),
    dict(type='NonFiniteLossHook'),
]
