_base_ = [
    '../_base_/modern_pairs/mask2former-swin-l_mask2former-r50_coco.py',
    '../_base_/methods/cad.py',
]

model = _base_.pop('method').model
