_base_ = './lad.py'

model = dict(
    distiller=dict(
        pairs=[
            dict(student='decode_head.bottleneck', teacher='decode_head.bottleneck'),
            dict(
                student='decode_head.conv_seg',
                teacher='decode_head.conv_seg',
                loss=dict(type='KLLoss', tau=1.0, loss_weight=1.0),
            ),
        ]
    )
)
