_base_ = '../_base_/pairs/cascade-mask-rcnn-x101_faster-rcnn-r50_coco.py'

# MMRazor's loss and connector, which draws a new mask in each iteration, the same for all channels of
# an image; as the released code. The values are those of the paper for two-stage detectors.
model = dict(
    distiller=dict(
        loss=dict(type='MGDLoss', alpha_mgd=5e-7),
        student_connector=dict(
            type='MGDConnector',
            student_channels='auto',
            teacher_channels='auto',
            lambda_mgd=0.45,
        ),
        pairs=[
            dict(student=f'neck.fpn_convs.{i}.conv', teacher=f'neck.fpn_convs.{i}.conv')
            for i in range(4)
        ],
    ),
)
optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))
