# Ablation: the backbone's last stage.
_base_ = './lad_bottleneck_pspnet-r101_pspnet-r18_8xb2-80k_cityscapes-512x1024.py'

model = dict(distiller=dict(pairs=[dict(student='backbone[3]', teacher='backbone[3]')]))
