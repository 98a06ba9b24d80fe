# As connector_both.py, but the connector begins 10 times as large. So what it gives is as much too large
# for the teacher's feature as with MMCV's connector, and only the optimizer's steps are small.
_base_ = './connector_both.py'

_align = dict(
    type='TorchNNConnector',
    module_name='Conv2d',
    module_args=dict(in_channels=16, out_channels=48, kernel_size=1),
    init_cfg=dict(type='Normal', layer='Conv2d', std=2.04),
)
model = dict(distiller=dict(pairs=[dict(**_base_.model.distiller.pairs[0], align=_align)]))
del _align
