# PSPNet on ResNet-18 for images of 48x48: narrow, stride 4 throughout, trained from scratch.
# With MMSegmentation's own initialisation, which reckons with a pretrained backbone, it predicts
# nothing but background for a thousand iterations; PyTorch's default learns at once.
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(48, 48),
        test_cfg=dict(size_divisor=4),
    ),
    backbone=dict(
        type='ResNetV1c',
        depth=18,
        stem_channels=16,
        base_channels=4,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        strides=(1, 1, 1, 1),
        dilations=(1, 1, 1, 1),
        norm_cfg=norm_cfg,
        norm_eval=False,
        style='pytorch',
        init_cfg=[],
    ),
    decode_head=dict(
        type='PSPHead',
        in_channels=32,
        in_index=3,
        channels=16,
        pool_scales=(1, 2, 3, 6),
        dropout_ratio=0.1,
        num_classes=11,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
        init_cfg=None,
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
