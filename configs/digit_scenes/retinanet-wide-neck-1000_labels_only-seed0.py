# Ours, DigitScenes: box AP 27.4.
_base_ = (
    '../quickstart/'
    'lad_neck_retinanet-r18-w32_retinanet-r18-w8_1xb16-1k_digit-scenes-64x64_200-labels.py'
)

custom_hooks = [dict(interval=12, type='FeatureGeometryHook')]
default_hooks = dict(
    checkpoint=dict(interval=500, type='ResumableCheckpointHook'), logger=dict(interval=50)
)
model = dict(
    architecture=dict(bbox_head=dict(feat_channels=64, in_channels=64), neck=dict(out_channels=64))
)
train_cfg = dict(val_interval=1000)
