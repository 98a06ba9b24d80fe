_base_ = [
    '../_base_/models/pspnet_mobilenet-v2-d8.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/sgd_80k.py',
    '../_base_/default_runtime.py',
]

data_preprocessor = dict(size=_base_.crop_size)
model = dict(
    data_preprocessor=data_preprocessor,
    decode_head=dict(num_classes=150),
    auxiliary_head=dict(num_classes=150),
)
