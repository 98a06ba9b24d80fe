_base_ = [
    './lad_neck_retinanet-r18-w32_retinanet-r18-w8_1xb16-1k_digit-scenes-64x64_200-labels.py',
    '../_base_/methods/cad.py',
]

model = _base_.pop('method').model
