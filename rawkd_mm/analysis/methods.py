"""The methods that a sweep compares: their names, their losses and how figures show them.

This module imports nothing: the command lines load it by its path, and start without PyTorch.
"""

# Name on the command line -> the loss; the student alone has none.
LOSSES = {
    'student': None,
    'naive': 'NaiveFeatureLoss',
    'md': 'MagnitudeLoss',
    'lad': 'LADLoss',
    'cad': 'CADLoss',
    'pad': 'PADLoss',
    'nfd': 'NFDLoss',
    'kl': 'KLLoss',
}
# Name of each that distils -> what a legend calls it, and how it is drawn.
LEGENDS = {
    'naive': ('Naive', dict(color='#d55e00', marker='o')),
    'md': ('MD', dict(color='#0072b2', marker='s')),
    'lad': ('LAD', dict(color='#009e73', marker='^')),
    'cad': ('CAD', dict(color='#cc79a7', marker='D')),
    'pad': ('PAD', dict(color='#e69f00', marker='v')),
    'nfd': ('NFD', dict(color='#56b4e9', marker='X')),
    'kl': ('KL', dict(color='#666666', marker='P')),
}
