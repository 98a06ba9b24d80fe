"""Finds what comes with the package but lies outside of it: tools and configs."""

import subprocess
import sys
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


def make_digit_scenes(root: Path, size: int, cwd: Path | None = None, **counts: int) -> None:
    """Make DigitScenes by its tool, which leaves scenes that are there as they are.

    Args:
        root (Path): Where to.
        size (int): Height and width of the images.
        cwd (Path, optional): Where a relative ``root`` begins. Defaults to None, the current folder.
        **counts (int): ``train`` and ``val``, how many images of each; the tool's defaults else.

    Raises:
        subprocess.CalledProcessError: If they cannot be made; the tool has printed why.
    """
    command = [sys.executable, shipped_folder('tools') / 'dataset_converters/digit_scenes.py']
    for name, value in dict(root=root, size=size, **counts).items():
        command += [f'--{name}', value]
    subprocess.run([str(part) for part in command], cwd=cwd, check=True)
