#!/usr/bin/env python
"""Write what the measurements run on: device, driver and versions, no names of machines."""

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--json', type=Path, required=True, metavar='FILE', help='the result')
    args = parser.parse_args()
    args.json.write_text(json.dumps(describe(), indent=2) + '\n')


def describe() -> dict:
    """Describe this environment."""
    import torch

    from rawkd_mm.compat import has_mmcv_ops, version_texts
    from rawkd_mm.training.device_name import device_name

    is_gpu = torch.cuda.is_available()
    device = torch.device('cuda' if is_gpu else 'cpu')
    versions = version_texts()
    found = dict(
        gpu=is_gpu,
        device=device_name(device),
        processor=device_name(torch.device('cpu')),
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        torch=torch.__version__,
        versions=versions,
        detection='mmdet' in versions and has_mmcv_ops(),
        omp_num_threads=os.environ.get('OMP_NUM_THREADS'),
    )
    if is_gpu:
        properties = torch.cuda.get_device_properties(device)
        found.update(
            devices=torch.cuda.device_count(),
            memory_megabytes=round(properties.total_memory / 1e6),
            capability='.'.join(map(str, torch.cuda.get_device_capability(device))),
            driver=driver_version(),
            cuda=torch.version.cuda,
            cudnn=torch.backends.cudnn.version(),
            nccl='.'.join(map(str, torch.cuda.nccl.version())),
            cudnn_tf32=torch.backends.cudnn.allow_tf32,
        )
    return found


def driver_version() -> str | None:
    """Give the version of NVIDIA's driver; None if nvidia-smi does not tell it."""
    command = ['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader']
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.split('\n')
    return lines[0].strip() or None if done.returncode == 0 else None


if __name__ == '__main__':
    main()
