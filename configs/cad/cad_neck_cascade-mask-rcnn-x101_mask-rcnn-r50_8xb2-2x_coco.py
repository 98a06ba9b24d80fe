_base_ = '../_base_/pairs/cascade-mask-rcnn-x101_mask-rcnn-r50_coco.py'

# the paper's weight on COCO
# assumption: neither init_student nor clip_grad, which FGD and MGD have; the text at hand is silent
model = dict(distiller=dict(loss=dict(type='CADLoss', loss_weight=3.0)))
