_base_ = '../../students/mobilenet-v2-d8_pspnet_8xb2-80k_ade20k-512x512.py'

model = dict(
    _delete_=True,
    type='FrozenTeacherDistill',
    architecture=_base_.model,
    # assumption: this teacher; the zoo also has one of 160k iterations (44.39 mIoU)
    teacher=dict(
        cfg_path='mmseg::pspnet/pspnet_r101-d8_4xb4-80k_ade20k-512x512.py', pretrained=False
    ),
    teacher_ckpt='https://download.openmmlab.com/mmsegmentation/v0.5/pspnet/pspnet_r101-d8_512x512_80k_ade20k/pspnet_r101-d8_512x512_80k_ade20k_20200614_031423-b6e782f0.pth',
    distiller=dict(
        type='FeatureDistiller',
        # assumption: the last feature before the classifier
        pairs=[dict(student='decode_head.bottleneck', teacher='decode_head.bottleneck')],
    ),
)
custom_hooks = [
    # m, n, mn/N and the angle in the logs (supplement, Fig. 8)
    dict(type='FeatureGeometryHook', interval=50),
    # the published metric of the teacher; on a few images it deviates
    dict(type='TeacherSanityHook', expected=dict(mIoU=43.57)),
    dict(type='NonFiniteLossHook'),
]
