"""What the device that computes is called."""

import os
import platform
from pathlib import Path

import torch

__all__ = ['device_name']


def device_name(device) -> str:
    """Give what a device is called.

    Args:
        device (torch.device): A GPU or the CPU.

    Returns:
        str: Such as 'NVIDIA A100' or 'Intel Xeon, 8 cores'.
    """
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        model = next(line.partition(':')[2].strip() for line in lines if 'model name' in line)
    except (OSError, StopIteration):
        model = platform.processor() or 'CPU'
    return f'{model}, {os.cpu_count()} cores'
