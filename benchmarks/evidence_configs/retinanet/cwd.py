_base_ = ['./lad.py', '../../../configs/_base_/methods/cwd_detection.py']

model = dict(distiller=dict(loss=dict(_delete_=True, **_base_.pop('method').model.distiller.loss)))
