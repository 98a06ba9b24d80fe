# MMRazor's values for detectors on COCO.
# assumption: the same for other pairs
method = dict(
    note="MMRazor's values for detectors",
    model=dict(distiller=dict(loss=dict(type='ChannelWiseDivergence', tau=1.0, loss_weight=10.0))),
)
