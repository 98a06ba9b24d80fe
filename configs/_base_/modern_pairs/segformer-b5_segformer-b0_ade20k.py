_base_ = ['mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py', '../custom_imports.py']

model = dict(
    _delete_=True,
    type='FrozenTeacherDistill',
    architecture=_base_.model,
    teacher=dict(
        cfg_path='mmseg::segformer/segformer_mit-b5_8xb2-160k_ade20k-512x512.py',
        pretrained=False,
    ),
    teacher_ckpt='https://download.openmmlab.com/mmsegmentation/v0.5/segformer/segformer_mit-b5_512x512_160k_ade20k/segformer_mit-b5_512x512_160k_ade20k_20210726_145235-94cedf59.pth',
    # assumption: the last feature before the classifier
    distiller=dict(
        type='FeatureDistiller',
        pairs=[dict(student='decode_head.fusion_conv', teacher='decode_head.fusion_conv')],
    ),
)
custom_hooks = [
    # m, n, mn/N and the angle in the logs (supplement, Fig. 8)
    dict(type='FeatureGeometryHook', interval=50),
    # the published metric of the teacher; on a few images it deviates
    dict(type='TeacherSanityHook', expected=dict(mIoU=49.13)),
    dict(type='NonFiniteLossHook'),
]
