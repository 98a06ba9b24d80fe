_base_ = './lad_bottleneck_pspnet-r18-w12_pspnet-r18-w4_1xb16-4k_digit-scenes-48x48.py'

model = dict(distiller=dict(loss=dict(type='CADLoss', loss_weight=3.0)))
