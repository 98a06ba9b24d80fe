_base_ = '../_base_/pairs/upernet-swin-b_upernet-swin-t_cityscapes.py'

# assumption: 3 is the weight on COCO, the text at hand gives none for segmentation
model = dict(distiller=dict(loss=dict(type='CADLoss', loss_weight=3.0)))
