_base_ = [
    './lad.py',
    '../../configs/_base_/methods/cwd_segmentation.py',
]

model = _base_.pop('method').model
