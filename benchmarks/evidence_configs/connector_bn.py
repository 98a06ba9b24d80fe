# A 1x1 convolution and a BatchNorm make the channels of the student those of the teacher.
_base_ = './lad.py'

model = dict(
    distiller=dict(
        pairs=[
            dict(
                student='decode_head.bottleneck',
                teacher='decode_head.bottleneck',
                align=dict(
                    type='ConvModuleConnector',
                    in_channel=16,
                    out_channel=48,
                    norm_cfg=dict(type='SyncBN'),
                    act_cfg=None,
                ),
            )
        ]
    )
)
