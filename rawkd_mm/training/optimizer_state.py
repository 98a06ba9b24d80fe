"""The state of an optimizer whose parameters were grouped otherwise when it was saved."""

from mmengine.optim import OptimWrapper

__all__ = ['regroup_optimizer_state']

# What the state of a parameter scheduler holds for each group.
_VALUES_OF_GROUPS = ('base_values', '_last_value')


def regroup_optimizer_state(checkpoint: dict, optim_wrapper: OptimWrapper) -> bool:
    """Give the optimizer's state in a checkpoint the groups that the optimizer has now.

    Checkpoints that this package saved before its version 0.2 have the connectors in the groups of the
    student, or each parameter of them in a group. The order of the parameters is the same. Each new
    group goes on with the rates of the old one that its first parameter was in.

    Args:
        checkpoint (dict): With ``optimizer`` and ``param_schedulers`` as MMEngine saves them; changed
            in place.
        optim_wrapper (OptimWrapper): The optimizer that is to go on.

    Returns:
        bool: Whether anything was changed. A state of another number of parameters is left alone; the
        optimizer refuses it.
    """
    state = checkpoint.get('optimizer')
    if not isinstance(state, dict) or 'param_groups' not in state:
        return False
    old, new = state['param_groups'], optim_wrapper.optimizer.param_groups
    old_sizes, new_sizes = ([len(group['params']) for group in groups] for groups in (old, new))
    if old_sizes == new_sizes or sum(old_sizes) != sum(new_sizes):
        return False
    numbers = [number for group in old for number in group['params']]
    owners = [i for i, size in enumerate(old_sizes) for _ in range(size)]
    regrouped, sources, start = [], [], 0
    for size in new_sizes:
        sources.append(owners[start] if size else 0)
        regrouped.append({**old[sources[-1]], 'params': numbers[start : start + size]})
        start += size
    state['param_groups'] = regrouped
    has_base = optim_wrapper.base_param_settings is not None
    if not has_base:
        state.pop('base_param_settings', None)
    for scheduler in checkpoint.get('param_schedulers') or ():
        for key in _VALUES_OF_GROUPS:
            values = scheduler.get(key)
            if isinstance(values, list) and len(values) >= len(old):
                base = [values[len(old)] if len(values) > len(old) else values[0]]
                scheduler[key] = [values[i] for i in sources] + (base if has_base else [])
    return True
