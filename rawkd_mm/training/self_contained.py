"""Writing a config as one file that needs no other."""

from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config

from .config import load_config
from .errors import UsageError
from .model_config import inline_models, make_paths_relative
from .text_config import add_imports, refuse_what_is_no_text

__all__ = ['read_self_contained', 'write_self_contained']


def read_self_contained(
    filename: str, options: dict | None, roots: Sequence[str]
) -> tuple[Config, dict[str, str], dict[str, str]]:
    """Read a config, with its bases merged and the models that it names by ``cfg_path`` written out.

    Args:
        filename (str): As :func:`load_config` takes it.
        options (dict, optional): Likewise.
        roots (Sequence[str]): Folders; a path below one of them becomes relative to it.

    Returns:
        tuple[Config, dict[str, str], dict[str, str]]: The config, which imports :mod:`rawkd_mm`; the
        paths that were made relative by their keys; the absolute ones that are left.

    Raises:
        UsageError: If it cannot be read, or has what a text config cannot have.
    """
    cfg = inline_models(load_config(filename, options))
    refuse_what_is_no_text(cfg, repr(filename))
    add_imports(cfg, dict(imports=['rawkd_mm'], allow_failed_imports=False))
    return cfg, *make_paths_relative(cfg, roots)


def write_self_contained(cfg: Config, out: Path, header: str, what: str) -> None:
    """Write a config, after a check that it reads as it was.

    Args:
        cfg (Config): As :func:`read_self_contained` gives it.
        out (Path): The file, in a folder that is made if need be.
        header (str): Comments at its beginning.
        what (str): What the config is, for errors.

    Raises:
        UsageError: If the text does not give the config again.
    """
    text = header + cfg.pretty_text
    try:
        if Config.fromstring(text, '.py').to_dict() != cfg.to_dict():
            raise ValueError('it reads differently than it was written')
    except Exception as error:
        raise UsageError(f'{what} cannot be written as a text config: {error}') from error
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding='utf-8')
