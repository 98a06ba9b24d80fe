_base_ = '../_base_/pairs/pspnet-r101_pspnet-r18_ade20k.py'

# assumption: MMRazor's values, which are for PSPNet-R101 -> PSPNet-R18 on Cityscapes
model = dict(
    distiller=dict(
        loss=dict(type='ChannelWiseDivergence', tau=1.0, loss_weight=5.0),
        pairs=[dict(student='decode_head.conv_seg', teacher='decode_head.conv_seg')],
    )
)
