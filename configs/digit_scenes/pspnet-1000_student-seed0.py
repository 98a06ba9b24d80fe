# Ours, DigitScenes: mIoU 20.38.
_base_ = '../quickstart/pspnet_r18-w4_1xb16-1k_digit-scenes-48x48_50-labels.py'

default_hooks = dict(checkpoint=dict(interval=500), logger=dict(interval=50))
train_cfg = dict(val_interval=1000)
