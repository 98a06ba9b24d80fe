"""Finds what comes with the package but lies outside of it: tools and configs."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def shipped_folder(name: str) -> Path:
    """Find a folder of the checkout, or what an installation made of it.

    Args:
        name (str): 'tools' or 'configs'.

    Returns:
        Path: The folder, without symbolic links.
    """
    installed = _PACKAGE / '.mim' / name  # a link, if the checkout itself is installed
    return installed.resolve() if installed.is_dir() else _PACKAGE.parent / name
