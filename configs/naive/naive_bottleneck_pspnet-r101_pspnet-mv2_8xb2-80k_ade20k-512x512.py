_base_ = '../_base_/pairs/pspnet-r101_pspnet-mv2_ade20k.py'

# assumption: as on VOC 2012 (supplement, section A (1): PSPNet needs 100 or 1000)
model = dict(distiller=dict(loss=dict(type='NaiveFeatureLoss', loss_weight=100.0)))
