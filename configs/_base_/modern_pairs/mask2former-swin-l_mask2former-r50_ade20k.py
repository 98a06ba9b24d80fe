_base_ = 'mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py'

# In place of the student's: MMEngine imports MMDetection for the types that begin with 'mmdet.'.
custom_imports = dict(imports=['rawkd_mm'], allow_failed_imports=False)

model = dict(
    _delete_=True,
    type='FrozenTeacherDistill',
    architecture=_base_.model,
    teacher=dict(
        cfg_path='mmseg::mask2former/mask2former_swin-l-in22k-384x384-pre_8xb2-160k_ade20k-640x640.py',
        pretrained=False,
    ),
    teacher_ckpt='https://download.openmmlab.com/mmsegmentation/v0.5/mask2former/mask2former_swin-l-in22k-384x384-pre_8xb2-160k_ade20k-640x640/mask2former_swin-l-in22k-384x384-pre_8xb2-160k_ade20k-640x640_20221203_235933-7120c214.pth',
    # assumption: the map that the masks are products of; the teacher's images are the student's, of
    # 512x512 pixels, and it was trained with 640x640
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
    dict(type='TeacherSanityHook', expected=dict(mIoU=56.01)),
    dict(type='NonFiniteLossHook'),
]
