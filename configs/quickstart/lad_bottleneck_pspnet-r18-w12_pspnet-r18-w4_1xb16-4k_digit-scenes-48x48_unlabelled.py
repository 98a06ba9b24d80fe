# From images alone: the student learns the teacher's features and sees no label. What lies behind them
# (its classifier) stays as it was initialised, so that there is nothing to validate.
_base_ = './lad_bottleneck_pspnet-r18-w12_pspnet-r18-w4_1xb16-4k_digit-scenes-48x48.py'

model = dict(calculate_student_loss=False)
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='UnlabelledImages',
        data_root='data/digit_scenes/images/train',
        pipeline=[dict(type='LoadImageFromFile'), dict(type='PackSegInputs')],
    )
)
val_dataloader = val_cfg = val_evaluator = None
test_dataloader = test_cfg = test_evaluator = None
