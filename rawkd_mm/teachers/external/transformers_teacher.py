"""Teachers from Hugging Face's Transformers."""

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ...features.tokens import tokens_to_map
from ...registry import register_model
from ...training.errors import UsageError
from .base import ExternalTeacher, import_library
from .image_settings import ImageSettings

__all__ = ['TransformersTeacher']

# Of backbones made from models without them, such as ConvNeXt and Swin.
_ADDED = 'hidden_states_norms.'


@register_model
class TransformersTeacher(ExternalTeacher):
    """A vision model of Transformers as a teacher.

    What ``AutoBackbone`` knows (DINOv2, DINOv3, ConvNeXt, Swin, ...) gives its ``feature_maps``. Of the
    others (ViT, CLIP's vision tower, SegFormer, ...) ``AutoModel`` gives the hidden states; tokens
    become maps. Position embeddings are interpolated to the image where the model can.

    Args:
        model (str): A folder that ``save_pretrained`` wrote, or a name on the hub, such as
            ``'facebook/dinov3-vits16-pretrain-lvd1689m'``. Its ``config.json`` is read when the teacher
            is built, its weights are not (``teacher_ckpt``).
        out_indices (Sequence[int]): Which of its stages or hidden states. Negative ones count from the
            end. Defaults to the last.
        images (dict, optional): :class:`ImageSettings`. Defaults to what the image processor beside
            the model says.
        divisor (int, optional): Defaults to the size of the patches.
        kwargs (dict, optional): Further arguments of ``AutoConfig.from_pretrained``, such as
            ``dict(revision='main')``.

    Raises:
        UsageError: If Transformers is missing, if there is no such model, or if nothing says which
            images it takes.
    """

    def __init__(
        self,
        model: str,
        out_indices: Sequence[int] = (-1,),
        images: dict | None = None,
        divisor: int | None = None,
        kwargs: dict | None = None,
    ) -> None:
        needed = f'TransformersTeacher(model={model!r})'
        transformers = import_library('transformers', 'transformers', needed)
        config = _read_config(transformers, model, kwargs or {})
        is_backbone = type(config) in transformers.AutoBackbone._model_mapping
        if is_backbone:
            number = len(config.stage_names)
            config.set_output_features_output_indices(
                out_indices=[i % number if -number <= i < number else i for i in out_indices],
                out_features=None,
            )
        kind = transformers.AutoBackbone if is_backbone else transformers.AutoModel
        try:
            network = kind.from_config(config)
        except Exception as error:
            raise UsageError(
                f'{needed}: {kind.__name__} cannot build it: {type(error).__name__}: {error}'
            ) from error
        super().__init__(
            network,
            _image_settings(transformers, model, needed) if images is None else images,
            _patch_size(config) if divisor is None else divisor,
        )
        self.model_name = model
        self.out_indices = list(out_indices)
        self._is_backbone = is_backbone
        parameters = inspect.signature(network.forward).parameters
        self._arguments = (
            dict(interpolate_pos_encoding=True) if 'interpolate_pos_encoding' in parameters else {}
        )

    def forward_maps(self, images: Tensor) -> tuple[Tensor, ...]:
        """Run the model.

        Raises:
            ValueError: If hidden states are neither maps nor the tokens of patches.
        """
        if self._is_backbone:
            return tuple(self.network(images, **self._arguments).feature_maps)
        states = self.network(images, output_hidden_states=True, **self._arguments).hidden_states
        grid = [size // self.divisor for size in images.shape[2:]]
        chosen = (states[index] for index in self.out_indices)
        return tuple(x if x.dim() == 4 else tokens_to_map(x, grid) for x in chosen)

    def pretrained_weights(self) -> dict[str, Tensor]:
        """Take the weights of the folder, or of the hub through the cache of Transformers."""
        try:
            return self._load(self.model_name)
        except Exception as error:  # of the hub, the network, the disk
            raise UsageError(
                "teacher_ckpt='pretrained': Transformers has not loaded the weights of "
                f'{self.model_name!r}: {type(error).__name__}: {error}. On a machine without network '
                'give a folder or a file that save_pretrained wrote'
            ) from error

    def convert_weights(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename what Transformers renames when it loads a model as another class."""
        return self._load(None, state_dict=dict(weights))

    def _load(self, source: str | None, **kwargs: Any) -> dict[str, Tensor]:
        """Let Transformers load a model; gives what came from where it was to be loaded from."""
        loaded, info = type(self.network).from_pretrained(
            source, config=self.network.config, output_loading_info=True, **kwargs
        )
        absent = {
            key if isinstance(key, str) else key[0]
            for kind in ('missing_keys', 'mismatched_keys')
            for key in info.get(kind, ())
        }
        # Some backbones put norms behind their stages, and no checkpoint has them: they normalise,
        # and have no weights of their own.
        return {
            name: value
            for name, value in loaded.state_dict().items()
            if name not in absent or name.startswith(_ADDED)
        }


def _read_config(transformers: Any, model: str, kwargs: dict) -> Any:
    try:
        config = transformers.AutoConfig.from_pretrained(model, **kwargs)
    except Exception as error:  # of the hub, the network, the disk
        raise UsageError(
            f'TransformersTeacher(model={model!r}): there is no such model that can be had: '
            f'{type(error).__name__}: {error}. Give a folder that save_pretrained wrote, or the name '
            'of a model on the hub'
        ) from error
    # of a model of texts and images, the part that sees
    return getattr(config, 'vision_config', config)


def _image_settings(transformers: Any, model: str, needed: str) -> ImageSettings:
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(model)
    except Exception as error:
        raise UsageError(
            f'{needed}: nothing says which images it takes ({type(error).__name__}: {error}). Save '
            'its image processor beside it, or give '
            'images=dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)), the values that it '
            'was trained with'
        ) from error
    return settings_of_processor(processor)


def settings_of_processor(processor: Any) -> ImageSettings:
    """Read an image processor of Transformers.

    Args:
        processor (BaseImageProcessor): With ``image_mean``, ``image_std`` and ``rescale_factor``.

    Returns:
        ImageSettings: What it does to the values of images in RGB.
    """
    factor = processor.rescale_factor if getattr(processor, 'do_rescale', True) else 1.0
    if getattr(processor, 'do_normalize', True):
        mean, std = processor.image_mean, processor.image_std
    else:
        mean, std = (0.0,) * 3, (1.0,) * 3
    is_flipped = getattr(processor, 'do_flip_channel_order', False)
    return ImageSettings(tuple(mean), tuple(std), 255 * factor, 'bgr' if is_flipped else 'rgb')


def _patch_size(config: Any) -> int:
    size = getattr(config, 'patch_size', 1)
    return max(size) if isinstance(size, (tuple, list)) else size
