# Naive distillation of a feature 0.1 times as large (evidence.py gives its teacher). Behind the
# connector the student's feature is made 0.1 times as large too. So this is what the teacher that was
# not rescaled does with w = 10.
_base_ = './lad.py'

model = dict(
    distiller=dict(
        loss=dict(_delete_=True, type='NaiveFeatureLoss', loss_weight=1000),
        pairs=[
            dict(
                student='decode_head.bottleneck',
                teacher='decode_head.bottleneck',
                student_connector=dict(
                    type='TorchFunctionalConnector',
                    function_name='avg_pool2d',  # of one value, divided by 10
                    func_args=dict(kernel_size=1, divisor_override=10),
                ),
            )
        ],
    )
)
