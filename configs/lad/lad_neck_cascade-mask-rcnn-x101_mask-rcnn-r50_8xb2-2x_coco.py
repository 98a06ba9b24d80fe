_base_ = [
    '../_base_/pairs/cascade-mask-rcnn-x101_mask-rcnn-r50_coco.py',
    '../_base_/methods/lad.py',
]

model = _base_.pop('method').model
