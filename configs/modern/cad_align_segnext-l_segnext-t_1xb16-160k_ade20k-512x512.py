_base_ = ['../_base_/modern_pairs/segnext-l_segnext-t_ade20k.py', '../_base_/methods/cad.py']

model = _base_.pop('method').model
