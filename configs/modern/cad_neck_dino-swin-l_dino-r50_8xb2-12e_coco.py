_base_ = ['../_base_/modern_pairs/dino-swin-l_dino-r50_coco.py', '../_base_/methods/cad.py']

model = _base_.pop('method').model
