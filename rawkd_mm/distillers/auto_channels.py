"""The word 'auto' in the config of a connector or loss: a number of channels."""

from typing import Any

from torch import Tensor

__all__ = ['fill_channels', 'has_auto']

# Arguments of connectors and losses in which 'auto' is the number of channels.
_CHANNEL_ARGUMENTS = (
    'in_channel',
    'in_channels',
    'out_channel',
    'out_channels',
    'channels',
    'student_channels',
    'teacher_channels',
)


def has_auto(config: Any) -> bool:
    """Whether 'auto' stands anywhere in a config."""
    if isinstance(config, dict):
        return any(has_auto(value) for value in config.values())
    if isinstance(config, (list, tuple)):
        return any(has_auto(value) for value in config)
    return isinstance(config, str) and config == 'auto'


def fill_channels(config: dict, feature: Tensor, where: str) -> dict:
    """Put the number of channels of a feature where a config of a connector or loss says 'auto'.

    Args:
        config (dict): Config of a connector or loss; not changed.
        feature (Tensor): Shape (B, C, H, W).
        where (str): What the config belongs to, for errors.

    Raises:
        ValueError: If the feature is no map, or 'auto' stands in another argument.
    """
    if not has_auto(config):
        return config
    if feature.dim() != 4:
        raise ValueError(
            f"{where}: 'auto' is the number of channels of a feature map of shape (B, C, H, W), "
            f'got a feature of shape {tuple(feature.shape)}; write the number'
        )
    wrong = [
        name
        for name, value in config.items()
        if has_auto(value) and (name not in _CHANNEL_ARGUMENTS or value != 'auto')
    ]
    if wrong:
        raise ValueError(
            f"{where}: 'auto' in {wrong} has no meaning; it is the number of channels, in one of "
            f'{", ".join(_CHANNEL_ARGUMENTS)}. Write the value, or leave the argument out.'
        )
    return {name: feature.shape[1] if value == 'auto' else value for name, value in config.items()}
