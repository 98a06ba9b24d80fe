"""Teachers from timm."""

import difflib
import sys
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ...registry import register_model
from ...training.errors import UsageError
from .base import ExternalTeacher, import_library
from .image_settings import ImageSettings

__all__ = ['TimmTeacher']


@register_model
class TimmTeacher(ExternalTeacher):
    """A model of timm as a teacher: every one of its architectures.

    timm makes the model, runs it as far as the last map that is asked for
    (``forward_intermediates``), turns tokens into maps, and knows mean, std and the pretrained weights.
    Vision transformers take images of any size where timm can resample their position embeddings
    (``dynamic_img_size``).

    Args:
        model (str): Name in ``timm.list_models()``, with the tag of its weights or without, such as
            ``'vit_small_patch16_dinov3.lvd1689m'``; or ``'hf-hub:...'`` or ``'local-dir:...'``.
        out_indices (Sequence[int]): Which of its maps, as for timm's ``features_only``; of a vision
            transformer the blocks. Negative ones count from the end. Defaults to the last.
        norm (bool): Whether the model's last norm is applied to the maps, as it is before its own
            classifier. Without it the features of vision transformers have channels far larger than
            the others. It is for the models that have one behind the last block. Defaults to True.
        images (dict, optional): :class:`ImageSettings`, for weights that were trained with others than
            timm's. Defaults to what timm's ``resolve_model_data_config`` says.
        divisor (int, optional): Defaults to the size of the patches.
        kwargs (dict, optional): Further arguments of ``timm.create_model``.

    Raises:
        UsageError: If timm is missing or too old, or has no such model; names the closest.
    """

    def __init__(
        self,
        model: str,
        out_indices: Sequence[int] = (-1,),
        norm: bool = True,
        images: dict | None = None,
        divisor: int | None = None,
        kwargs: dict | None = None,
    ) -> None:
        timm = import_library('timm', 'timm', f'TimmTeacher(model={model!r})')
        network = _create(timm, model, dict(kwargs or {}))
        if not hasattr(network, 'forward_intermediates'):
            raise UsageError(
                f'timm {timm.__version__} cannot give the feature maps of {model!r} '
                "(forward_intermediates): pip install -U 'timm>=1.0.20'"
            )
        super().__init__(
            network,
            _image_settings(timm, network) if images is None else images,
            _patch_size(network) if divisor is None else divisor,
            _only_size(network),
        )
        self.model_name = model
        self.out_indices = list(out_indices)
        self.norm = norm
        self._kwargs = dict(kwargs or {})

    def forward_maps(self, images: Tensor) -> tuple[Tensor, ...]:
        """Run the model as far as the last of ``out_indices``."""
        return tuple(
            self.network.forward_intermediates(
                images,
                indices=self.out_indices,
                norm=self.norm,
                stop_early=True,
                output_fmt='NCHW',
                intermediates_only=True,
            )
        )

    def pretrained_weights(self) -> dict[str, Tensor]:
        """Download timm's weights, or take them from its cache."""
        timm = import_library('timm', 'timm', f'TimmTeacher(model={self.model_name!r})')
        try:
            return _create(timm, self.model_name, self._kwargs, pretrained=True).state_dict()
        except Exception as error:  # of the hub, the network, the disk
            raise UsageError(
                f"teacher_ckpt='pretrained': timm has not loaded the weights of {self.model_name!r}: "
                f'{type(error).__name__}: {error}. timm.list_pretrained() names the models that have '
                'some; on a machine without network give the path of a file'
            ) from error

    def convert_weights(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename what timm knows under other names, those of the model's authors."""
        convert = getattr(sys.modules[type(self.network).__module__], 'checkpoint_filter_fn', None)
        return weights if convert is None else convert(dict(weights), self.network)


def _create(timm: Any, model: str, kwargs: dict, pretrained: bool = False) -> nn.Module:
    name = model.partition('.')[0]
    if ':' not in model and not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=0.5)
        raise UsageError(
            f'timm {timm.__version__} has no model {model!r}; the closest are '
            f'{", ".join(close) or "none"}. timm.list_models() lists all'
        )
    try:
        # position embeddings for images of any size; not every model knows the argument
        return timm.create_model(
            model, pretrained=pretrained, **{'dynamic_img_size': True, **kwargs}
        )
    except TypeError as error:
        if 'dynamic_img_size' not in str(error) and 'unexpected keyword' not in str(error):
            raise
    return timm.create_model(model, pretrained=pretrained, **kwargs)


def _image_settings(timm: Any, network: nn.Module) -> ImageSettings:
    from timm.data import resolve_model_data_config

    config = resolve_model_data_config(network)
    return ImageSettings(tuple(config['mean']), tuple(config['std']))


def _patch_size(network: nn.Module) -> int:
    size = getattr(getattr(network, 'patch_embed', None), 'patch_size', 1)
    return max(size) if isinstance(size, (tuple, list)) else size


def _only_size(network: nn.Module) -> tuple[int, int] | None:
    """Give the size of the images of a model that takes no other."""
    embed = getattr(network, 'patch_embed', None)
    size = getattr(embed, 'img_size', None)
    is_strict = getattr(embed, 'strict_img_size', False)
    return tuple(size) if is_strict and isinstance(size, (tuple, list)) else None
