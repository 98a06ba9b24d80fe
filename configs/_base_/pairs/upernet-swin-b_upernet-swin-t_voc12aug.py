_base_ = '../../students/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-80k_voc12aug-512x512.py'

model = dict(
    _delete_=True,
    type='FrozenTeacherDistill',
    architecture=_base_.model,
    # MMSegmentation has no such teacher: train it first, see configs/teachers/README.md
    teacher=dict(
        cfg_path='{{ fileDirname }}/../../teachers/'
        'swin-base-patch4-window7-in1k-pre_upernet_8xb2-80k_voc12aug-512x512.py',
        pretrained=False,
    ),
    # where that training leaves its weights
    teacher_ckpt='work_dirs/swin-base-patch4-window7-in1k-pre_upernet_8xb2-80k_voc12aug-512x512/iter_80000.pth',
    distiller=dict(
        type='FeatureDistiller',
        # assumption: the last feature before the classifier
        pairs=[dict(student='decode_head.fpn_bottleneck', teacher='decode_head.fpn_bottleneck')],
    ),
)
custom_hooks = [
    # m, n, mn/N and the angle in the logs (supplement, Fig. 8)
    dict(type='FeatureGeometryHook', interval=50),
    # nobody has published such a teacher: its metric is only logged
    dict(type='TeacherSanityHook'),
    dict(type='NonFiniteLossHook'),
]
