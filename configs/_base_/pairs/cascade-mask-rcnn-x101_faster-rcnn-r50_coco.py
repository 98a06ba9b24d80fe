_base_ = '../../students/faster-rcnn_r50_fpn_8xb2-2x_coco.py'

model = dict(
    _delete_=True,
    type='FrozenTeacherDistill',
    architecture=_base_.model,
    # Only its backbone and neck run, so that the images need no masks.
    teacher=dict(
        cfg_path='mmdet::dcn/cascade-mask-rcnn_x101-32x4d-dconv-c3-c5_fpn_1x_coco.py',
        pretrained=False,
    ),
    teacher_ckpt='https://download.openmmlab.com/mmdetection/v2.0/dcn/cascade_mask_rcnn_x101_32x4d_fpn_dconv_c3-c5_1x_coco/cascade_mask_rcnn_x101_32x4d_fpn_dconv_c3-c5_1x_coco-e75f90c8.pth',
    distiller=dict(
        type='FeatureDistiller',
        # deformable convolutions run on maps of 3x3 or more, here of stride 32
        dry_run_shape=(3, 128, 128),
        # all maps of the neck; their losses are summed
        pairs=[dict(student=f'neck[{i}]', teacher=f'neck[{i}]') for i in range(5)],
    ),
)
custom_hooks = [
    # the published metric of the teacher; on a few images it deviates
    dict(type='TeacherSanityHook', expected={'coco/bbox_mAP': 0.473}),
    dict(type='NonFiniteLossHook'),
]
