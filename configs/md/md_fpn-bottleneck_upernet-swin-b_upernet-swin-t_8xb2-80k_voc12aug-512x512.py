_base_ = '../_base_/pairs/upernet-swin-b_upernet-swin-t_voc12aug.py'

# assumption: the weight of the naive distillation
model = dict(distiller=dict(loss=dict(type='MagnitudeLoss', loss_weight=10.0)))
