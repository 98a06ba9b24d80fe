"""What all teachers of other libraries have in common."""

import importlib
import logging
from types import ModuleType

import torch.nn.functional as F
from mmengine.logging import print_log
from mmengine.model import BaseModel
from torch import Tensor, nn

from ...training.errors import UsageError
from .image_settings import ImageSettings

__all__ = ['ExternalTeacher', 'import_library']


class ExternalTeacher(BaseModel):
    """A network of another library as a teacher: it takes images and gives feature maps.

    Its features are called ``'features[0]'``, ``'features[1]'`` and so on. What any module of the
    network outputs can be named too, by its path: ``'network.layer3'``. It has no head and predicts
    nothing.

    A subclass gives the maps (:meth:`forward_maps`) and the library's weights
    (:meth:`pretrained_weights`).

    Args:
        network (nn.Module): The library's model.
        images (ImageSettings | dict): Which images it takes.
        divisor (int): What height and width of its images must be a multiple of: the size of its
            patches. An image that is none is enlarged to the next multiple, bilinearly, so that its
            features cover all of it and nothing else. Defaults to 1.
        size (tuple[int, int], optional): Height and width of its images if it takes one size only;
            every image is resized to it. Defaults to None.

    Attributes:
        network (nn.Module): The library's model.
        features (nn.Identity): Gives the tuple of feature maps.
        divisor (int): As above.
        size (tuple[int, int] | None): As above.
    """

    # what `features` outputs is there to be distilled
    gives_features = True
    # where a checkpoint's parameters are in state_dict()
    weights_prefix = 'network.'

    def __init__(
        self,
        network: nn.Module,
        images: ImageSettings | dict,
        divisor: int = 1,
        size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(data_preprocessor=ImageSettings.parse(images).preprocessor())
        if not isinstance(divisor, int) or divisor < 1:
            raise ValueError(f'divisor must be an integer of at least 1, got {divisor!r}')
        self.network = network
        self.features = nn.Identity()
        self.divisor = divisor
        self.size = size
        if size is not None:
            print_log(
                f'{type(self).__name__} takes images of {size[0]}x{size[1]} pixels only: all are '
                'resized to that, whatever their shape.',
                'current',
                logging.WARNING,
            )

    def fitting_size(self, height: int, width: int) -> tuple[int, int]:
        """Give the size that an image of some height and width gets before the network sees it."""
        if self.size is not None:
            return self.size
        return tuple(-(-size // self.divisor) * self.divisor for size in (height, width))

    def forward(
        self, inputs: Tensor, data_samples: list | None = None, mode: str = 'tensor'
    ) -> tuple[Tensor, ...]:
        """Give the feature maps.

        Args:
            inputs (Tensor): Images as the data_preprocessor makes them, shape (B, C, H, W).
            data_samples (list, optional): Not used.
            mode (str): 'tensor'; 'loss', in which MMRazor's algorithms run a teacher, gives the same.

        Returns:
            tuple[Tensor, ...]: Maps of shape (B, C, H', W').

        Raises:
            RuntimeError: In mode 'predict': there is no head.
        """
        if mode == 'predict':
            raise RuntimeError(
                f'{type(self).__name__} gives features and has no head that predicts anything: it '
                'cannot be evaluated'
            )
        size = self.fitting_size(*inputs.shape[2:])
        if size != tuple(inputs.shape[2:]):
            inputs = F.interpolate(
                inputs, size, mode='bilinear', align_corners=False, antialias=True
            )
        return self.features(self.forward_maps(inputs))

    def forward_maps(self, images: Tensor) -> tuple[Tensor, ...]:
        """Run the network on images whose height and width are multiples of ``divisor``.

        Args:
            images (Tensor): Shape (B, C, H, W).

        Returns:
            tuple[Tensor, ...]: Maps of shape (B, C, H', W').
        """
        raise NotImplementedError

    def pretrained_weights(self) -> dict[str, Tensor]:
        """Let the library find, download and keep its weights for ``teacher_ckpt='pretrained'``.

        Returns:
            dict[str, Tensor]: By the names of ``network.state_dict()``. What the library would leave
            random is not among them.

        Raises:
            UsageError: If there are none, or they cannot be had.
        """
        raise NotImplementedError

    def convert_weights(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename the parameters of a checkpoint that has not the network's names.

        Args:
            weights (dict[str, Tensor]): As found in the checkpoint.

        Returns:
            dict[str, Tensor]: The same, if the library knows no other names of this network.
        """
        return weights


def import_library(name: str, extra: str, needed: str) -> ModuleType:
    """Import a library that is an extra of this package.

    Args:
        name (str): Of the module.
        extra (str): Of the extra that installs it.
        needed (str): What wants it, for the error.

    Returns:
        ModuleType: The module.

    Raises:
        UsageError: If it is missing, or cannot be imported; names the extra.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(
            f"{needed} needs {name}, which cannot be imported ({error}): pip install 'rawkd_mm[{extra}]'"
        ) from error
