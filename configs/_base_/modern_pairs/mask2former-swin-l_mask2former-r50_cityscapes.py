_base_ = [
    'mmseg::mask2former/mask2former_r50_8xb2-90k_cityscapes-512x1024.py',
    '../custom_imports.py',
]

model = dict(
    _delete_=True,
    type='FrozenTeacherDistill',
    architecture=_base_.model,
    teacher=dict(
        cfg_path='mmseg::mask2former/mask2former_swin-l-in22k-384x384-pre_8xb2-90k_cityscapes-512x1024.py',
        pretrained=False,
    ),
    teacher_ckpt='https://download.openmmlab.com/mmsegmentation/v0.5/mask2former/mask2former_swin-l-in22k-384x384-pre_8xb2-90k_cityscapes-512x1024/mask2former_swin-l-in22k-384x384-pre_8xb2-90k_cityscapes-512x1024_20221202_141901-28ad20f1.pth',
    # assumption: the map that the masks are products of
    distiller=dict(
        type='FeatureDistiller',
        pairs=[
            dict(
                student='decode_head.pixel_decoder[0]',
                teacher='decode_head.pixel_decoder[0]',
            )
        ],
    ),
)
custom_hooks = [
    # m, n, mn/N and the angle in the logs (supplement, Fig. 8)
    dict(type='FeatureGeometryHook', interval=50),
    # the published metric of the teacher; on a few images it deviates
    dict(type='TeacherSanityHook', expected=dict(mIoU=83.65)),
    dict(type='NonFiniteLossHook'),
]
