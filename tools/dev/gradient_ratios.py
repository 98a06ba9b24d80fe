#!/usr/bin/env python
"""Compare the gradient of the distillation with that of the task, for the trainings of a sweep.

For each distilled training in WORK_DIR, at its last checkpoint: the lengths of the gradients of the
task's loss and of the weighted distillation with respect to the student's backbone, their ratio and
the cosine between them, means over some batches of the training set; and what the geometry hook
logged last: mn/N, cos theta, and by how much Eq. (10) weighs the angle (2 w mn/N).

    python tools/dev/gradient_ratios.py work_dirs/weight_sweep/digit-scenes -o ratios.csv
"""

import argparse
import csv
import json
import sys
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _common import add_cfg_options

COLUMNS = (
    'method', 'weight', 'seed', 'iteration', 'task_gradient', 'distill_gradient', 'ratio', 'cosine',
    'coupling', 'cos_theta', 'angular_weight',
)  # fmt: skip


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('work_dir', type=Path, metavar='WORK_DIR')
    parser.add_argument('-o', '--out', type=Path, required=True, metavar='CSV')
    parser.add_argument('--batches', type=int, default=8, metavar='N', help='default: 8')
    add_cfg_options(parser)
    args = parser.parse_args()
    from rawkd_mm.analysis.progress import make_progress

    trainings = sorted(file.parent for file in args.work_dir.glob('*-w*/result.json'))
    if not trainings:
        sys.exit(f'{args.work_dir} has no finished distillation of weight_sweep.py')
    rows = []
    with make_progress() as progress:
        task = progress.add_task('trainings', total=len(trainings), note='')
        for training in trainings:
            progress.update(task, note=training.name)
            rows.append(measure(training, args.batches, args.cfg_options))
            progress.advance(task)
    with args.out.open('w', newline='') as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)


def measure(training: Path, batches: int, cfg_options) -> dict:
    import torch
    from mmengine.registry import MODELS, init_default_scope
    from mmengine.runner import Runner

    from rawkd_mm.analysis.training_logs import curve
    from rawkd_mm.training import load_config, replace_sync_batchnorm
    from rawkd_mm.training.checkpoint_loading import load_checkpoint

    about = json.loads((training / 'result.json').read_text())['about']
    (config,) = training.glob('*.py')
    cfg = load_config(str(config), cfg_options)
    cfg.train_dataloader.update(num_workers=0, persistent_workers=False)
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    replace_sync_batchnorm(model)
    path = (training / 'last_checkpoint').read_text().strip()
    path = training / Path(path).name
    model.load_state_dict(load_checkpoint(str(path))['state_dict'])
    model.train()
    loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
    parameters = list(model.student.backbone.parameters())
    found = []
    for _, data in zip(range(batches), loader):
        data = model.data_preprocessor(data, True)
        losses = model(**data, mode='loss')
        gradients = []
        for prefix in ('student.', 'distill.'):
            total = sum(v for k, v in losses.items() if k.startswith(prefix) and 'loss' in k)
            given = torch.autograd.grad(total, parameters, retain_graph=True, allow_unused=True)
            gradients.append(torch.cat([g.flatten() for g in given if g is not None]).double())
        task, distill = gradients
        found.append((task.norm(), distill.norm(), torch.cosine_similarity(task, distill, dim=0)))
    task, distill, cosine = (mean(float(x) for x in values) for values in zip(*found))
    coupling, cos_theta = (
        list(curve(training, name).values())[-1] for name in ('/mn_over_N', '/cos_theta')
    )
    return dict(
        method=about['method'],
        weight=about['weight'],
        seed=about['seed'],
        iteration=path.stem.rpartition('_')[2],
        task_gradient=f'{task:.4g}',
        distill_gradient=f'{distill:.4g}',
        ratio=f'{distill / task:.4g}',
        cosine=f'{cosine:.3f}',
        coupling=f'{coupling:.4g}',
        cos_theta=f'{cos_theta:.4f}',
        angular_weight=f'{2 * about["weight"] * coupling:.4g}',
    )


if __name__ == '__main__':
    main()
