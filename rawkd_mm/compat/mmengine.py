"""MMEngine: the optimizer of a part of a model, and the batches of a loop that resumes."""

import functools
import importlib
import itertools
import sys

__all__ = ['let_models_split_their_parameters', 'take_batches_as_they_come']


def let_models_split_their_parameters() -> None:
    """Let a model say which part of it MMEngine's optimizer constructors are for.

    A constructor looks at the names and the attributes of the model that it is given: layer-wise
    decay counts the layers of ``model.backbone``, ``custom_keys`` match parts of names. A model with a
    method ``split_for_optimizer`` gives the part that the constructor gets and a dict of further
    parameters by name, which become a group of their own with the optimizer's own rate and decay.
    """
    from mmengine.optim.optimizer import builder

    original = builder.build_optim_wrapper
    if hasattr(original, '__wrapped__'):
        return

    @functools.wraps(original)
    def build_optim_wrapper(model, cfg):
        from mmengine.model import is_model_wrapper

        inner = model.module if is_model_wrapper(model) else model
        if not hasattr(type(inner), 'split_for_optimizer'):
            return original(model, cfg)
        part, others = inner.split_for_optimizer()
        wrapper = original(part, cfg)
        if others:
            _add_group(wrapper, others)
        return wrapper

    modules = ('mmengine.optim', 'mmengine.optim.optimizer', 'mmengine.runner.runner')
    for module in (*map(importlib.import_module, modules), builder):
        module.build_optim_wrapper = build_optim_wrapper
    strategy = sys.modules.get('mmengine._strategy.base')
    if strategy is not None:
        strategy.build_optim_wrapper = build_optim_wrapper


def _add_group(wrapper, parameters: dict) -> None:
    from mmengine.optim import OptimWrapperDict

    if isinstance(wrapper, OptimWrapperDict):
        raise TypeError(
            f'the optimizer constructor gives a {type(wrapper).__name__} of several optimizers, and it '
            "is not clear which one trains the distillation's connectors. Use a constructor that "
            'gives one OptimWrapper, or losses without connectors (align=None).'
        )
    group = dict(params=list(parameters.values()))
    # Constructors of layer-wise decay name the parameters, and torch wants all groups named or none.
    if any('param_names' in given for given in wrapper.optimizer.param_groups):
        group['param_names'] = list(parameters)
    wrapper.optimizer.add_param_group(group)


def take_batches_as_they_come(loop) -> None:
    """Stop a resumed IterBasedTrainLoop from skipping batches: its iterator begins with the next one.

    Of the iterations that were trained already, onedl-mmengine tells its iterator to skip the
    batches, while MMEngine 0.10.7 loads them all and throws them away.

    Args:
        loop (IterBasedTrainLoop): Its iterator must begin with the batch that comes next.
    """
    iterator = loop.dataloader_iterator
    if hasattr(iterator, 'skip_iter'):
        iterator.skip_iter = lambda num_iters: None
    else:
        loop.dataloader_iterator = itertools.chain(itertools.repeat(None, loop.iter), iterator)
