# The last map of the backbone.
_base_ = './lad.py'

model = dict(distiller=dict(pairs=[dict(student='backbone.layer4', teacher='backbone.layer4')]))
