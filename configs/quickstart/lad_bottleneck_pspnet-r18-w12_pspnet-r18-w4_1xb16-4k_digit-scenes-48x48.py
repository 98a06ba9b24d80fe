_base_ = ['./pspnet_r18-w4_1xb16-4k_digit-scenes-48x48.py', '../_base_/methods/lad.py']

model = dict(
    _delete_=True,
    type='FrozenTeacherDistill',
    architecture=_base_.model,
    teacher=dict(
        cfg_path='{{ fileDirname }}/pspnet_r18-w12_1xb16-4k_digit-scenes-48x48.py', pretrained=False
    ),
    # comes with this package; a training of the teacher's config leaves its own in work_dirs/
    teacher_ckpt='{{ fileDirname }}/weights/pspnet_r18-w12_1xb16-4k_digit-scenes-48x48.pth',
    distiller=dict(
        type='FeatureDistiller',
        loss=_base_.pop('method').model.distiller.loss,
        # assumption: the last feature before the classifier
        pairs=[dict(student='decode_head.bottleneck', teacher='decode_head.bottleneck')],
    ),
)
custom_hooks = [dict(type='FeatureGeometryHook', interval=50)]
