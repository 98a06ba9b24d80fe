"""Writes text files that other processes may read at any time."""

import os
import threading
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write a file that is there as a whole or not at all, whatever happens meanwhile.

    Args:
        path (Path): The file, in a folder that exists.
        text (str): Its content.
    """
    temporary = path.with_name(f'.{path.name}.{os.getpid()}-{threading.get_ident()}')
    temporary.write_text(text)
    os.replace(temporary, path)
