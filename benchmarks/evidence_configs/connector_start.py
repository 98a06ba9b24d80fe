# Naive distillation of a feature alpha times as large (evidence.py gives its teacher), with a connector
# that begins alpha times as large as MMCV's (Kaiming: sqrt(2 / 48)), here 0.1 times. The optimizer's
# steps are as large as ever.
_base_ = './lad.py'

model = dict(
    distiller=dict(
        loss=dict(_delete_=True, type='NaiveFeatureLoss', loss_weight=1000),
        pairs=[
            dict(
                student='decode_head.bottleneck',
                teacher='decode_head.bottleneck',
                align=dict(
                    type='TorchNNConnector',
                    module_name='Conv2d',
                    module_args=dict(in_channels=16, out_channels=48, kernel_size=1),
                    init_cfg=dict(type='Normal', layer='Conv2d', std=0.0204),
                ),
            )
        ],
    )
)
