# PASCAL VOC 2012 with the additional annotations (aug), crops of 512x512.
_base_ = 'mmseg::_base_/datasets/pascal_voc12_aug.py'

train_dataloader = dict(batch_size=2)  # on each of 8 GPUs: 16 in all
