# The teacher: four times as wide as the student.
_base_ = './pspnet_r18-w4_1xb16-3k_digit-scenes-48x48.py'

model = dict(backbone=dict(base_channels=16), decode_head=dict(in_channels=128, channels=64))
