"""Short names of teachers from other libraries: ``'timm::vit_small_patch16_dinov3'``."""

from typing import Any

__all__ = ['LIBRARIES', 'teacher_from_name']

# What stands before '::', and the teacher it means.
LIBRARIES = {
    'timm': 'TimmTeacher',
    'hf': 'TransformersTeacher',
    'torchvision': 'TorchvisionTeacher',
    'module': 'TorchTeacher',
}
_FILES = ('.pt', '.pt2', '.ts', '.pth')


def teacher_from_name(name: str) -> dict[str, Any] | None:
    """Give the config of a teacher that a command names.

    Args:
        name (str): ``'timm::NAME'``, ``'hf::NAME_OR_FOLDER'``, ``'torchvision::NAME'``,
            ``'module::package.function'`` or ``'module::FILE.pt2'``.

    Returns:
        dict[str, Any] | None: Its config; None if the name begins with none of these.
    """
    library, separator, rest = name.partition('::')
    if not separator or library not in LIBRARIES:
        return None
    key = 'model'
    if library == 'module':
        key = 'file' if rest.endswith(_FILES) else 'factory'
    return {'type': LIBRARIES[library], key: rest}
