# The feature before the classifier, without its ReLU.
_base_ = './lad.py'

model = dict(
    distiller=dict(
        pairs=[dict(student='decode_head.bottleneck.bn', teacher='decode_head.bottleneck.bn')]
    )
)
