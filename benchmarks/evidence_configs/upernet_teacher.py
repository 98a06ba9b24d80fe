# The teacher: twice as wide in its backbone, three times in its head, as that of PSPNet.
_base_ = './upernet_student.py'

model = dict(
    backbone=dict(embed_dims=48, num_heads=(2, 4, 8, 16)),
    decode_head=dict(in_channels=[48, 96, 192, 384], channels=48),
)
