_base_ = '../../students/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py'

model = dict(
    _delete_=True,
    type='FrozenTeacherDistill',
    architecture=_base_.model,
    # assumption: this teacher; the zoo also has one with Swin-B of ImageNet-22K (50.13 mIoU)
    teacher=dict(
        cfg_path='mmseg::swin/swin-base-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py',
        pretrained=False,
    ),
    teacher_ckpt='https://download.openmmlab.com/mmsegmentation/v0.5/swin/upernet_swin_base_patch4_window7_512x512_160k_ade20k_pretrain_224x224_1K/upernet_swin_base_patch4_window7_512x512_160k_ade20k_pretrain_224x224_1K_20210526_192340-593b0e13.pth',
    distiller=dict(
        type='FeatureDistiller',
        # assumption: the last feature before the classifier
        pairs=[dict(student='decode_head.fpn_bottleneck', teacher='decode_head.fpn_bottleneck')],
    ),
)
custom_hooks = [
    # m, n, mn/N and the angle in the logs (supplement, Fig. 8)
    dict(type='FeatureGeometryHook', interval=50),
    # the published metric of the teacher; on a few images it deviates
    dict(type='TeacherSanityHook', expected=dict(mIoU=47.99)),
    dict(type='NonFiniteLossHook'),
]
