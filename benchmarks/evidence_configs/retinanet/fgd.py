# FGD's loss needs boxes: it sees no images without labels.
# assumption: no inherited neck and head, and the clipped gradient of all others: the losses are compared
_base_ = ['./labels_only.py', '../../../configs/_base_/methods/fgd_one-stage.py']

_method = _base_.pop('method').model.distiller
model = dict(
    distiller=dict(
        loss=dict(_delete_=True, **_method.loss),
        student_connector=_method.student_connector,
        teacher_connector=_method.teacher_connector,
    )
)
del _method  # else a key of the config
