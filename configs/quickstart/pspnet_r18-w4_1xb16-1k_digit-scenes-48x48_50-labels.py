# The student alone, with the labels of 50 of the 4000 images.
_base_ = './pspnet_r18-w4_1xb16-4k_digit-scenes-48x48.py'

train_dataloader = dict(dataset=dict(indices=50))
param_scheduler = [
    dict(type='OneCycleLR', eta_max=1e-2, total_steps=1000, pct_start=0.1, by_epoch=False)
]
train_cfg = dict(max_iters=1000, val_interval=250)
default_hooks = dict(checkpoint=dict(interval=250), logger=dict(interval=25))
