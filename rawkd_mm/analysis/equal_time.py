"""How long a training lasts that may cost as much as another one."""

from .one_training import TrainingError


def equal_time_iterations(iters: int, own: float, other: float) -> int:
    """Give how many iterations of a student alone take as long as the distillation.

    Args:
        iters (int): Of both, when they were measured.
        own (float): What the student alone took for them, in any unit.
        other (float): What the distillation took, in the same unit.

    Returns:
        int: At least ``iters``.
    """
    return round(iters * max(1.0, other / own))


def stretch_schedule(cfg, iters: int) -> list[str]:
    """Give the options by which a config lasts longer, its schedule of the learning rate too.

    Args:
        cfg (Config): Counts in iterations.
        iters (int): How many it is to have.

    Returns:
        list[str]: 'KEY=VALUE' entries for --cfg-options.

    Raises:
        TrainingError: If the config counts in epochs.
    """
    if 'max_iters' not in cfg.train_cfg:
        raise TrainingError(
            f'train_cfg={dict(cfg.train_cfg)} counts in epochs, and processor time is no whole number '
            'of them. Take a config with an IterBasedTrainLoop'
        )
    factor = iters / cfg.train_cfg.max_iters
    options = [f'train_cfg.max_iters={iters}']
    interval = cfg.train_cfg.get('val_interval')
    if interval is not None and interval >= cfg.train_cfg.max_iters:  # validates at the end only
        options.append(f'train_cfg.val_interval={iters}')
    schedulers = cfg.get('param_scheduler') or []
    is_list = isinstance(schedulers, (list, tuple))
    for i, scheduler in enumerate(schedulers if is_list else [schedulers]):
        name = f'param_scheduler.{i}' if is_list else 'param_scheduler'
        if scheduler.get('by_epoch', True):
            raise TrainingError(
                f'{name}={dict(scheduler)} counts in epochs. Give it by_epoch=False, and iterations'
            )
        for key in ('begin', 'end', 'T_max', 'total_steps', 'milestones', 'step_size'):
            value = scheduler.get(key)
            if isinstance(value, (list, tuple)):
                text = ','.join(str(round(factor * number)) for number in value)
                options.append(f'{name}.{key}=[{text}]')
            elif value:
                options.append(f'{name}.{key}={round(factor * value)}')
    return options
