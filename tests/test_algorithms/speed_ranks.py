"""Trains in two gloo processes whose devices differ; test_teacher_speed_search.py runs it."""

import os
import sys
from pathlib import Path

import torch
from helpers import _DISTRIBUTED, _bn, distill, pspnet, run
from test_teacher_speed_search import ANY, COSTS, settings, slow

from rawkd_mm.algorithms import teacher_speed
from rawkd_mm.training import leave_processes

RANK = int(os.environ.get('RANK', 0))  # pytest imports this file, too


def main(folder):
    torch.distributed.init_process_group('gloo')
    teacher_speed.device_name = lambda device: f'device {RANK}'
    algorithm = distill(student=_bn(pspnet()), **ANY)
    # the second process would choose otherwise
    ran = slow(algorithm, COSTS if RANK == 0 else {**COSTS, ('bf16', False): 0.0})
    work_dir = Path(folder) / 'work_dir'
    run(algorithm, work_dir, iters=2, **_DISTRIBUTED)
    torch.distributed.barrier()
    found = dict(
        settings=settings(algorithm),
        ran=len(ran),
        log=' '.join(path.read_text() for path in work_dir.rglob('*.log')),
        file=(work_dir / 'teacher_speed.json').is_file(),
        state=algorithm.state_dict()['distiller.teacher_speed'],
    )
    torch.save(found, Path(folder) / f'rank{RANK}.pth')
    leave_processes()


if __name__ == '__main__':
    main(sys.argv[1])
