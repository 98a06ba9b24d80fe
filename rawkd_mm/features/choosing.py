"""Finding the features of a model that are worth distilling, by running it."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import product
from typing import Any, NamedTuple

from mmengine.model import BaseModel
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from .dry_run import FeaturesComplete, dry_run, run_for_features
from .probe import detector_within, image_channels, without_traces
from .source import FeatureSource

__all__ = [
    'FRAMES',
    'TWO_KINDS',
    'AutoFeatureError',
    'Feature',
    'find_classifier',
    'find_features',
    'find_memory',
    'detector_alone',
    'has_classifier',
    'maps_in',
    'match_features',
    'measure_feature',
]

# What every head of mmseg calls the convolution that gives each position its class.
_CLASSIFIER = 'conv_seg'

# What mask classification multiplies queries with: the map below a head of these, and where it lies.
_PIXEL_DECODER = 'pixel_decoder'
_PIXEL_EMBEDDINGS = {
    # The same role in heads without a pixel decoder. SAN runs its decoder once for each supervised
    # layer in training and once otherwise: the last run is that of the last layer.
    'SideAdapterCLIPHead': 'side_adapter_network.mask_decoder.pix_mlp[run=-1]',
    # Segmenter compares these tokens of patches with those of classes.
    'SegmenterMaskTransformerHead': 'patch_proj:tokens',
}

# What a student trains the detector within it on, of which no features are compared.
FRAMES = 'frames of a video, one after the other'
TWO_KINDS = 'labelled and unlabelled images at once'

# What holds the part of a model that sees the image, in order.
_BODIES = ('neck', 'backbone', 'image_encoder')


class AutoFeatureError(ValueError):
    """No feature can be chosen for a model; the message says why and what to do."""


class Feature(NamedTuple):
    """A feature map that a model produces.

    Attributes:
        source (FeatureSource): Where it comes from.
        shape (tuple[int, int, int]): Channels, height and width.
        stride (float): Height of the image divided by the height of the map.
    """

    source: FeatureSource
    shape: tuple[int, int, int]
    stride: float


def _to_feature(source: FeatureSource, tensor: Tensor, image: Sequence[int]) -> Feature:
    return Feature(source, tuple(tensor.shape[1:]), image[1] / tensor.shape[2])


def default_shape(model: BaseModel) -> tuple[int, int, int]:
    """Give the image that shapes are found with: 256x256 pixels of as many channels as it takes."""
    return (image_channels(model), 256, 256)


def measure_feature(model: BaseModel, text: str, shape: Sequence[int] | None = None) -> Feature:
    """Find out the shape of a feature that is named by its path.

    Args:
        model (BaseModel): The model.
        text (str): Such as ``'decode_head.bottleneck'`` or ``'neck[0]'``.
        shape (Sequence[int], optional): Channels, height and width of the image to run the model
            with. Defaults to 256x256 pixels of as many channels as the model takes.

    Returns:
        Feature: The feature.

    Raises:
        ValueError: If there is no such module, an index is missing or wrong, or the feature is no
            map.
        RuntimeError: If the module gives no feature, or several.
    """
    shape = shape or default_shape(model)
    source = FeatureSource.parse(text)
    try:
        tensor = dry_run(model, shape, [source], type(model).__name__).features[source]
    except (IndexError, TypeError) as error:
        raise ValueError(str(error)) from error
    if tensor.dim() != 4:
        raise ValueError(
            f'{text!r} of {type(model).__name__} has the shape {tuple(tensor.shape)}; a feature '
            'map of shape (B, C, H, W) was expected'
        )
    return _to_feature(source, tensor, shape)


def find_features(model: BaseModel, role: str, shape: Sequence[int] | None = None) -> list[Feature]:
    """Choose the features to distil; the parts that a model has decide, in this order.

    * A teacher of another library (:class:`rawkd_mm.teachers.ExternalTeacher`): all that it gives.
    * What holds a detector (a tracker, say): those of the detector.
    * A head of mask classification (MaskFormer, Mask2Former, in mmseg and in mmdet; SAN; Segmenter):
      the map that its masks are products of, one level.
    * A segmentor's head with a classifier of positions: the last feature before it, found by running
      the head.
    * A neck that gives maps (detectors, query-based ones too): every level.
    * Otherwise (C4 detectors, heads that classify no positions, person re-identification): the
      backbone's maps.

    Args:
        model (BaseModel): The model; any weights will do.
        role (str): 'student' or 'teacher'. The student's feature must be the same in training, where
            dropout is active and heads of a cascade may run twice.
        shape (Sequence[int], optional): Channels, height and width of the image to run the model
            with. Defaults to 256x256 pixels of as many channels as the model takes.

    Returns:
        list[Feature]: The features; of a neck from the finest to the coarsest.

    Raises:
        AutoFeatureError: If none can be chosen.
    """
    shape = shape or default_shape(model)
    if getattr(model, 'gives_features', False):
        return _levels(model, 'features', role, shape)
    within = _checked_detector_within(model, role)
    if within is not None:
        return _of_part(within, find_features(getattr(model, within), role, shape))
    masks = _mask_features(model)
    if masks is not None:
        return [measure_feature(model, masks, shape)]
    if has_classifier(model):
        return [_feature_before_classifier(model, role, shape)]
    for path in _BODIES:
        if getattr(model, path, None) is None:
            continue
        output = _first_output(model, path, shape)
        has_backbone = getattr(model, 'backbone', None) is not None
        if path == 'neck' and has_backbone and not list(maps_in(output)):
            continue  # that of a classifier of whole images gives vectors
        return _levels_in(output, model, path, role, shape)
    raise AutoFeatureError(
        f'no feature of the {role} {type(model).__name__} can be chosen automatically: it has none of '
        f'{", ".join(_BODIES)}, no head that classifies positions and none with a pixel decoder. Name '
        'the features (--features STUDENT=TEACHER); tools/inspect_features.py lists them'
    )


def find_memory(model: BaseModel, role: str, shape: Sequence[int] | None = None) -> list[Feature]:
    """Choose the memory of a model with queries: what its queries read, instead of the default.

    It is the multi-scale memory of a pixel decoder, or what a DETR's encoder makes of the neck's
    levels. A model without such has what :func:`find_features` gives.

    Args:
        model (BaseModel): The model; any weights will do.
        role (str): 'student' or 'teacher', for errors.
        shape (Sequence[int], optional): As for :func:`find_features`.

    Returns:
        list[Feature]: The features, from the finest to the coarsest.
    """
    shape = shape or default_shape(model)
    within = _checked_detector_within(model, role)
    if within is not None:
        return _of_part(within, find_memory(getattr(model, within), role, shape))
    decoder = _pixel_decoder(model)
    if decoder is not None:
        levels = [f for f in _levels(model, decoder, role, shape) if f.source.indices[0] == 1]
        if levels:
            return levels
    encoder = getattr(model, 'encoder', None)
    if encoder is not None and getattr(model, 'neck', None) is not None:
        path = 'encoder:tokens'
        try:
            return [measure_feature(model, path, shape)]
        except ValueError:
            number = len(_levels(model, 'neck', role, shape))
            found = [measure_feature(model, f'{path}[{i}]', shape) for i in range(number)]
            return sorted(found, key=lambda feature: feature.stride)
    return find_features(model, role, shape)


def detector_alone(kind: str, detector: str, trained_on: str, such_as: str = '') -> str:
    """Say why a student is refused that holds a detector, and what to do.

    Args:
        kind (str): The student's class.
        detector (str): That of the detector in it.
        trained_on (str): What the student trains the detector on; '' if it does not train it.
        such_as (str): A config of such a detector. Defaults to '', none is known.

    Returns:
        str: The end of an error message.
    """
    how = (
        f'trains its {detector} on {trained_on}' if trained_on else f'does not train its {detector}'
    )
    example = f', such as {such_as},' if such_as else ''
    return (
        f'{kind} {how}, and features are compared for a batch of single images. Distil the detector '
        f'alone: name the config of a {detector} as the student{example} with the classes and data of '
        f'yours. Then let {kind} begin with its weights: '
        "detector=dict(init_cfg=dict(type='Pretrained', checkpoint=...))"
    )


def _checked_detector_within(model: BaseModel, role: str) -> str | None:
    """Name the detector that a model holds; refuse a student that trains it in a way of its own."""
    within = detector_within(model)
    preprocessor = getattr(model, 'data_preprocessor', None)
    if within is None or role == 'teacher':
        return within
    # MMDetection's switch of trackers that train their detector on single images
    if not getattr(preprocessor, 'use_det_processor', False):
        names = type(model).__name__, type(getattr(model, within)).__name__
        how = TWO_KINDS if hasattr(model, 'semi_test_cfg') else FRAMES
        raise AutoFeatureError(f'the {role} {detector_alone(*names, how)}')
    return within


def _of_part(name: str, features: list[Feature]) -> list[Feature]:
    """Name the features of a part of a model as the model's."""
    return [
        f._replace(source=f.source._replace(module=f'{name}.{f.source.module}')) for f in features
    ]


def has_classifier(model: BaseModel) -> bool:
    """Whether a segmentor's head has a convolution that gives each position its class."""
    return hasattr(model, 'decode_head') and any(
        name.rpartition('.')[2] == _CLASSIFIER for name, _ in model.decode_head.named_modules()
    )


def _pixel_decoder(model: BaseModel) -> str | None:
    names = [n for n, _ in model.named_modules() if n.rpartition('.')[2] == _PIXEL_DECODER]
    return names[0] if names else None


def _mask_features(model: BaseModel) -> str | None:
    """Name the map that a model of mask classification multiplies its queries with, if it is one."""
    head = getattr(model, 'decode_head', None)
    kind = next((k.__name__ for k in type(head).__mro__ if k.__name__ in _PIXEL_EMBEDDINGS), None)
    if kind is not None:
        return f'decode_head.{_PIXEL_EMBEDDINGS[kind]}'
    decoder = _pixel_decoder(model)
    return None if decoder is None else f'{decoder}[0]'


def find_classifier(model: BaseModel, role: str, shape: Sequence[int] | None = None) -> Feature:
    """Find the convolution that gives each position the scores of its classes.

    It is that of the main head: of a cascade (``decode_head`` is a list) the last. Auxiliary heads,
    STDC's boundary heads among them, and further classifiers within the main head do not count.

    Args:
        model (BaseModel): A segmentor of mmseg; any weights will do.
        role (str): 'student' or 'teacher', for errors.
        shape (Sequence[int], optional): Channels, height and width of the image to run the model
            with. Defaults to 256x256 pixels of as many channels as the model takes.

    Returns:
        Feature: Its output. Its channels are the model's outputs, one for two classes if the head
        has ``out_channels=1``.

    Raises:
        AutoFeatureError: If the main head classifies something else than the positions of a map.
    """
    shape = shape or default_shape(model)
    path, head = 'decode_head', model.decode_head
    if isinstance(head, nn.ModuleList):
        path, head = f'{path}.{len(head) - 1}', head[-1]
    name, kind = f'{path}.{_CLASSIFIER}', type(head).__name__
    run = _HeadRun(model)
    if name not in run.names.values():
        raise AutoFeatureError(
            f"the {role}'s {kind} has no classifier of positions: there is no convolution named "
            f'{_CLASSIFIER!r}. Name the features (--features STUDENT=TEACHER), or take a method that '
            'compares features before the classifier; tools/inspect_features.py lists them'
        )
    run.run(model, shape)
    outputs = [output for called, _, _, output in run.calls if called == name]
    if len(outputs) != 1 or not isinstance(outputs[0], Tensor) or outputs[0].dim() != 4:
        raise AutoFeatureError(
            f"the {role}'s {kind} runs {name!r} {len(outputs)} times on an image of shape "
            f'{tuple(shape)}, and one map of scores was expected'
            + (f' ({run.error!r})' if run.error else '')
            + '. Name the features (--features STUDENT=TEACHER); tools/inspect_features.py lists '
            'them'
        )
    return _to_feature(FeatureSource(name), outputs[0], shape)


class _HeadRun:
    """Records inputs and outputs of a head's modules in one forward."""

    def __init__(self, model: BaseModel) -> None:
        self.names = {m: n for n, m in model.named_modules() if n.startswith('decode_head.')}
        self.calls: list[tuple[str, nn.Module, Any, Any]] = []
        self.error: Exception | None = None
        self._inputs: dict[nn.Module, list] = {}

    def run(self, model: BaseModel, shape: Sequence[int]) -> None:
        image = next(model.parameters()).new_zeros((1, *shape))
        with without_traces(model), ExitStack() as stack:
            for module in self.names:
                handles = (
                    module.register_forward_pre_hook(self._begin),
                    module.register_forward_hook(self._end),
                )
                for handle in handles:
                    stack.callback(handle.remove)
            try:
                run_for_features(model, image, None, [])
            except Exception as error:
                # A later head may fail on an empty image; the needed one has run already.
                self.error = error

    def _begin(self, module: nn.Module, args: tuple) -> None:
        # the tensors are kept, so that identity tells which is which
        self._inputs.setdefault(module, []).append(args[0] if args else None)

    def _end(self, module: nn.Module, args: tuple, output: Any) -> None:
        self.calls.append((self.names[module], module, self._inputs[module].pop(), output))

    def count(self, name: str) -> int:
        return sum(call[0] == name for call in self.calls)


def _feature_before_classifier(model: BaseModel, role: str, shape: Sequence[int]) -> Feature:
    heads = model.decode_head if isinstance(model.decode_head, nn.ModuleList) else None
    last = heads[-1] if heads is not None else model.decode_head
    run = _HeadRun(model)
    run.run(model, shape)
    classified = [
        call
        for call in run.calls
        if call[0].rpartition('.')[2] == _CLASSIFIER
        and isinstance(call[2], Tensor)
        and call[2].dim() == 4
    ]
    if not classified:
        raise AutoFeatureError(
            f"the {role}'s {type(last).__name__} classified no feature map of an image of shape "
            f'{tuple(shape)}: {run.error!r}. Name the features (--features STUDENT=TEACHER); '
            'tools/inspect_features.py lists them'
        )
    name, _, feature, _ = classified[-1]
    source = _producer(run, name, feature)
    if (
        role == 'student'
        and heads is not None
        and not name.startswith(f'decode_head.{len(heads) - 1}.')
    ):
        # A cascade runs every head but the last twice in training: for its loss, then for the next
        # head (PointRend's last one classifies single points, so that an earlier one has the map).
        source = source._replace(run=0)
    return _to_feature(source, feature, shape)


def _producer(run: _HeadRun, classifier: str, feature: Tensor) -> FeatureSource:
    """Find the module whose output a tensor is; else say whose input it is, and in which run."""
    consumer, consumed = classifier, feature
    for name, module, given, output in run.calls:
        # In eval mode dropout changes nothing. In training the feature is what goes into it.
        if isinstance(module, _DropoutNd) and output is not None and output is feature:
            feature, consumer, consumed = given, name, given
            break
    found = []
    for order, (name, module, _, output) in enumerate(run.calls):
        if isinstance(module, _DropoutNd) or run.count(name) != 1:
            continue
        outputs = output if isinstance(output, (list, tuple)) else [output]
        for index, tensor in enumerate(outputs):
            if tensor is feature:
                is_tuple = outputs is output
                source = FeatureSource(name, index if is_tuple else None)
                # the outermost module; of several, what an in-place one made of it
                found.append((is_tuple, name.count('.'), -order, source))
    if found:
        return min(found, key=lambda item: item[:3])[-1]
    # DANet's dropout runs for three maps, of which one is classified in the end
    given = [call[2] for call in run.calls if call[0] == consumer]
    number = next(i for i, tensor in enumerate(given) if tensor is consumed)
    return FeatureSource(consumer, is_input=True, run=number if len(given) > 1 else None)


def _levels(model: BaseModel, path: str, role: str, shape: Sequence[int]) -> list[Feature]:
    """Give the maps that a module outputs, the neck say, from the finest to the coarsest."""
    return _levels_in(_first_output(model, path, shape), model, path, role, shape)


def _levels_in(
    output: Any, model: BaseModel, path: str, role: str, shape: Sequence[int]
) -> list[Feature]:
    found = list(maps_in(output))
    if not found:
        raise AutoFeatureError(
            f'the {path} of the {role} {type(model).__name__} gives something else than feature maps '
            'of shape (B, C, H, W). Name the features (--features STUDENT=TEACHER); '
            'tools/inspect_features.py lists them'
        )
    features = [_to_feature(FeatureSource(path, index), level, shape) for index, level in found]
    if role == 'student' and path == 'backbone':
        return _before_branches(model, features, shape)
    return sorted(features, key=lambda feature: feature.stride)


def _first_output(model: BaseModel, path: str, shape: Sequence[int]) -> Any:
    """Run a model as far as the end of a module; gives what that put out."""
    given: list = []

    def stop(module: nn.Module, args: tuple, output: Any) -> None:
        given.append(output)
        raise FeaturesComplete

    handle = model.get_submodule(path).register_forward_hook(stop)
    try:
        with without_traces(model):
            run_for_features(model, next(model.parameters()).new_zeros((1, *shape)), None, [])
    except FeaturesComplete:
        pass
    except Exception as error:
        raise RuntimeError(
            f'{type(model).__name__} failed on an empty image of shape {tuple(shape)} before '
            f'its {path} gave features: {error!r}'
        ) from error
    finally:
        handle.remove()
    return given[0]


def _before_branches(
    model: BaseModel, features: list[Feature], shape: Sequence[int]
) -> list[Feature]:
    """Give the student's features that are one map of an image in training, too.

    TridentNet's last stage has three branches in training and one otherwise. The last stage before
    them is taken instead.
    """
    backbone = model.backbone
    outputs: dict[str, Any] = {}
    with without_traces(model), ExitStack() as hooks:
        for name, module in backbone.named_children():
            hook = module.register_forward_hook(
                lambda module, args, output, name=name: outputs.update({name: output})
            )
            hooks.callback(hook.remove)
        backbone.train()
        for module in backbone.modules():
            if isinstance(module, _NormBase):  # its running statistics stay
                module.eval()
        try:
            output = backbone(next(model.parameters()).new_zeros((1, *shape)))
        except Exception:  # one that wants more than images: it is tried in the first iteration
            return sorted(features, key=lambda feature: feature.stride)
    numbers = {index: len(tensor) for index, tensor in maps_in(output)}
    kept = [f for f in features if numbers.get(f.source.index, 1) == 1]
    if not kept:
        single = [
            _to_feature(FeatureSource(f'backbone.{name}'), output, shape)
            for name, output in outputs.items()
            if isinstance(output, Tensor) and output.dim() == 4 and len(output) == 1
        ]
        if not single:
            raise AutoFeatureError(
                f'the backbone of the student {type(model).__name__} gives {max(numbers.values())} '
                'maps of one image in training, and the teacher one. Name a module that gives one '
                '(--features STUDENT=TEACHER); tools/inspect_features.py lists them'
            )
        kept = single[-1:]
    return sorted(kept, key=lambda feature: feature.stride)


def maps_in(
    output: Any, indices: tuple[int, ...] = ()
) -> Iterator[tuple[int | tuple[int, ...] | None, Tensor]]:
    """Yield the maps in an output, within tuples of tuples too, with their indices.

    Args:
        output (Any): What a module put out.
        indices (tuple[int, ...]): Where it lies in what holds it. Defaults to nothing.

    Yields:
        tuple[int | tuple[int, ...] | None, Tensor]: What ``FeatureSource`` has as index, and the map.
    """
    if isinstance(output, (list, tuple)):
        for i, item in enumerate(output):
            yield from maps_in(item, (*indices, i))
    elif isinstance(output, Tensor) and output.dim() == 4:
        yield (indices[0] if len(indices) == 1 else indices or None), output


def match_features(
    student: Sequence[Feature], teacher: Sequence[Feature]
) -> tuple[list[tuple[Feature, Feature]], list[str]]:
    """Pair the features that :func:`find_features` chose: levels by their strides.

    A single feature of the student is paired with the one of the nearest stride. So are the two of the
    nearest strides if no two have the same: the student's is resized.

    Args:
        student (Sequence[Feature]): The student's.
        teacher (Sequence[Feature]): The teacher's.

    Returns:
        tuple[list[tuple[Feature, Feature]], list[str]]: The pairs; and what is left without a
        partner, in words.
    """
    if len(student) == 1:
        # of features of one stride the last, which knows most
        partner = min(reversed(teacher), key=lambda feature: _ratio(student[0], feature))
        left = [f"the teacher's {f.source.text}" for f in teacher if f is not partner]
        return [(student[0], partner)], left
    pairs, free = [], list(teacher)
    for feature in student:
        partner = next((t for t in free if _same_stride(feature, t)), None)
        if partner is not None:
            free.remove(partner)
            pairs.append((feature, partner))
    if not pairs:
        pairs = [min(product(student, teacher), key=lambda pair: _ratio(*pair))]
        free.remove(pairs[0][1])
    taken = [feature for feature, _ in pairs]
    alone = [f"the student's {f.source.text}" for f in student if f not in taken]
    alone += [f"the teacher's {f.source.text}" for f in free]
    return pairs, alone


def _same_stride(a: Feature, b: Feature) -> bool:
    # maps of odd sizes are rounded one way or the other
    return _ratio(a, b) < 1.25


def _ratio(a: Feature, b: Feature) -> float:
    """How many times the one stride is the other."""
    return max(a.stride, b.stride) / min(a.stride, b.stride)
