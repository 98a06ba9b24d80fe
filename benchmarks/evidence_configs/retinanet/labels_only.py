# Without the images that have no labels.
_base_ = './lad.py'

custom_hooks = _base_.custom_hooks[:1]
