# The student of retinanet-wide-neck-1000_mgd-seed0 alone.
_base_ = '../quickstart/retinanet_r18-w8_1xb16-1k_digit-scenes-64x64_200-labels.py'

_method = dict(
    loss=dict(alpha_mgd=2e-05, type='MGDLoss'),
    pairs=[
        dict(student='neck.fpn_convs.0.conv', teacher='neck.fpn_convs.0.conv'),
        dict(student='neck.fpn_convs.1.conv', teacher='neck.fpn_convs.1.conv'),
        dict(student='neck.fpn_convs.2.conv', teacher='neck.fpn_convs.2.conv'),
        dict(student='neck.fpn_convs.3.conv', teacher='neck.fpn_convs.3.conv'),
        dict(student='neck.fpn_convs.4.conv', teacher='neck.fpn_convs.4.conv'),
    ],
    student_connector=dict(
        lambda_mgd=0.65, student_channels='auto', teacher_channels='auto', type='MGDConnector'
    ),
)
default_hooks = dict(
    checkpoint=dict(interval=500, type='ResumableCheckpointHook'), logger=dict(interval=50)
)
model = dict(bbox_head=dict(feat_channels=64, in_channels=64), neck=dict(out_channels=64))
train_cfg = dict(val_interval=1000)
