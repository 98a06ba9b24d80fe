_base_ = '../_base_/pairs/pspnet-r101_pspnet-mv2_ade20k.py'

# assumption: the weight of the naive distillation
model = dict(distiller=dict(loss=dict(type='MagnitudeLoss', loss_weight=100.0)))
