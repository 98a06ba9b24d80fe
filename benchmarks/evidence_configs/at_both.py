# The last map of the backbone, and the feature before the classifier.
_base_ = './lad.py'

model = dict(
    distiller=dict(
        pairs=[
            dict(student=name, teacher=name)
            for name in ('backbone.layer4', 'decode_head.bottleneck')
        ]
    )
)
