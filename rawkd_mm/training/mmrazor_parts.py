"""Parts of other packages that a config may put around a distillation, and which do not work there.

docs/mmrazor.md has the table of all parts of MMRazor.
"""

from collections.abc import Iterator
from typing import Any

from mmengine.config import Config
from mmengine.registry import (
    HOOKS,
    LOOPS,
    MODEL_WRAPPERS,
    MODELS,
    OPTIM_WRAPPER_CONSTRUCTORS,
    Registry,
)

from ..registry import find_type, type_name

__all__ = ['REFUSED', 'refuse_mmrazor_parts']

_SEARCH = 'It is for architecture search and pruning, and a distillation has no searchable model. '
_TRAIN = _SEARCH + "Train with MMEngine's EpochBasedTrainLoop or IterBasedTrainLoop."
_VALIDATE = _SEARCH + "Validate with MMEngine's ValLoop, or SingleTeacherDistillValLoop."
_QUANTIZE = 'It is for quantized models. Distil first, then quantize the student by its own config.'
_LEAVE = _SEARCH + 'Leave it out.'

# What does not work with FrozenTeacherDistill, and what to use instead.
REFUSED = {
    'DumpSubnetHook': _LEAVE,
    'DMCPSubnetHook': _LEAVE,
    'PruningStructureHook': _LEAVE,
    'ResourceInfoHook': _LEAVE,
    'DartsEpochBasedTrainLoop': _TRAIN,
    'DartsIterBasedTrainLoop': _TRAIN,
    'GreedySamplerTrainLoop': _TRAIN,
    'EvolutionSearchLoop': _TRAIN,
    'AutoSlimGreedySearchLoop': _TRAIN,
    'SlimmableValLoop': _VALIDATE,
    'SubnetValLoop': _VALIDATE,
    'ItePruneValLoop': _VALIDATE,
    'PTQLoop': _QUANTIZE,
    'QATEpochBasedLoop': _QUANTIZE,
    'LSQEpochBasedLoop': _QUANTIZE,
    'QATValLoop': _QUANTIZE,
    'SeparateOptimWrapperConstructor': (
        'It gives each part of a model an optimizer of its own, and a distillation has one for '
        'student and connectors. Use paramwise_cfg.'
    ),
    'OFDDistiller': (
        'It needs the algorithm OverhaulFeatureDistillation, which computes its margins. Use that '
        "(MMRazor's), or a FeatureDistiller with another loss."
    ),
    'DartsDDP': _LEAVE,
    'DSNASDDP': _LEAVE,
    'BigNASDDP': _LEAVE,
    'AutoSlimDDP': _LEAVE,
    'SlimmableNetworkDDP': _LEAVE,
    'DMCPDDP': _LEAVE,
    'GroupFisherDDP': _LEAVE,
    'MMArchitectureQuantDDP': _QUANTIZE,
}


# The same of MMDetection.
REFUSED_OF_MMDET = {
    'MeanTeacherHook': (
        'It would write the average of the student into the frozen teacher. For an average of the '
        "student's weights use MMEngine's EMAHook."
    ),
}
_PACKAGES = {'mmrazor': ('MMRazor', REFUSED), 'mmdet': ('MMDetection', REFUSED_OF_MMDET)}


def refuse_mmrazor_parts(cfg: Config) -> None:
    """Refuse a config that puts parts of MMRazor around a distillation that cannot work there.

    They would fail in the middle of the training, or at its end.

    Args:
        cfg (Config): Complete config.

    Raises:
        ValueError: If there is one; names it, where it is, and what to use instead.
    """
    model = cfg.get('model') or {}
    if type_name(model.get('type')) != 'FrozenTeacherDistill':
        return
    for where, registry, part in _parts(cfg):
        name = type_name(part.get('type')) if isinstance(part, dict) else ''
        if name not in {**REFUSED, **REFUSED_OF_MMDET}:
            continue
        package = _package(part, registry, cfg.get('default_scope'))
        owner, refused = _PACKAGES.get(package, ('', {}))
        if name in refused:
            raise ValueError(
                f"{where}: {owner}'s {name} does not work with FrozenTeacherDistill. {refused[name]}"
            )


def _parts(cfg: Config) -> Iterator[tuple[str, Registry, Any]]:
    """What a config has around its model, each with where it is and the registry that it is from."""
    yield 'model.distiller', MODELS, cfg.model.get('distiller')
    for i, hook in enumerate(cfg.get('custom_hooks') or ()):
        yield f'custom_hooks[{i}]', HOOKS, hook
    for name, hook in (cfg.get('default_hooks') or {}).items():
        yield f'default_hooks.{name}', HOOKS, hook
    for name in ('train_cfg', 'val_cfg', 'test_cfg'):
        yield name, LOOPS, cfg.get(name)
    constructor = (cfg.get('optim_wrapper') or {}).get('constructor')
    yield 'optim_wrapper.constructor', OPTIM_WRAPPER_CONSTRUCTORS, dict(type=constructor)
    yield 'model_wrapper_cfg', MODEL_WRAPPERS, cfg.get('model_wrapper_cfg')


def _package(part: dict, registry: Registry, scope: str | None) -> str:
    """The package that a part is from: another one may have something of the same name."""
    kind = find_type(part['type'], registry, part.get('_scope_', scope))
    return getattr(kind, '__module__', '').partition('.')[0]
