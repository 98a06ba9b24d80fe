# UPerNet on a small Swin for images of 48x48, trained from scratch: maps of 12x12, as PSPNet's there.
# assumption: a learning rate of 1e-3, as a tenth of that of the quickstart suits a transformer
_base_ = '../../configs/quickstart/pspnet_r18-w4_1xb16-4k_digit-scenes-48x48.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='SwinTransformer',
        pretrain_img_size=48,
        embed_dims=24,
        patch_size=4,
        window_size=4,
        mlp_ratio=4,
        depths=(2, 2, 2, 2),
        num_heads=(1, 2, 4, 8),
        strides=(4, 2, 2, 2),
        out_indices=(0, 1, 2, 3),
        drop_path_rate=0.1,
        norm_cfg=dict(type='LN', requires_grad=True),
    ),
    decode_head=dict(
        type='UPerHead', in_channels=[24, 48, 96, 192], in_index=[0, 1, 2, 3], channels=16
    ),
)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type='OneCycleLR', eta_max=1e-3, total_steps=4000, pct_start=0.1, by_epoch=False)
]
