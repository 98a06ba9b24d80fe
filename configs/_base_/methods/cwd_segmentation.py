# MMRazor's values, which are for PSPNet-R101 -> PSPNet-R18 on Cityscapes, on the scores of the classes.
# assumption: the same for other pairs and datasets
method = dict(
    note="MMRazor's values for segmentation, on the classes",
    model=dict(
        distiller=dict(
            loss=dict(type='ChannelWiseDivergence', tau=1.0, loss_weight=5.0),
            pairs=[dict(student='decode_head.conv_seg', teacher='decode_head.conv_seg')],
        )
    ),
)
