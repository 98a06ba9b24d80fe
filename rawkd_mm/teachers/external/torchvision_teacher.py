"""Teachers from torchvision."""

import difflib
import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ...features.tokens import tokens_to_map
from ...registry import register_model
from ...training.errors import UsageError
from .base import ExternalTeacher, import_library
from .image_settings import ImageSettings

__all__ = ['TorchvisionTeacher']

# What all of torchvision's weights for classification and segmentation were trained with, and what its
# detectors normalise with.
_IMAGENET = ImageSettings((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# Graph nodes that average over all positions: modules called avgpool, and functions.
_POOLING = re.compile(r'(^|\.)avgpool$|^adaptive_avg_pool2d$|^mean$|^classifier\.0$')


@register_model
class TorchvisionTeacher(ExternalTeacher):
    """A model of torchvision as a teacher.

    torchvision's ``create_feature_extractor`` cuts the model off behind its last node. Without
    ``nodes`` the features are, by the kind of the model,

    - segmentation: the last map before the classifier;
    - detection: all levels of the backbone, the finest first;
    - classification: the last map before the pooling; of a ViT the tokens of the patches as a map.

    Args:
        model (str): Name in ``torchvision.models.list_models()``.
        nodes (Sequence[str], optional): Names of what is to be compared, as
            ``torchvision.models.feature_extraction.get_graph_node_names`` lists them: ``['layer3',
            'layer4']``, ``['backbone.layer4']``. Not for detectors. Defaults to the choice above.
        weights (str): Which of the model's weights ``teacher_ckpt='pretrained'`` means, such as
            'IMAGENET1K_V1'. Defaults to torchvision's 'DEFAULT'.
        images (dict, optional): :class:`ImageSettings`. Defaults to those of ``weights``.
        divisor (int, optional): Defaults to the size of a ViT's patches, else 1.
        kwargs (dict, optional): Further arguments of ``torchvision.models.get_model``, such as
            ``dict(num_classes=21)``.

    Raises:
        UsageError: If torchvision has no such model, weights or nodes; names the closest. If no feature
            can be chosen.
    """

    def __init__(
        self,
        model: str,
        nodes: Sequence[str] | None = None,
        weights: str = 'DEFAULT',
        images: dict | None = None,
        divisor: int | None = None,
        kwargs: dict | None = None,
    ) -> None:
        needed = f'TorchvisionTeacher(model={model!r})'
        models = import_library('torchvision.models', 'torchvision', needed)
        network = _create(models, model, dict(kwargs or {}), needed)
        found = _find_weights(models, model, weights, needed)
        size = getattr(network, 'image_size', None)
        if divisor is None:
            divisor = getattr(network, 'patch_size', 1) if size else 1
        is_detector = hasattr(network, 'rpn') or hasattr(network, 'anchor_generator')
        if images is None:
            images = _detector_images(network) if is_detector else _image_settings(found)
        if not is_detector:
            network = _cut(network, nodes, needed)
        elif nodes:
            raise UsageError(
                f'{needed}: nodes={list(nodes)!r}: torchvision cannot cut a detector off. Its features '
                "are the levels of its backbone; name others as 'network.backbone.body.layer3' in pairs"
            )
        super().__init__(network, images, divisor, size and (size, size))
        self._weights = found
        self._is_detector = is_detector

    def forward_maps(self, images: Tensor) -> tuple[Tensor, ...]:
        """Run the model as far as the last of its nodes.

        Raises:
            UsageError: If a node is neither a map nor the tokens of patches.
        """
        body = self.network.backbone if self._is_detector else self.network
        grid = [size // self.divisor for size in images.shape[2:]]
        return tuple(_to_map(node, output, grid) for node, output in body(images).items())

    def pretrained_weights(self) -> dict[str, Tensor]:
        """Download torchvision's weights, or take them from the cache of torch.hub."""
        if self._weights is None:
            raise UsageError("teacher_ckpt='pretrained': torchvision has no weights of this model")
        try:
            return self._weights.get_state_dict(progress=False, check_hash=True)
        except Exception as error:  # of the network, the disk
            raise UsageError(
                f"teacher_ckpt='pretrained': torchvision has not loaded {self._weights}: "
                f'{type(error).__name__}: {error}. On a machine without network give the path of a file'
            ) from error


def _create(models: Any, model: str, kwargs: dict, needed: str) -> nn.Module:
    names = models.list_models()
    if model not in names:
        close = difflib.get_close_matches(model, names, n=5, cutoff=0.5)
        raise UsageError(
            f'{needed}: torchvision has no such model; the closest are {", ".join(close) or "none"}. '
            'torchvision.models.list_models() lists all'
        )
    kind = models.get_model_builder(model).__module__
    if '.video' in kind or '.optical_flow' in kind:
        raise UsageError(f'{needed}: it takes several images at a time, a video or a pair')
    kwargs = {'weights': None, **kwargs}
    try:
        # else models for segmentation and detection download weights of their backbone
        return models.get_model(model, **{'weights_backbone': None, **kwargs})
    except TypeError as error:
        if 'weights_backbone' not in str(error):
            raise
    return models.get_model(model, **kwargs)


def _find_weights(models: Any, model: str, weights: str, needed: str) -> Any:
    """Give an entry of the model's enumeration of weights; None if it has no entries."""
    entries = models.get_model_weights(model).__members__
    if not entries:
        return None
    if weights not in entries:
        raise UsageError(
            f'{needed}: there are no weights {weights!r} of this model, only {", ".join(entries)}'
        )
    return entries[weights]


def _image_settings(weights: Any) -> ImageSettings:
    preset = weights.transforms() if weights is not None else None
    if not hasattr(preset, 'mean'):
        return _IMAGENET
    return ImageSettings(tuple(preset.mean), tuple(preset.std))


def _detector_images(network: nn.Module) -> ImageSettings:
    transform = network.transform
    return ImageSettings(tuple(transform.image_mean), tuple(transform.image_std))


def _cut(network: nn.Module, nodes: Sequence[str] | None, needed: str) -> nn.Module:
    """Cut a model off behind its last node."""
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    names = get_graph_node_names(network.eval())[1]
    chosen = list(nodes or _default_nodes(names, needed))
    for node in chosen:
        if not any(f'{name}.'.startswith(f'{node}.') for name in names):
            close = difflib.get_close_matches(node, names, n=5, cutoff=0.4)
            raise UsageError(
                f'{needed}: there is no node {node!r}; the closest are {", ".join(close) or names[-5:]}'
            )
    return create_feature_extractor(network, chosen)


def _default_nodes(names: list[str], needed: str) -> list[str]:
    is_segmentor = names[-1] in ('interpolate', 'add') or 'interpolate' in names
    classifier = [name for name in names if re.fullmatch(r'classifier\.\d+', name)]
    if is_segmentor and len(classifier) > 1:
        return [classifier[-2]]
    if is_segmentor:
        backbone = [name for name in names if name.startswith('backbone.')]
        return [backbone[-1]]
    if 'encoder.ln' in names:
        return ['encoder.ln']
    pooling = next((i for i, name in enumerate(names) if _POOLING.search(name)), 0)
    if not pooling:
        raise UsageError(
            f'{needed}: no feature can be chosen, it has no pooling. Name some (nodes=[...]): '
            f'{", ".join(names[-10:])}'
        )
    return [names[pooling - 1]]


def _to_map(node: str, output: Any, grid: Sequence[int]) -> Tensor:
    if isinstance(output, Tensor) and output.dim() == 4:
        return output
    if isinstance(output, Tensor) and output.dim() == 3:
        return tokens_to_map(output, grid)
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    raise UsageError(
        f'TorchvisionTeacher: {node!r} gives {shape}, and a map of shape (B, C, H, W) was expected. '
        'Name other nodes'
    )
