# Cityscapes, crops of 512x1024.
_base_ = 'mmseg::_base_/datasets/cityscapes.py'

train_dataloader = dict(batch_size=2)  # on each of 8 GPUs: 16 in all
