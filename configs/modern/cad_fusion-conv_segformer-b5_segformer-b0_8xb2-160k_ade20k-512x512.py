_base_ = ['../_base_/modern_pairs/segformer-b5_segformer-b0_ade20k.py', '../_base_/methods/cad.py']

model = _base_.pop('method').model
