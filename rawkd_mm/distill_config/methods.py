"""What a method puts into a config, read from the fragments that the zoo's configs take too."""

from pathlib import Path
from typing import NamedTuple

from mmengine.config import Config
from torch import nn

from ..training import UsageError

# In the order in which they are listed. The command line has the same names: it does not wait for
# this package to be imported.
METHODS = ('lad', 'cad', 'pad', 'naive', 'md', 'nfd', 'cwd', 'kl', 'mgd', 'fgd', 'fkd')
FRAGMENTS = Path('configs', '_base_', 'methods')
_PACKAGE = Path(__file__).resolve().parents[1]


class Method(NamedTuple):
    """What a method puts into the config.

    Attributes:
        loss: The loss of every pair.
        note: The comment on it: where its values come from.
        distiller: Further arguments of the distiller.
        optim_wrapper: Changes of the student's.
        levels: Connectors of the pairs, the finest map first. Further maps have those of the last.
        init_student: Parts of a RetinaNet that begin with the teacher's weights.
    """

    loss: dict
    note: str
    distiller: dict
    optim_wrapper: dict
    levels: list[dict]
    init_student: list[str]


def find_root() -> Path:
    """Give the folder that has ``configs``: the installed package's ``.mim``, or else the checkout."""
    for root in (_PACKAGE / '.mim', _PACKAGE.parent):
        if (root / FRAGMENTS).is_dir():  # in an editable install a link to the checkout's
            return (root / FRAGMENTS).resolve().parents[2]
    raise UsageError(
        f'the configs of rawkd_mm are missing, neither in {_PACKAGE / ".mim"} nor in '
        f'{_PACKAGE.parent}. Install the package anew: pip install .'
    )


def kinds_of(model: nn.Module) -> list[str]:
    """Give the endings of the fragments for a kind of student, the most specific first."""
    if hasattr(model, 'roi_head'):
        return ['two-stage', 'detection']
    if not hasattr(model, 'decode_head'):
        return ['one-stage', 'detection']
    is_upernet = type(model.decode_head).__name__ == 'UPerHead'
    return [*(['upernet'] if is_upernet else []), 'segmentation']


def find_fragment(name: str, kinds: list[str]) -> Path | None:
    """Give the first fragment of a method that there is for these kinds, or for any."""
    folder = find_root() / FRAGMENTS
    files = [folder / f'{name}_{kind}.py' for kind in kinds] + [folder / f'{name}.py']
    return next((file for file in files if file.is_file()), None)


def choose_method(name: str, model: nn.Module) -> Method:
    """Give a method's loss and connectors for a kind of student, as the zoo has them.

    Args:
        name (str): One of ``METHODS``.
        model (nn.Module): The student.

    Raises:
        UsageError: If the method is not for such a student.
    """
    file = find_fragment(name, kinds_of(model))
    if file is None:
        is_segmentor = hasattr(model, 'decode_head')
        others = [m for m in METHODS if find_fragment(m, kinds_of(model))]
        made_for, there = ('detectors', 'segmentation') if is_segmentor else ('segmentors', 'it')
        raise UsageError(
            f'--method {name} is for {made_for}, and the student {type(model).__name__} is none. For '
            f'{there} there are {", ".join(others)}'
        )
    fragment = Config.fromfile(str(file)).to_dict()['method']
    distiller = fragment['model']['distiller']
    pairs = distiller.pop('pairs', [])
    levels = [{k: v for k, v in p.items() if k not in ('student', 'teacher')} for p in pairs]
    return Method(
        loss=distiller.pop('loss'),
        note=fragment['note'],
        distiller=distiller,
        optim_wrapper=fragment.get('optim_wrapper', {}),
        levels=[level for level in levels if level],
        init_student=fragment['model'].get('init_student', []),
    )
