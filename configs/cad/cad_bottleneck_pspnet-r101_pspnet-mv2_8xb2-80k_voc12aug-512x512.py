_base_ = '../_base_/pairs/pspnet-r101_pspnet-mv2_voc12aug.py'

# assumption: 3 is the weight on COCO, the text at hand gives none for segmentation
model = dict(distiller=dict(loss=dict(type='CADLoss', loss_weight=3.0)))
