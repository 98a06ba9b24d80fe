_base_ = '../_base_/pairs/pspnet-r101_pspnet-r18_cityscapes.py'

# assumption: the weight of the naive distillation
model = dict(distiller=dict(loss=dict(type='MagnitudeLoss', loss_weight=100.0)))
