_base_ = '../_base_/pairs/pspnet-r101_pspnet-mv2_voc12aug.py'

# assumption: the weight of the naive distillation
model = dict(distiller=dict(loss=dict(type='MagnitudeLoss', loss_weight=100.0)))
