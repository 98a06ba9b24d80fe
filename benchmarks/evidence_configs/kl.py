_base_ = [
    './lad.py',
    '../../configs/_base_/methods/kl_segmentation.py',
]

model = _base_.pop('method').model
