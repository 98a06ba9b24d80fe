# Only the teacher's feature is that before the ReLU: it has the values below zero too.
_base_ = './lad.py'

model = dict(
    distiller=dict(
        pairs=[dict(student='decode_head.bottleneck', teacher='decode_head.bottleneck.bn')]
    )
)
