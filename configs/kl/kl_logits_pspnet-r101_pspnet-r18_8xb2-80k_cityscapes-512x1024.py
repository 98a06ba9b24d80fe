_base_ = [
    '../_base_/pairs/pspnet-r101_pspnet-r18_cityscapes.py',
    '../_base_/methods/kl_segmentation.py',
]

model = _base_.pop('method').model
