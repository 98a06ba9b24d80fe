_base_ = ['mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py', '../custom_imports.py']

model = dict(
    _delete_=True,
    type='FrozenTeacherDistill',
    architecture=_base_.model,
    teacher=dict(
        cfg_path='mmdet::dino/dino-5scale_swin-l_8xb2-12e_coco.py',
        pretrained=False,
    ),
    teacher_ckpt='https://download.openmmlab.com/mmdetection/v3.0/dino/dino-5scale_swin-l_8xb2-12e_coco/dino-5scale_swin-l_8xb2-12e_coco_20230228_072924-a654145f.pth',
    # assumption: all maps of the student's neck, each with the teacher's of the same stride: the teacher
    # has a finer one, too
    distiller=dict(
        type='FeatureDistiller',
        pairs=[dict(student=f'neck[{i}]', teacher=f'neck[{i + 1}]') for i in range(4)],
    ),
)
custom_hooks = [
    # the published metric of the teacher; on a few images it deviates
    dict(type='TeacherSanityHook', expected={'coco/bbox_mAP': 0.572}),
    dict(type='NonFiniteLossHook'),
]
