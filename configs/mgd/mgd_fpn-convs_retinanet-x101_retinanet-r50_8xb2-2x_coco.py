_base_ = [
    '../_base_/pairs/retinanet-x101_retinanet-r50_coco.py',
    '../_base_/methods/mgd_one-stage.py',
]

model = _base_.method.model
optim_wrapper = _base_.pop('method').optim_wrapper
