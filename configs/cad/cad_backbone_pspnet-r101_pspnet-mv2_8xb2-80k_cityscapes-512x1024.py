# Ablation: the backbone's last stage.
_base_ = './cad_bottleneck_pspnet-r101_pspnet-mv2_8xb2-80k_cityscapes-512x1024.py'

model = dict(distiller=dict(pairs=[dict(student='backbone[3]', teacher='backbone[3]')]))
