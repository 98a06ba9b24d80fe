# The pair of the quickstart, but for the student's neck and head, which have the teacher's shapes: FKD
# and FGD need maps of as many channels, as the pairs of the paper's Table 8 have.
_base_ = (
    '../../../configs/quickstart/'
    'lad_neck_retinanet-r18-w32_retinanet-r18-w8_1xb16-1k_digit-scenes-64x64_200-labels.py'
)

model = dict(
    architecture=dict(
        neck=dict(out_channels=64),
        bbox_head=dict(in_channels=64, feat_channels=64),
    ),
)
