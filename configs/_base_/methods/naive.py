# The weight depends on the pair. Supplement, section A (1), on VOC 2012: PSPNet needs 100 or 1000.
# assumption: the same on the other datasets, and for students of another kind
method = dict(
    note='assumption: the weight depends on the pair (in the paper 10 to 1000 for segmentation): '
    'tools/analysis_tools/weight_sweep.py finds it',
    model=dict(distiller=dict(loss=dict(type='NaiveFeatureLoss', loss_weight=100.0))),
)
