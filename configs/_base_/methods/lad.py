# The paper's weight on COCO. For segmentation it is an assumption: the text at hand gives none.
# assumption: neither init_student nor clip_grad, which FGD and MGD have; the text at hand is silent
method = dict(
    note="the paper's weight on COCO; for segmentation it is an assumption",
    model=dict(distiller=dict(loss=dict(type='LADLoss', loss_weight=3.0))),
)
