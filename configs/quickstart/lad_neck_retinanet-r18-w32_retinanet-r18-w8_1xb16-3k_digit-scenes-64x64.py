_base_ = ['./retinanet_r18-w8_1xb16-3k_digit-scenes-64x64.py', '../_base_/methods/lad.py']

model = dict(
    _delete_=True,
    type='FrozenTeacherDistill',
    architecture=_base_.model,
    teacher=dict(
        cfg_path='{{ fileDirname }}/retinanet_r18-w32_1xb16-3k_digit-scenes-64x64.py',
        pretrained=False,
    ),
    # comes with this package; a training of the teacher's config leaves its own in work_dirs/
    teacher_ckpt='{{ fileDirname }}/weights/retinanet_r18-w32_1xb16-3k_digit-scenes-64x64.pth',
    distiller=dict(
        type='FeatureDistiller',
        loss=_base_.pop('method').model.distiller.loss,
        # all maps of the neck; their losses are summed
        pairs=[dict(student=f'neck[{i}]', teacher=f'neck[{i}]') for i in range(3)],
    ),
)
custom_hooks = [dict(type='FeatureGeometryHook', interval=50)]
