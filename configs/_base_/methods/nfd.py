# assumption: NFD is 2 (1 - correlation) of each channel, so that 1.5 weighs it as 3 weighs CAD
method = dict(
    note='assumption: NFD is 2 (1 - correlation), so that 1.5 weighs it as 3 weighs CAD',
    model=dict(distiller=dict(loss=dict(type='NFDLoss', loss_weight=1.5))),
)
