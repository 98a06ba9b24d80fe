_base_ = '../../students/pspnet_r18-d8_8xb2-80k_voc12aug-512x512.py'

model = dict(
    _delete_=True,
    type='FrozenTeacherDistill',
    architecture=_base_.model,
    # assumption: this teacher; the zoo also has one of 20k iterations (78.47 mIoU)
    teacher=dict(
        cfg_path='mmseg::pspnet/pspnet_r101-d8_4xb4-40k_voc12aug-512x512.py', pretrained=False
    ),
    teacher_ckpt='https://download.openmmlab.com/mmsegmentation/v0.5/pspnet/pspnet_r101-d8_512x512_40k_voc12aug/pspnet_r101-d8_512x512_40k_voc12aug_20200613_161222-bc933b18.pth',
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
    dict(type='TeacherSanityHook', expected=dict(mIoU=78.52)),
    dict(type='NonFiniteLossHook'),
]
