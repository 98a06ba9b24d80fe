_base_ = [
    'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py',
    '../custom_imports.py',
]

model = dict(
    _delete_=True,
    type='FrozenTeacherDistill',
    architecture=_base_.model,
    teacher=dict(
        cfg_path='mmdet::mask2former/mask2former_swin-l-p4-w12-384-in21k_16xb1-lsj-100e_coco-panoptic.py',
        pretrained=False,
    ),
    teacher_ckpt='https://download.openmmlab.com/mmdetection/v3.0/mask2former/mask2former_swin-l-p4-w12-384-in21k_16xb1-lsj-100e_coco-panoptic/mask2former_swin-l-p4-w12-384-in21k_16xb1-lsj-100e_coco-panoptic_20220407_104949-82f8d28d.pth',
    # assumption: the map that the masks are products of
    distiller=dict(
        type='FeatureDistiller',
        pairs=[
            dict(
                student='panoptic_head.pixel_decoder[0]',
                teacher='panoptic_head.pixel_decoder[0]',
            )
        ],
    ),
)
custom_hooks = [
    # the published metric of the teacher; on a few images it deviates
    dict(type='TeacherSanityHook', expected={'coco_panoptic/PQ': 57.6}),
    dict(type='NonFiniteLossHook'),
]
