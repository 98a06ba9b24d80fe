"""``teacher_speed='auto'``: what the algorithm does around the search for the fastest settings."""

import json
import logging
import zlib
from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.dist import all_gather_object, broadcast_object_list
from mmengine.logging import MessageHub, MMLogger, print_log
from torch import Tensor, nn

from ..compat import is_autocast_enabled
from ..features import FeatureSource
from ..features.mmrazor_adapter import RazorSide
from ..teachers import SpeedResult, SpeedSettings
from ..training.device_name import device_name
from ..training.random_numbers import separate_random_numbers
from .running_statistics import kept_statistics

__all__ = [
    'STATE',
    'agree',
    'choice_to_state',
    'loss_gradient',
    'report',
    'state_to_choice',
    'training_length',
    'warn_of_another_device',
]

# The buffer of the distiller that holds the choice. Checkpoints and EMA copies have it by that.
STATE = 'teacher_speed'
# Beside the config in the work dir.
FILE = 'teacher_speed.json'
_PRECISIONS = (None, 'fp32', 'bf16', 'fp16')
_INSTEAD = 'give teacher_precision, teacher_channels_last and teacher_compile'


def choice_to_state(settings: SpeedSettings | None, device: str = '') -> Tensor:
    """Write a choice as numbers, which every way of saving and averaging weights keeps.

    Args:
        settings (SpeedSettings, optional): None if nothing is chosen yet.
        device (str): The name of the device that it was measured on.

    Returns:
        Tensor: Four integers: precision, channels last, graphs, and a checksum of the name.
    """
    if settings is None:
        return torch.full((4,), -1, dtype=torch.int64)
    precision, channels_last, graphs = settings
    numbers = [_PRECISIONS.index(precision), int(channels_last), int(graphs is not False)]
    return torch.tensor([*numbers, zlib.crc32(device.encode())], dtype=torch.int64)


def state_to_choice(state: Tensor) -> SpeedSettings | None:
    """Read what :func:`choice_to_state` has written; None if nothing is chosen."""
    precision, channels_last, graphs, _ = state.tolist()
    if not 0 <= precision < len(_PRECISIONS):
        return None
    return SpeedSettings(_PRECISIONS[precision], bool(channels_last), bool(graphs))


def warn_of_another_device(state: Tensor, device: torch.device) -> None:
    """Warn if a choice was measured on a device of another name than this one.

    Args:
        state (Tensor): What :func:`choice_to_state` has written.
        device (torch.device): Where the training goes on.
    """
    name = device_name(device)
    if int(state[3]) != zlib.crc32(name.encode()):
        print_log(
            'teacher_speed: the settings in the checkpoint were measured on another device than '
            f'{name}. They stay, so that the training goes on as it began. If they are slow or fail, '
            f'{_INSTEAD}.',
            'current',
            logging.WARNING,
        )


def training_length(iteration: int) -> int | None:
    """Give how many iterations MMEngine's Runner has before it; None if it does not say.

    Args:
        iteration (int): How many it has made.
    """
    total = MessageHub.get_current_instance().get_info('max_iters')
    # One that has ended says so too, in a plain loop after it.
    return total - iteration if total is not None and total - iteration > 1 else None


def loss_gradient(
    compare: Callable[[dict, dict], dict[str, Tensor]],
    student: dict[FeatureSource, Tensor],
    razor: RazorSide,
    distiller: nn.Module,
    device: torch.device,
    number: int,
) -> Callable[[dict[FeatureSource, Tensor]], list[Tensor]]:
    """Give a function that computes the gradient of the losses for other features of the teacher.

    It computes in float32, also where the student is under autocast, and leaves nothing behind: no
    gradient of a parameter, no running statistics, no random numbers.

    Args:
        compare (Callable): Gives the losses of the student's and the teacher's features, by name.
        student (dict[FeatureSource, Tensor]): The student's features.
        razor (RazorSide): What MMRazor's recorders have of the student.
        distiller (nn.Module): Has connectors and losses.
        device (torch.device): Where all of it is.
        number (int): Of the random numbers that the comparison draws.

    Returns:
        Callable: Takes the teacher's features, gives the gradient for each feature of the student that
        is compared.
    """
    is_low = is_autocast_enabled(device.type)

    def full(value: Tensor) -> Tensor:
        return value.float() if is_low and value.is_floating_point() else value

    def gradient(teacher: dict[FeatureSource, Tensor]) -> list[Tensor]:
        leaves: list[Tensor] = []
        recorded: dict[int, Tensor] = {}

        def leaf(value: Tensor) -> Tensor:
            if not value.is_floating_point():
                return value
            leaves.append(full(value.detach()).requires_grad_())
            recorded[id(leaves[-1])] = value
            return leaves[-1]

        # Only the first process is here: a SyncBN would wait for the others.
        synchronised = [
            m for m in distiller.modules() if isinstance(m, nn.SyncBatchNorm) and m.training
        ]
        features = {source: leaf(value) for source, value in student.items()}
        razor.convert(leaf)
        try:
            for module in synchronised:
                module.eval()
            with (
                separate_random_numbers(number, device),
                kept_statistics(distiller),
                torch.autocast(device.type, enabled=False),
                torch.enable_grad(),
            ):
                losses = compare(features, {s: full(value) for s, value in teacher.items()})
                total = sum(value.sum() for name, value in losses.items() if 'loss' in name)
                if not isinstance(total, Tensor) or not total.requires_grad:
                    return []
                found = torch.autograd.grad(total, leaves, allow_unused=True)
                return [g for g in found if g is not None]
        finally:
            razor.convert(lambda value: recorded.get(id(value), value))
            for module in synchronised:
                module.train()

    return gradient


def agree(settings: SpeedSettings | None, device: torch.device) -> tuple[SpeedSettings, str]:
    """Give all processes what the first has chosen, and warn of other devices.

    Args:
        settings (SpeedSettings, optional): The first process's; not used of the others.
        device (torch.device): Where this process computes.

    Returns:
        tuple[SpeedSettings, str]: The settings, and the name of the first process's device.
    """
    given = [settings]
    broadcast_object_list(given)
    names = all_gather_object(device_name(device))
    others = [f'rank {rank} has {name}' for rank, name in enumerate(names) if name != names[0]]
    if others:
        print_log(
            f'teacher_speed was measured by rank 0 on {names[0]} and holds for all ranks, and '
            f'{", ".join(others)}. If the settings are slow or fail there, {_INSTEAD}.',
            'current',
            logging.WARNING,
        )
    return SpeedSettings(*given[0]), names[0]


def report(result: SpeedResult) -> None:
    """Log the table of a search and, where the log is a file, write all of it beside the config.

    Args:
        result (SpeedResult): Of the search.
    """
    print_log(result.table, 'current')
    folder = _work_dir()
    if folder is not None:
        text = json.dumps(result.as_dict, indent=2) + '\n'
        (folder / FILE).write_text(text, encoding='utf-8')


def _work_dir() -> Path | None:
    """Give the folder of the training, by its log: WORK_DIR/TIME/TIME.log of MMEngine's Runner."""
    for handler in MMLogger.get_current_instance().handlers:
        if isinstance(handler, logging.FileHandler):
            log = Path(handler.baseFilename)
            return log.parent.parent if log.parent.name == log.stem else log.parent
    return None
