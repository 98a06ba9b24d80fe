# The teacher: three times as wide as the student.
_base_ = './pspnet_r18-w4_1xb16-4k_digit-scenes-48x48.py'

model = dict(backbone=dict(base_channels=12), decode_head=dict(in_channels=96, channels=48))
