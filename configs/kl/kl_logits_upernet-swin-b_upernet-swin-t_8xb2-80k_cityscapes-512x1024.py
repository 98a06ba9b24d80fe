_base_ = [
    '../_base_/pairs/upernet-swin-b_upernet-swin-t_cityscapes.py',
    '../_base_/methods/kl_segmentation.py',
]

model = _base_.pop('method').model
