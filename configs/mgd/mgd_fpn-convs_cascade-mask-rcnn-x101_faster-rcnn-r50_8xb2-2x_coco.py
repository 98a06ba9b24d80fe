_base_ = [
    '../_base_/pairs/cascade-mask-rcnn-x101_faster-rcnn-r50_coco.py',
    '../_base_/methods/mgd_two-stage.py',
]

model = _base_.method.model
optim_wrapper = _base_.pop('method').optim_wrapper
