"""MMSegmentation, also where it is installed under another distribution name."""

from .versions import installed_versions

__all__ = ['channel_swap_and_padding', 'mend_mmseg_lookup']


def mend_mmseg_lookup() -> None:
    """Let MMEngine find ``mmseg::`` configs when MMSegmentation is installed as a fork.

    MMEngine maps ``mmseg`` to the distribution 'mmsegmentation' and stops if that name is not
    installed, although a fork provides the same package.
    """
    from mmengine.config import utils

    found = installed_versions()['mmseg']
    if found is not None and found[1] != 'unknown':
        utils.MODULE2PACKAGE['mmseg'] = found[0]


def channel_swap_and_padding(preprocessor) -> tuple:
    """Ask a data_preprocessor what it does to images besides normalising them.

    MMEngine's ImgDataPreprocessor has ``_channel_conversion`` and ``pad_value``; mmseg 1.2.2's
    SegDataPreProcessor, which does not derive from it, ``channel_conversion`` and ``pad_val``.

    Args:
        preprocessor (nn.Module): The data_preprocessor of a model.

    Returns:
        tuple[bool | None, Number]: Whether it reverses the channels, None if it does not tell; and
        the value that it pads images with, 0 if it does not tell.
    """

    def first(names, default):
        return next((getattr(preprocessor, n) for n in names if hasattr(preprocessor, n)), default)

    swap = first(('_channel_conversion', 'channel_conversion'), None)
    return swap, first(('pad_value', 'pad_val'), 0)
