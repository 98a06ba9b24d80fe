# As LAD, by channels.
_base_ = './lad.py'

method = dict(model=dict(distiller=dict(loss=dict(type='CADLoss'))))
