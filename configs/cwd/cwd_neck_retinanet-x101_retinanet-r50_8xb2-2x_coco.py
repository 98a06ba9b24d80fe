_base_ = '../_base_/pairs/retinanet-x101_retinanet-r50_coco.py'

# assumption: MMRazor's values for detectors on COCO
model = dict(distiller=dict(loss=dict(type='ChannelWiseDivergence', tau=1.0, loss_weight=10.0)))
