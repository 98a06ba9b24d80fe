# Supplement, section A (1), on VOC 2012: 10 is enough for UPerNet.
# assumption: the same on the other datasets
_base_ = './naive.py'

method = dict(model=dict(distiller=dict(loss=dict(loss_weight=10.0))))
