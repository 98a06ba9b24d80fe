_base_ = [
    'mmseg::segnext/segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512.py',
    '../custom_imports.py',
]

model = dict(
    _delete_=True,
    type='FrozenTeacherDistill',
    architecture=_base_.model,
    teacher=dict(
        cfg_path='mmseg::segnext/segnext_mscan-l_1xb16-adamw-160k_ade20k-512x512.py',
        pretrained=False,
    ),
    teacher_ckpt='https://download.openmmlab.com/mmsegmentation/v0.5/segnext/segnext_mscan-l_1x16_512x512_adamw_160k_ade20k/segnext_mscan-l_1x16_512x512_adamw_160k_ade20k_20230209_172055-19b14b63.pth',
    # assumption: the last feature before the classifier
    distiller=dict(
        type='FeatureDistiller',
        pairs=[dict(student='decode_head.align', teacher='decode_head.align')],
    ),
)
custom_hooks = [
    # m, n, mn/N and the angle in the logs (supplement, Fig. 8)
    dict(type='FeatureGeometryHook', interval=50),
    # the published metric of the teacher; on a few images it deviates
    dict(type='TeacherSanityHook', expected=dict(mIoU=50.99)),
    dict(type='NonFiniteLossHook'),
]
