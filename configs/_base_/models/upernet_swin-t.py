# UPerNet on Swin-T, which MMSegmentation's base already is; pretrained on ImageNet-1K.
_base_ = 'mmseg::_base_/models/upernet_swin.py'

checkpoint_file = 'https://download.openmmlab.com/mmsegmentation/v0.5/pretrain/swin/swin_tiny_patch4_window7_224_20220317-1cdeb081.pth'
model = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=checkpoint_file)))
