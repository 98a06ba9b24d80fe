_base_ = ['../_base_/pairs/retinanet-x101_retinanet-r50_coco.py', '../_base_/methods/lad.py']

model = _base_.pop('method').model
