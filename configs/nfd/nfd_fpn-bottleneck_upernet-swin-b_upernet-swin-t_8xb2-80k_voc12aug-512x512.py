_base_ = '../_base_/pairs/upernet-swin-b_upernet-swin-t_voc12aug.py'

# assumption: NFD is 2 (1 - correlation) of each channel, so that 1.5 weighs it as 3 weighs CAD
model = dict(distiller=dict(loss=dict(type='NFDLoss', loss_weight=1.5)))
