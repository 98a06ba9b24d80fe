# MMDetection's own config: 24 epochs, SGD, 2 images on each of 8 GPUs.
_base_ = ['mmdet::mask_rcnn/mask-rcnn_r50_fpn_2x_coco.py', '../_base_/custom_imports.py']
