# ADE20K, crops of 512x512.
_base_ = 'mmseg::_base_/datasets/ade20k.py'

train_dataloader = dict(batch_size=2)  # on each of 8 GPUs: 16 in all
