"""Listing the feature maps of a model: which modules produce them, and in what time."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from .choosing import Feature, default_shape, maps_in
from .dry_run import run_for_features
from .probe import without_traces
from .source import FeatureSource
from .tokens import GridSearch

__all__ = ['ListedFeature', 'list_features', 'partners']

# How many maps a sequence of several may have; Deformable DETR has 4, DINO 5.
_MOST_LEVELS = 8


class ListedFeature(NamedTuple):
    """A feature map, or a sequence that is none, and how it came about.

    Attributes:
        feature (Feature): Its source, shape and stride. Of a sequence without a grid (queries, classes,
            words) the shape is that of the tensor without the batch, (N, C) or (layers, N, C), and the
            stride is NaN.
        kind (str): Class of the module.
        runs (int): How often the module ran; of several runs one is chosen, ``'[run=0]'``.
        share (float): The module's share of the time of the forward, its submodules' included.
    """

    feature: Feature
    kind: str
    runs: int
    share: float

    @property
    def part(self) -> str:
        """The part of the model that it belongs to: backbone, neck, decode_head..."""
        return self.feature.source.module.partition('.')[0]

    @property
    def is_map(self) -> bool:
        """Whether it can be distilled: a sequence without a grid cannot."""
        return not math.isnan(self.feature.stride)


class _Watch:
    """Times modules and keeps the shapes of what they output."""

    def __init__(self, model: BaseModel, shape: Sequence[int]) -> None:
        self.model = model
        self.image = next(model.parameters()).new_zeros((1, *shape))
        self.shapes: dict[str, list[tuple[int | tuple[int, ...] | None, tuple]]] = {}
        # of modules that gave a sequence, and which grids there are for it
        self.sequences: dict[str, tuple] = {}
        # of these, and of sequences within tuples: index and shape without the batch
        self.queries: dict[str, list[tuple[int | tuple[int, ...] | None, tuple]]] = {}
        self.order: dict[str, int] = {}
        self.runs: dict[str, int] = {}
        self.seconds: dict[str, float] = {}
        self.total = 0.0
        self.error: Exception | None = None
        self._begun: list[float] = []

    def run(self) -> None:
        """Run the model once."""
        with without_traces(self.model), ExitStack() as stack:
            for name, module in self.model.named_modules():
                if name:
                    end = partial(self._end, name)
                    stack.callback(module.register_forward_pre_hook(self._begin).remove)
                    stack.callback(module.register_forward_hook(end).remove)
            begun = self._now()
            try:
                run_for_features(self.model, self.image, None, [])
            except Exception as error:
                # a head that wants more than an image: what ran before it is listed
                self.error = error
                self._begun.clear()
            self.total += self._now() - begun

    def _now(self) -> float:
        if self.image.is_cuda:
            torch.cuda.synchronize(self.image.device)
        return time.perf_counter()

    def _begin(self, module: nn.Module, args: tuple) -> None:
        self._begun.append(self._now())

    def _end(self, name: str, module: nn.Module, args: tuple, output: Any) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - self._begun.pop()
        self.runs[name] = self.runs.get(name, 0) + 1
        self.order[name] = sum(self.runs.values())
        # one image: of regions there are more
        self.shapes[name] = [(i, tuple(t.shape[1:])) for i, t in maps_in(output) if len(t) == 1]
        self.queries[name] = [*_sequences_in(output)]
        if isinstance(output, Tensor) and output.dim() == 3:
            self.sequences[name] = tuple(output.shape)

    def find_tokens(self) -> dict[str, list[Feature]]:
        """Run the model once more and find the grids of the sequences."""
        sources = [FeatureSource(name, is_tokens=True) for name in self.sequences]
        shape = tuple(self.image.shape[1:])
        search = GridSearch(sources, shape)
        with without_traces(self.model), search.watch(self.model):
            try:
                run_for_features(self.model, self.image, None, [])
            except Exception as error:
                self.error = error
        return {s.module: self._levels(search, s, shape) for s in sources}

    def _levels(self, search: GridSearch, source: FeatureSource, shape: tuple) -> list[Feature]:
        tokens = torch.empty(self.sequences[source.module], device='meta')
        levels = [source, *(source._replace(level=i) for i in range(_MOST_LEVELS))]
        found = []
        for level in levels:
            try:
                grid, sizes = search.find(level, tokens)
            except ValueError:  # queries, or no such level
                continue
            made = grid.to_map(tokens, sizes, level)
            found.append(Feature(level, tuple(made.shape[1:]), shape[1] / made.shape[2]))
        return found


def _sequences_in(
    output: Any, indices: tuple[int, ...] = ()
) -> Iterator[tuple[int | tuple[int, ...] | None, tuple[int, ...]]]:
    """Yield the sequences of one image in an output, with their indices and shapes without the batch.

    These are of shape (1, N, C), or (layers, 1, N, C) as DETR's decoder stacks them.
    """
    if isinstance(output, (list, tuple)):
        for i, item in enumerate(output):
            yield from _sequences_in(item, (*indices, i))
    elif isinstance(output, Tensor) and output.dtype.is_floating_point:
        index = indices[0] if len(indices) == 1 else indices or None
        if output.dim() == 3 and len(output) == 1:
            yield index, tuple(output.shape[1:])
        elif output.dim() == 4 and len(output) > 1 and output.shape[1] == 1:
            yield index, (len(output), *output.shape[2:])


def list_features(
    model: BaseModel,
    shape: Sequence[int] | None = None,
    depth: int | None = None,
    repeats: int = 3,
) -> list[ListedFeature]:
    """List the modules that produce feature maps, in the order in which they end.

    Sequences of tokens are listed as the maps that ``':tokens'`` makes of them, and sequences without a
    grid, such as queries, as what they are.

    Args:
        model (BaseModel): The model; runs in eval mode.
        shape (Sequence[int], optional): Channels, height and width of the image. Defaults to
            256x256 pixels of as many channels as the model takes.
        depth (int, optional): The longest path that is listed, in names: 2 for
            ``'backbone.layer1'``. Defaults to None, all.
        repeats (int): How many forwards are timed, behind one that is not. Defaults to 3.

    Returns:
        list[ListedFeature]: Maps and sequences. A module whose output is a tuple has an entry for each.

    Raises:
        RuntimeError: If the model produces no feature map of such an image.
    """
    shape = shape or default_shape(model)
    _Watch(model, shape).run()  # the first forward is slower than the others
    watch = _Watch(model, shape)
    for _ in range(repeats):
        watch.run()
    tokens = watch.find_tokens()
    found = []
    for name in sorted(watch.order, key=watch.order.get):
        if depth is not None and name.count('.') >= depth:
            continue
        kind = type(model.get_submodule(name)).__name__
        runs = watch.runs[name] // repeats
        share = watch.seconds[name] / watch.total
        features = [
            Feature(FeatureSource(name, index), size, shape[1] / size[1])
            for index, size in watch.shapes[name]
        ]
        features += tokens.get(name, [])
        if not features:
            features = [
                Feature(FeatureSource(name, index), size, math.nan)
                for index, size in watch.queries[name]
            ]
        found += [ListedFeature(feature, kind, runs, share) for feature in features]
    if not any(listed.is_map for listed in found):
        raise RuntimeError(
            f'{type(model).__name__} produced no feature map of an image of shape {tuple(shape)}: '
            f'{watch.error!r}'
        )
    return found


def partners(
    student: Sequence[ListedFeature], teacher: Sequence[ListedFeature]
) -> dict[FeatureSource, FeatureSource]:
    """Find which student feature matches which teacher feature.

    These are the last features of both models with the same part (backbone, neck, a head) and the
    same stride. Modules that run more than once, dropout and the classifier are skipped, and tokens
    where there is a map.

    Args:
        student (Sequence[ListedFeature]): The student's.
        teacher (Sequence[ListedFeature]): The teacher's.

    Returns:
        dict[FeatureSource, FeatureSource]: Student's to teacher's.
    """

    def last(features: Sequence[ListedFeature]) -> dict[tuple, FeatureSource]:
        result = {}
        for listed in features:
            if not listed.is_map:
                continue
            source = listed.feature.source
            counts = '.' in source.module or source.module == 'neck'
            counts &= 'Dropout' not in listed.kind and not source.module.endswith('conv_seg')
            key = listed.part, round(listed.feature.stride, 1)
            if source.is_tokens and key in result and not result[key].is_tokens:
                continue
            if listed.runs == 1 and counts:
                result[key] = source
        return result

    of_student, of_teacher = last(student), last(teacher)
    return {of_student[key]: of_teacher[key] for key in of_student if key in of_teacher}
