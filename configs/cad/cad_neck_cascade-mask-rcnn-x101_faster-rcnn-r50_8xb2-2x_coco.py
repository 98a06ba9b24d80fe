_base_ = [
    '../_base_/pairs/cascade-mask-rcnn-x101_faster-rcnn-r50_coco.py',
    '../_base_/methods/cad.py',
]

model = _base_.pop('method').model
