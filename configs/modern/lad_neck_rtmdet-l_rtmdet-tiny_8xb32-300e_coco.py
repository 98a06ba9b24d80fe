_base_ = ['../_base_/modern_pairs/rtmdet-l_rtmdet-tiny_coco.py', '../_base_/methods/lad.py']

model = _base_.pop('method').model
