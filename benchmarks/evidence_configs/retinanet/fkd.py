# assumption: nothing is pooled, and the channels of the non-local modules are halved: the maps have
# 16x16 positions at most, and 64 channels
_base_ = ['./lad.py', '../../../configs/_base_/methods/fkd_one-stage.py']

_method = _base_.pop('method').model.distiller
_pooling = dict(sub_sample=False, reduction=2)
model = dict(
    distiller=dict(
        loss=dict(_delete_=True, **_method.loss),
        pairs=[
            dict(
                student=f'neck[{i}]',
                teacher=f'neck[{i}]',
                student_connector={**_method.pairs[i].student_connector, **_pooling},
                teacher_connector={**_method.pairs[i].teacher_connector, **_pooling},
            )
            for i in range(3)
        ],
    )
)
del _method, _pooling  # else keys of the config
