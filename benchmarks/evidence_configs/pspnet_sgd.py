# The teacher of the quickstart, trained with the paper's SGD: momentum 0.9, weight decay 5e-4.
# assumption: the learning rate of MMSegmentation, 0.01, in the one cycle of the quickstart
_base_ = '../../configs/quickstart/pspnet_r18-w12_1xb16-4k_digit-scenes-48x48.py'

optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='SGD', lr=1e-2, momentum=0.9, weight_decay=5e-4)
)
