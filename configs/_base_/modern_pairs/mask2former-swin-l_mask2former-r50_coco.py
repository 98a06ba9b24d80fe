_base_ = ['mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py', '../custom_imports.py']

model = dict(
    _delete_=True,
    type='FrozenTeacherDistill',
    architecture=_base_.model,
    teacher=dict(
        cfg_path='mmdet::mask2former/mask2former_swin-l-p4-w12-384-in21k_16xb1-lsj-100e_coco-panoptic.py',
        pretrained=False,
    ),
    teacher_ckpt='https://download.openmmlab.com/mmdetection/v3.0/mask2former/mask2former_swin-l-p4-w12-384-in21k_16xb1-lsj-100e_coco-panoptic/mask2former_swin-l-p4-w12-384-in21k_16xb1-lsj-100e_coco-panoptic_20220407_104949-82f8d28d.pth',
    # assumption: the map that the masks are products of; the teacher knows COCO's stuff, too, as the zoo
    # has no Swin-L for instances alone
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
    dict(type='TeacherSanityHook', expected={'coco/segm_mAP': 0.485}),
    dict(type='NonFiniteLossHook'),
]
