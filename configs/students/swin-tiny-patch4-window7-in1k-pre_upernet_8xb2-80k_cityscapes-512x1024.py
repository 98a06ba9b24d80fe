_base_ = [
    '../_base_/models/upernet_swin-t.py',
    '../_base_/datasets/cityscapes.py',
    '../_base_/schedules/adamw_80k.py',
    '../_base_/default_runtime.py',
]

data_preprocessor = dict(size=_base_.crop_size)
model = dict(
    data_preprocessor=data_preprocessor,
    decode_head=dict(num_classes=19),
    auxiliary_head=dict(num_classes=19),
)
