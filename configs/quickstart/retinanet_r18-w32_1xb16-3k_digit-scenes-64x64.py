# The teacher: four times as wide as the student.
_base_ = './retinanet_r18-w8_1xb16-3k_digit-scenes-64x64.py'

model = dict(
    backbone=dict(stem_channels=32, base_channels=32),
    neck=dict(in_channels=[32, 64, 128], out_channels=64),
    bbox_head=dict(in_channels=64, feat_channels=64),
)
