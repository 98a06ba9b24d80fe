_base_ = [
    '../_base_/pairs/pspnet-r101_pspnet-mv2_voc12aug.py',
    '../_base_/methods/kl_segmentation.py',
]

model = _base_.pop('method').model
