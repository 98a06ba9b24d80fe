"""Finding the features of a model that are worth distilling, by running it."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

from mmengine.model import BaseModel
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from .dry_run import dry_run, run_for_features
from .probe import image_channels, without_traces
from .source import FeatureSource

__all__ = [
    'AutoFeatureError',
    'Feature',
    'find_classifier',
    'find_features',
    'match_features',
    'measure_feature',
]

# What every head of mmseg calls the convolution that gives each position its class.
_CLASSIFIER = 'conv_seg'

# Heads of mmseg that have no such convolution, and what they do instead.
_WITHOUT_CLASSIFIER = {
    'Mask2FormerHead': 'it classifies queries, each with a mask, and not the positions of a map',
    'MaskFormerHead': 'it classifies queries, each with a mask, and not the positions of a map',
    'SegmenterMaskTransformerHead': 'it compares embeddings of patches with embeddings of classes; '
    'both are sequences of shape (B, N, C), and no feature map is classified',
    'SideAdapterCLIPHead': 'it compares mask proposals with embeddings of the names of the classes',
    'VPDDepthHead': 'it estimates depth and has no classes',
}


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
    """Choose the features to distil; the kind of the model decides.

    * A segmentor of mmseg (``EncoderDecoder``): the last feature before the classifier, found by
      running the head.
    * A detector of mmdet: every level of the neck.
    * A teacher of another library (:class:`rawkd_mm.teachers.ExternalTeacher`): all that it gives.

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
    from mmseg.models import EncoderDecoder

    shape = shape or default_shape(model)
    head = type(getattr(model, 'decode_head', None)).__name__
    if isinstance(model, EncoderDecoder) or head in _WITHOUT_CLASSIFIER:
        return [_feature_before_classifier(model, role, shape)]
    if getattr(model, 'gives_features', False):
        return _levels(model, 'features', role, shape)
    if getattr(model, 'neck', None) is not None:
        return _levels(model, 'neck', role, shape)
    raise AutoFeatureError(
        f'no feature of the {role} {type(model).__name__} can be chosen automatically: it is '
        "neither one of mmseg's EncoderDecoder models nor a detector with a neck. Name the "
        'features (--features STUDENT=TEACHER); tools/inspect_features.py lists them'
    )


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
        raise _no_classifier(kind, role)
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
    if not any(name.rpartition('.')[2] == _CLASSIFIER for name in run.names.values()):
        raise _no_classifier(type(last).__name__, role)
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
    if (
        role == 'student'
        and heads is not None
        and not name.startswith(f'decode_head.{len(heads) - 1}.')
    ):
        raise AutoFeatureError(
            f"the student's {type(last).__name__} classifies single points, and the last map that is "
            f'classified is that of {name!r}. {type(model).__name__} runs that head twice in each '
            'training iteration, so that it is not clear which feature is meant. Name a feature '
            'before the heads, such as --features neck[0]=TEACHER or backbone[3]=TEACHER. '
            '(As a teacher it runs once, and works.)'
        )
    return _to_feature(_producer(run, name, feature, role, type(last).__name__), feature, shape)


def _producer(
    run: _HeadRun, classifier: str, feature: Tensor, role: str, head: str
) -> FeatureSource:
    """Find the module whose output a tensor is; else say whose input it is."""
    consumer = classifier
    for name, module, given, output in run.calls:
        # In eval mode dropout changes nothing. In training the feature is what goes into it.
        if isinstance(module, _DropoutNd) and output is not None and output is feature:
            feature, consumer = given, name
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
    if run.count(consumer) == 1:
        return FeatureSource(consumer, is_input=True)
    if role == 'teacher':
        # a teacher's dropout is never active
        return FeatureSource(classifier, is_input=True)
    raise AutoFeatureError(
        f"the student's {head} classifies what no module outputs, behind {consumer!r}, which runs "
        f'{run.count(consumer)} times, so that the feature cannot be told from others. Set '
        'dropout_ratio=0 in the head, or name the features (--features STUDENT=TEACHER); '
        'tools/inspect_features.py lists them'
    )


def _no_classifier(head: str, role: str) -> AutoFeatureError:
    reason = _WITHOUT_CLASSIFIER.get(head, f'it has no convolution named {_CLASSIFIER!r}')
    return AutoFeatureError(
        f"the {role}'s {head} has no last feature map before a classifier: {reason}. Name the "
        'features (--features STUDENT=TEACHER); tools/inspect_features.py lists them'
    )


def _levels(model: BaseModel, path: str, role: str, shape: Sequence[int]) -> list[Feature]:
    """Give the maps that a module outputs, the neck say, from the finest to the coarsest."""
    given: list = []
    module = model.get_submodule(path)
    handle = module.register_forward_hook(lambda module, args, output: given.append(output))
    try:
        with without_traces(model):
            run_for_features(model, next(model.parameters()).new_zeros((1, *shape)), None, [])
    except Exception as error:
        # A head behind the neck may want what an empty image lacks.
        if not given:
            raise RuntimeError(
                f'{type(model).__name__} failed on an empty image of shape {tuple(shape)} before '
                f'its {path} gave features: {error!r}'
            ) from error
    finally:
        handle.remove()
    output = given[0]
    is_tuple = isinstance(output, (list, tuple))
    levels = list(output) if is_tuple else [output]
    if not all(isinstance(level, Tensor) and level.dim() == 4 for level in levels):
        raise AutoFeatureError(
            f'the {path} of the {role} {type(model).__name__} gives something else than feature maps '
            'of shape (B, C, H, W). Name the features (--features STUDENT=TEACHER); '
            'tools/inspect_features.py lists them'
        )
    features = [
        _to_feature(FeatureSource(path, i if is_tuple else None), level, shape)
        for i, level in enumerate(levels)
    ]
    return sorted(features, key=lambda feature: feature.stride)


def match_features(
    student: Sequence[Feature], teacher: Sequence[Feature]
) -> tuple[list[tuple[Feature, Feature]], list[str]]:
    """Pair the features that :func:`find_features` chose: levels by their strides.

    A single feature of the student is paired with the one of the nearest stride.

    Args:
        student (Sequence[Feature]): The student's.
        teacher (Sequence[Feature]): The teacher's.

    Returns:
        tuple[list[tuple[Feature, Feature]], list[str]]: The pairs; and what is left without a
        partner, in words.

    Raises:
        AutoFeatureError: If no level has a partner of its stride.
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
        strides = [', '.join(f'{f.stride:g}' for f in features) for features in (student, teacher)]
        raise AutoFeatureError(
            f'the student has features of strides {strides[0]}, the teacher of {strides[1]}, and '
            'none agree. Name the features (--features STUDENT=TEACHER)'
        )
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
