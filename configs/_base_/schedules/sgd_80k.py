# SGD with lr 0.01, momentum 0.9, weight decay 5e-4, lr falling with power 0.9 to 1e-4.
# The supplement states 80k iterations and a total batch of 16, for Cityscapes.
# assumption: the same on VOC 2012 and ADE20K, and MMSegmentation's optimizer
_base_ = 'mmseg::_base_/schedules/schedule_80k.py'

default_hooks = dict(checkpoint=dict(type='ResumableCheckpointHook'))
auto_scale_lr = dict(enable=False, base_batch_size=16)
