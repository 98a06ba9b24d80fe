# The weights that the authors of FKD published for two-stage detectors, which are MMRazor's too.
_base_ = './fkd_one-stage.py'

method = dict(
    note="FKD's published values for two-stage detectors",
    model=dict(
        distiller=dict(
            loss=dict(
                mask_l2_weight=7e-5,
                channel_weight=4e-3,
                spatial_weight=4e-3,
                nonloacl_weight=7e-5,
            ),
            pairs=_base_.method.model.distiller.pairs[:4],
        ),
    ),
)
