_base_ = [
    '../_base_/pairs/pspnet-r101_pspnet-mv2_cityscapes.py',
    '../_base_/methods/kl_segmentation.py',
]

model = _base_.pop('method').model
