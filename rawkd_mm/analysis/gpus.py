"""Which GPUs there are, and which of them each of several trainings may use."""

import os

from .one_training import TrainingError


def share_gpus(jobs: int, gpus: int, available: list) -> list:
    """Give each of the jobs the GPUs that it may use; [] if there are none to share.

    Args:
        jobs (int): Trainings side by side.
        gpus (int): GPUs of each.
        available (list[str]): See :func:`visible_gpus`.

    Returns:
        list[list[str]]: For each of the jobs some of the available ones.

    Raises:
        TrainingError: If a training asks for more GPUs than there are, or two that do with several
            GPUs each would meet.
    """
    if not available:
        return []
    if jobs * gpus <= len(available):
        return [available[i * gpus : (i + 1) * gpus] for i in range(jobs)]
    if gpus == 1:
        return [[available[i % len(available)]] for i in range(jobs)]
    raise TrainingError(
        f'--jobs {jobs} with --gpus {gpus} needs {jobs * gpus} GPUs, there are {len(available)}: '
        f'{",".join(available)}'
    )


def visible_gpus() -> list:
    """Give the names of the GPUs.

    Returns:
        list[str]: As in CUDA_VISIBLE_DEVICES.
    """
    import torch

    count = torch.cuda.device_count()
    names = os.environ.get('CUDA_VISIBLE_DEVICES')
    return names.split(',')[:count] if names else [str(i) for i in range(count)]
