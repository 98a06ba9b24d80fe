_base_ = (
    '../../configs/quickstart/'
    'lad_bottleneck_pspnet-r18-w12_pspnet-r18-w4_1xb16-1k_digit-scenes-48x48_50-labels.py'
)
