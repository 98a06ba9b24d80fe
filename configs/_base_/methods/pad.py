# As LAD, by pixels.
_base_ = './lad.py'

method = dict(model=dict(distiller=dict(loss=dict(type='PADLoss'))))
