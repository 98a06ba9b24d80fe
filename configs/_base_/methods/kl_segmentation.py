# Canonical distillation of the scores of the classes: the same weight as the task's loss, temperature 1.
# assumption: both; the temperature is that of CIRKD's released code (arXiv 2204.06986)
method = dict(
    note='assumption: as much weight as the loss of the task; temperature 1 as in CIRKD',
    model=dict(
        distiller=dict(
            loss=dict(type='KLLoss', tau=1.0, loss_weight=1.0),
            pairs=[dict(student='decode_head.conv_seg', teacher='decode_head.conv_seg')],
        )
    ),
)
