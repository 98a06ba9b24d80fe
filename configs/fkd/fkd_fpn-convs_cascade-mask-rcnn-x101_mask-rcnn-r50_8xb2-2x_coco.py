_base_ = [
    '../_base_/pairs/cascade-mask-rcnn-x101_mask-rcnn-r50_coco.py',
    '../_base_/methods/fkd_two-stage.py',
]

model = _base_.pop('method').model
