# Only the student's feature is that before the ReLU: its gradient is whole.
_base_ = './lad.py'

model = dict(
    distiller=dict(
        pairs=[dict(student='decode_head.bottleneck.bn', teacher='decode_head.bottleneck')]
    )
)
