"""Messages of other packages that give the user nothing to do.

Each is printed in every training, whatever the user wrote in the config. What is about a user's own
settings is not listed here and stays.
"""

import functools
import sys
import warnings

__all__ = ['NEEDLESS_LOG', 'NEEDLESS_WARNINGS', 'silence']

# Printed or logged through MMEngine's print_log; the beginning of the text.
NEEDLESS_LOG = (
    # mmseg and mmdet ask for a private package at each import
    'Could not import OneDL',
    # mmdet without operators, of one family of models
    'Line NMS is not compiled',
    # MMEngine and mmcv call their own deprecated names
    '"FileClient" will be deprecated',
    '"HardDiskBackend" is the alias',
    # mmseg's metrics have no prefix, and the config keys that users know depend on it
    'The prefix is not set in metric class',
)

# Given by Python's warnings; the beginning of the text, as a regular expression.
NEEDLESS_WARNINGS = (
    # mmseg, for each loss of the published configs
    'Default ``avg_non_ignore`` is False',
    # mmseg and mmdet, for the hook that stands in every published config
    'The draw is False, it means that the hook for visualization',
    # mmcv without operators, which segmentation does not need
    'Fail to import ``MultiScaleDeformableAttention``',
    # mmdet, of a metric that nobody asked for
    'faster_coco_eval is not installed',
    # of calls in mmcv, mmdet, mmseg and MMEngine
    'torch.meshgrid: in an upcoming release',
    'pkg_resources is deprecated',
    r'`torch\.cuda\.amp\.',
    'torch.utils.checkpoint: the use_reentrant parameter',
)


def silence() -> None:
    """Leave these messages out from now on, in modules that are imported later too."""
    for text in NEEDLESS_WARNINGS:
        warnings.filterwarnings('ignore', message=text)
    from mmengine import logging

    original = logging.print_log
    if hasattr(original, '__wrapped__'):
        return

    @functools.wraps(original)
    def print_log(msg, *args, **kwargs):
        if not str(msg).startswith(NEEDLESS_LOG):
            original(msg, *args, **kwargs)

    # some modules of mmdet log without print_log when they are imported
    logging.MMLogger.get_current_instance().addFilter(
        lambda record: not record.getMessage().startswith(NEEDLESS_LOG)
    )
    for module in [m for name, m in sys.modules.items() if name.partition('.')[0] == 'mmengine']:
        if getattr(module, 'print_log', None) is original:
            module.print_log = print_log
