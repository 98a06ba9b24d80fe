"""One's own models as teachers: what a function builds, or what a file holds."""

import os
import pkgutil
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...registry import register_model
from ...training.checkpoint_loading import weights_only
from ...training.errors import UsageError
from .base import ExternalTeacher

__all__ = ['TorchTeacher']


@register_model
class TorchTeacher(ExternalTeacher):
    """Any ``nn.Module`` as a teacher, or a file of ``torch.export`` or TorchScript.

    It is called with images of shape (B, C, H, W) and gives a map, or a list, tuple or dict of maps;
    what else is in these is left out.

    Args:
        factory (str, optional): A function, class or class method by its full name,
            ``'my_package.my_module.build'``: it is called with ``kwargs`` and gives the module. Its
            weights come from ``teacher_ckpt``.
        file (str, optional): Instead, a file that ``torch.export.save`` or ``torch.jit.save`` wrote. It
            has its weights in it: set ``teacher_ckpt='pretrained'``. An exported program takes the sizes
            of images that it was exported for.
        images (dict, optional): :class:`ImageSettings`: which images it takes. May be left out if the
            module says so itself, by an attribute ``images``.
        divisor (int): What height and width of its images must be a multiple of. Defaults to 1.
        kwargs (dict, optional): Arguments of the factory.

    Raises:
        UsageError: If there is no such function or file, or it gives no module; if nothing says which
            images it takes.
    """

    def __init__(
        self,
        factory: str | None = None,
        file: str | None = None,
        images: dict | None = None,
        divisor: int = 1,
        kwargs: dict | None = None,
    ) -> None:
        if (factory is None) == (file is None):
            raise UsageError(
                'TorchTeacher takes either factory=, the full name of a function, or file=, a file of '
                f'torch.export or TorchScript; got factory={factory!r}, file={file!r}'
            )
        if file is not None and kwargs:
            raise UsageError(f'TorchTeacher(file={file!r}) takes no kwargs, got {kwargs!r}')
        network = _load(file) if factory is None else _call(factory, kwargs or {})
        images = getattr(network, 'images', None) if images is None else images
        if images is None:
            raise UsageError(
                f'TorchTeacher({factory or file!r}): nothing says which images it takes. Give '
                'images=dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), max_value=1, '
                "channel_order='rgb') with the values that it was trained with, or an attribute "
                '`images` of the module with them'
            )
        super().__init__(network, images, divisor)
        self._file = file

    def forward_maps(self, images: Tensor) -> tuple[Tensor, ...]:
        """Call the module.

        Raises:
            UsageError: If it gives no map.
        """
        output = self.network(images)
        values = [output]
        if isinstance(output, Mapping):
            values = list(output.values())
        elif isinstance(output, Sequence):
            values = list(output)
        maps = [value for value in values if isinstance(value, Tensor) and value.dim() == 4]
        if not maps:
            kinds = [tuple(v.shape) if isinstance(v, Tensor) else type(v).__name__ for v in values]
            raise UsageError(
                f'TorchTeacher: the module gives {kinds}, and maps of shape (B, C, H, W) were expected. '
                "Name a module within it as the feature, such as 'network.layer3'"
            )
        return tuple(maps)

    def pretrained_weights(self) -> dict[str, Tensor]:
        """Give the weights that came with the file."""
        if self._file is None:
            raise UsageError(
                "teacher_ckpt='pretrained': a factory's module has no weights of its own. Give the path "
                'or URL of its checkpoint'
            )
        return self.network.state_dict()


class _Script(nn.Module):
    """A TorchScript module, whose parts take no hooks and are therefore no submodules here."""

    def __init__(self, script: nn.Module) -> None:
        super().__init__()
        self.__dict__['_script'] = script.eval()
        # tells the device and type that the weights have
        self.register_parameter('place', nn.Parameter(torch.zeros(()), requires_grad=False))

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> '_Script':
        self._script._apply(fn)
        return super()._apply(fn, *args, **kwargs)

    def forward(self, images: Tensor) -> Any:
        return self._script(images)


def _call(factory: str, kwargs: dict) -> nn.Module:
    sys.path.append(os.getcwd())  # a tool's own folder is there, that of its user is not
    try:
        function = pkgutil.resolve_name(factory)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f'TorchTeacher(factory={factory!r}): {error}. It must be the full name of a function, '
            "'package.module.function', that Python finds (current folder or PYTHONPATH)"
        ) from error
    finally:
        sys.path.pop()
    network = function(**kwargs)
    if not isinstance(network, nn.Module):
        raise UsageError(
            f'TorchTeacher(factory={factory!r}): it gave a {type(network).__name__}, and an nn.Module '
            'was expected'
        )
    return network


def _load(file: str) -> nn.Module:
    if not Path(file).is_file():
        raise UsageError(f'TorchTeacher(file={file!r}): there is no such file')
    try:
        with zipfile.ZipFile(file) as archive:
            is_script = any(name.endswith('/constants.pkl') for name in archive.namelist()) and any(
                '/code/' in name for name in archive.namelist()
            )
    except zipfile.BadZipFile as error:
        raise UsageError(
            f'TorchTeacher(file={file!r}): it is no file of torch.export or TorchScript, or was cut off'
        ) from error
    if is_script:
        return _Script(torch.jit.load(file, map_location='cpu'))
    try:
        with weights_only():  # what a file holds beside tensors and the graph shall not run
            network = torch.export.load(file).module()
    except Exception as error:
        raise UsageError(
            f'TorchTeacher(file={file!r}): torch.export cannot load it: {type(error).__name__}: '
            f'{error}. A file of weights needs a factory that builds the module'
        ) from error
    # The mode of an exported graph is fixed; asking for another is an error there.
    network.train = lambda mode=True: network
    return network
