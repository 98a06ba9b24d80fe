# The scores of the classes.
_base_ = './lad.py'

model = dict(
    distiller=dict(pairs=[dict(student='decode_head.conv_seg', teacher='decode_head.conv_seg')])
)
