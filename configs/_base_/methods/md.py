# assumption: the weight of the naive distillation
_base_ = './naive.py'

method = dict(model=dict(distiller=dict(loss=dict(type='MagnitudeLoss'))))
