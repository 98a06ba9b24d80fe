# The student of retinanet-wide-neck-1000_fgd-seed0 alone.
_base_ = '../quickstart/retinanet_r18-w8_1xb16-1k_digit-scenes-64x64_200-labels.py'

default_hooks = dict(
    checkpoint=dict(interval=500, type='ResumableCheckpointHook'), logger=dict(interval=50)
)
model = dict(bbox_head=dict(feat_channels=64, in_channels=64), neck=dict(out_channels=64))
train_cfg = dict(val_interval=1000)
