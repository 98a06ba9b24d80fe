"""Finds what sets the scale of a feature, and which layers read it: without names of classes.

A model runs once while every PyTorch function that it calls is seen. The output of a norm with weight
and bias begins a *trail*: it is multiplied if weight and bias are. A function that is given maps of a
trail is run again with these maps multiplied, and its output belongs to the trail if it is multiplied,
too. So ReLU, pooling, resizing, dropout in eval mode and whatever else is positively homogeneous is
found by what it does. A convolution or linear layer that is given a map of the trail ends it: its weight
can be divided. Anything else is a reason why the scale of the trail cannot change.
"""

import inspect
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_flatten, tree_map_only

from ..features import FeatureCapture, FeatureSource
from ..training import UsageError

__all__ = ['FeatureScale', 'find_feature_scale']

# Functions whose output is multiplied if 'weight' and 'bias' are.
_NORMS = {
    getattr(F, name)
    for name in ('batch_norm', 'instance_norm', 'group_norm', 'layer_norm', 'rms_norm')
    if hasattr(F, name)
}
# Functions of an input and a weight that are linear in both; what they add does not depend on either.
_LINEAR = {
    F.linear,
    *(getattr(F, f'conv{t}{d}d') for t in ('', '_transpose') for d in (1, 2, 3)),
}
# What maps are multiplied by to see what a function does. At one of them a function shows that is cut
# off, as ReLU6 is.
_FACTORS = (1e-6, 1e6)
# Two results are the same to the rounding of float64.
_TOLERANCE = 1e-9


class FeatureScale(NamedTuple):
    """What to change for a feature of another scale.

    Attributes:
        norm (list[str]): Names in ``model.state_dict()`` of the weight and bias that set the scale.
        readers (list[str]): Names of the weights of the layers that read the feature.
    """

    norm: list[str]
    readers: list[str]


def find_feature_scale(
    model: nn.Module, source: FeatureSource, run: Callable[[], None]
) -> tuple[FeatureScale, Tensor]:
    """Find what sets the scale of a feature and what reads it.

    Args:
        model (nn.Module): In eval mode and in float64; its modules must not work in place.
        source (FeatureSource): The feature.
        run (Callable): Runs the model once, on images whose features are not all 0.

    Returns:
        tuple[FeatureScale, Tensor]: The names, and the feature of the run.

    Raises:
        UsageError: If the scale cannot be changed without changing the function of the model: says which
            call is in the way.
    """
    capture = FeatureCapture((source,))
    trace = _Trace(model)
    failure = None
    try:
        with torch.no_grad(), capture.record(model) as recording:
            try:
                with trace:
                    run()
            except Exception as error:
                # a head behind the feature may fail: what the feature comes from is known all the same
                failure = error
                if not recording.is_complete:
                    raise RuntimeError(f'the model failed in float64: {error!r}') from error
        feature = capture.features(recording, 'teacher')[source]
    except (ValueError, RuntimeError, TypeError, IndexError) as error:
        raise UsageError(f'--feature {source.text}: {error}') from error
    scale = trace.scale_of(feature, source.text)
    if failure is not None:
        raise UsageError(
            f'--feature {source.text}: the model failed in float64 behind it, so that it is not known '
            f'what reads it: {failure!r}'
        ) from failure
    return scale, feature


@dataclass(eq=False)
class _Trail:
    """The maps whose scale one norm sets."""

    norm: list[str]
    where: str
    readers: dict[str, None] = field(default_factory=dict)
    obstacles: dict[str, None] = field(default_factory=dict)


class _Trace(TorchFunctionMode):
    """Sees every function that a model calls, and follows the trails of all norms."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model
        self._names: dict[int, list[str]] = {}
        for name, value in model.state_dict(keep_vars=True).items():
            self._names.setdefault(id(value), []).append(name)
        self._trails: dict[int, _Trail] = {}
        # why a tensor is on no trail, and the tensor itself, so that no other one gets its id
        self._made: dict[int, tuple[Tensor, str]] = {}
        self._uses: dict[int, int] = {}
        self._modules: list[str] = []
        self._calls = 0
        self._hooks = ExitStack()

    def __enter__(self) -> '_Trace':
        for name, module in self._model.named_modules():
            for handle in (
                module.register_forward_pre_hook(partial(self._begin, name), with_kwargs=True),
                module.register_forward_hook(partial(self._end, name), with_kwargs=True),
            ):
                self._hooks.callback(handle.remove)
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._hooks.close()

    def _begin(self, name: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self._modules.append(name)
        self._calls = 0

    def _end(self, name: str, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        self._modules.pop()
        if next(module.children(), None) is not None or self._calls:
            return
        # compiled operators of other packages are no functions of PyTorch
        outputs = {id(x) for x in _tensors(output)}
        for trail in {self._trails.get(id(x)) for x in _tensors((args, kwargs))} - {None}:
            if not any(self._trails.get(i) is trail for i in outputs):
                trail.obstacles[f'{name!r} ({type(module).__name__}) reads it by other means'] = (
                    None
                )

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = _tensors((args, kwargs))
        known = {self._trails[id(x)]: None for x in given if id(x) in self._trails}
        self._calls += bool(known)
        where = self._where(func)
        norm = self._norm_of(func, args, kwargs)
        reader = self._reader_of(func, args, kwargs, given)
        effects = []
        if known and reader is None:
            effects = self._effects(func, args, kwargs)
        versions = [x._version for x in given]
        output = func(*args, **kwargs)
        outputs = _tensors(output)
        if outputs:
            self._count_uses(given)
        written = [x for x, v in zip(given, versions) if x._version != v]
        if any(all(x is not y for y in outputs) for x in written):
            self._block(known, f'{where} writes it into another tensor')

        trail, reason = None, self._reason(where, given)
        if reader is not None:
            for one in known:
                one.readers.update(dict.fromkeys(reader))
        elif len(known) > 1 and not all(effect == 'same' for effect in effects):
            reason = f'{where} combines it with maps of other norms'
            self._block(known, reason)
        elif known and 'other' in effects:
            reason = f'{where} does not let a factor through'
            self._block(known, reason)
        elif known:
            trail = next(iter(known))
        for i, x in enumerate(outputs):
            own = trail if trail is not None and effects[i : i + 1] == ['scales'] else None
            self._set(x, own, reason)
        if norm is not None:
            for x in outputs:
                self._set(x, _Trail(norm, where), reason)
        return output

    def _reason(self, where: str, given: Sequence[Tensor]) -> str:
        """Tell why what a function gives is on no trail: because of its input, if that is all it has."""
        if len(given) == 1 and id(given[0]) in self._made:
            return self._made[id(given[0])][1]
        return f'{where} gives it'

    def _where(self, func: Callable) -> str:
        name = getattr(func, '__name__', None) or str(func)
        if name == '__get__':
            name = (resolve_name(func) or name).removesuffix('.__get__').rpartition('.')[2]
        module = self._modules[-1] if self._modules else ''
        kind = type(self._model.get_submodule(module)).__name__
        return f'{name} in {module!r} ({kind})' if module else f'{name} in {kind}'

    def _norm_of(self, func: Callable, args: tuple, kwargs: dict) -> list[str] | None:
        """Give the names of the weight and bias if this is a norm with a weight of the model."""
        if func not in _NORMS:
            return None
        bound = inspect.signature(func).bind(*args, **kwargs).arguments
        parts = [bound[key] for key in ('weight', 'bias') if bound.get(key) is not None]
        if bound.get('weight') is None or any(id(x) not in self._names for x in parts):
            return None
        return [name for x in parts for name in self._names[id(x)]]

    def _reader_of(
        self, func: Callable, args: tuple, kwargs: dict, given: Sequence[Tensor]
    ) -> list[str] | None:
        """Give the names of the weight if this is a linear layer of the model that reads a trail."""
        if func not in _LINEAR:
            return None
        inputs, weight = (
            kwargs.get(key, args[i] if len(args) > i else None)
            for i, key in enumerate(('input', 'weight'))
        )
        others = [x for x in given if x is not inputs]
        if id(inputs) not in self._trails or any(id(x) in self._trails for x in others):
            return None
        return self._names.get(id(weight))

    def _effects(self, func: Callable, args: tuple, kwargs: dict) -> list[str]:
        """Find what becomes of each output if the maps of trails are multiplied.

        Returns:
            list[str]: 'scales', 'same' or 'other' for each tensor; without tensors, ['other'] if a
            number or an array depends on the scale.
        """
        state = torch.get_rng_state()
        results = []
        try:
            for factor in (1.0, *_FACTORS):
                torch.set_rng_state(state)
                results.append(self._call_scaled(func, args, kwargs, factor))
        except Exception:  # (what cannot be repeated is not known to be harmless)
            return ['other']
        finally:
            torch.set_rng_state(state)
        reference, *scaled = (_tensors(x) for x in results)
        if not reference:
            return ['other'] if any(_is_another(results[0], x) for x in results[1:]) else []
        if any(len(x) != len(reference) for x in scaled):
            return ['other'] * len(reference)
        return [
            next(
                (
                    effect
                    for effect, power in (('scales', 1), ('same', 0))
                    if all(_is_multiple(y[i], x, f**power) for y, f in zip(scaled, _FACTORS))
                ),
                'other',
            )
            for i, x in enumerate(reference)
        ]

    def _call_scaled(self, func: Callable, args: tuple, kwargs: dict, factor: float) -> Any:
        """Call a function on copies."""

        def copy(x: Tensor) -> Tensor:
            return x * factor if id(x) in self._trails else x.clone()

        args, kwargs = tree_map_only(Tensor, copy, (args, kwargs))
        return func(*args, **kwargs)

    def _count_uses(self, given: Sequence[Tensor]) -> None:
        for i in {id(x) for x in given} & set(self._names):
            self._uses[i] = self._uses.get(i, 0) + 1

    @staticmethod
    def _block(trails: Sequence[_Trail], obstacle: str) -> None:
        for trail in trails:
            trail.obstacles[obstacle] = None

    def _set(self, tensor: Tensor, trail: _Trail | None, reason: str) -> None:
        if id(tensor) in self._names:
            return
        self._made[id(tensor)] = (tensor, reason)
        self._trails.pop(id(tensor), None)
        if trail is not None:
            self._trails[id(tensor)] = trail

    def scale_of(self, feature: Tensor, name: str) -> FeatureScale:
        """Give what sets the scale of a feature; see :func:`find_feature_scale` for the errors."""
        trail = self._trails.get(id(feature))
        if trail is None:
            _, reason = self._made.get(id(feature), (None, 'no function of PyTorch gives it'))
            raise UsageError(
                f'--feature {name} has no norm that sets its scale: {reason}. Expected a BatchNorm, or '
                'another norm with weight and bias, and behind it nothing but what is multiplied if its '
                'input is, such as ReLU. A feature before a classifier, such as decode_head.bottleneck, '
                'is one'
            )
        obstacles = list(trail.obstacles)
        if not trail.readers:
            obstacles.append('no convolution or linear layer reads it')
        counts = {n: c for i, c in self._uses.items() for n in self._names[i]}
        often = [n for n in trail.norm if counts[n] > 1]
        if often:
            obstacles.append(f'{often[0]!r} is used {counts[often[0]]} times in one forward')
        obstacles += [
            f'{n!r}, which reads it, is used {counts[n]} times in one forward'
            for n in trail.readers
            if counts[n] > 1
        ]
        if obstacles:
            raise UsageError(
                f'--feature {name}: its scale cannot change without a change of what the model '
                f'computes: {"; ".join(obstacles)}. Expected convolutions and linear layers as the only '
                'readers, each of which runs once. Choose another feature; tools/inspect_features.py '
                'lists them'
            )
        return FeatureScale(trail.norm, list(trail.readers))


def _tensors(value: Any) -> list[Tensor]:
    return [x for x in tree_flatten(value)[0] if isinstance(x, Tensor)]


def _is_multiple(value: Tensor, reference: Tensor, factor: float) -> bool:
    if value.shape != reference.shape or value.dtype != reference.dtype:
        return False
    if not value.is_floating_point():
        return torch.equal(value, reference)
    expected = reference * factor
    if not expected.numel():
        return True
    return bool((value - expected).abs().max() <= _TOLERANCE * expected.abs().max())


def _is_another(a: Any, b: Any) -> bool:
    """Whether numbers differ; what is no number (a shape, a device) does not count."""
    kinds = (bool, float)
    if isinstance(a, kinds):
        return a != b
    if isinstance(a, (list, tuple)):
        return any(_is_another(x, y) for x, y in zip(a, b))
    return hasattr(a, '__array__') and bool((a != b).any())
