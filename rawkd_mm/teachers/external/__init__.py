"""Models of other libraries, and one's own, as teachers; the libraries make and load them."""

from .base import ExternalTeacher
from .image_settings import ImageSettings
from .names import LIBRARIES, teacher_from_name
from .timm_teacher import TimmTeacher
from .torch_teacher import TorchTeacher
from .torchvision_teacher import TorchvisionTeacher
from .transformers_teacher import TransformersTeacher

__all__ = [
    'LIBRARIES',
    'ExternalTeacher',
    'ImageSettings',
    'TimmTeacher',
    'TorchTeacher',
    'TorchvisionTeacher',
    'TransformersTeacher',
    'teacher_from_name',
]
