_base_ = '../_base_/pairs/upernet-swin-b_upernet-swin-t_ade20k.py'

# assumption: as on VOC 2012 (supplement, section A (1): 10 is enough for UPerNet)
model = dict(distiller=dict(loss=dict(type='NaiveFeatureLoss', loss_weight=10.0)))
