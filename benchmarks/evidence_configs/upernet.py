# UPerNet-Swin teaches a narrower UPerNet-Swin. evidence.py --part natural trains the teacher.
_base_ = './lad.py'

model = dict(
    architecture=dict(cfg_path='{{ fileDirname }}/upernet_student.py', _delete_=True),
    teacher=dict(cfg_path='{{ fileDirname }}/upernet_teacher.py'),
    teacher_ckpt='work_dirs/evidence/teachers/upernet_teacher-4000.pth',
    # assumption: the last feature before the classifier, as in configs/lad
    distiller=dict(
        pairs=[dict(student='decode_head.fpn_bottleneck', teacher='decode_head.fpn_bottleneck')]
    ),
)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type='OneCycleLR', eta_max=1e-3, total_steps=1000, pct_start=0.1, by_epoch=False)
]
