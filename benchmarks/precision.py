#!/usr/bin/env python
"""What a teacher in low precision changes: its features, the loss, and the gradient of the loss.

For each pair of teacher and student of the zoo, at full size, with random weights and random images;
or, with --config, --teacher and --student, for a trained pair with the loss it was trained with and
images of its data set (without --teacher, random weights and images). One row a precision and loss:

- device, size: where, and height x width of the images.
- angle_layer, angle_channel: degrees between the float32 feature and that in low precision, over the
  whole map of an image and over each channel; the mean, of several features the largest.
- loss_change: of the loss of the distillation, relative.
- gradient_change: length of the difference of its gradients, relative; with respect to all trained
  parameters of student and connectors.

The float32 of this comparison is float32 on a GPU too: TF32, which PyTorch computes convolutions in by
default there, is off.

    python benchmarks/precision.py benchmarks/results/precision.csv
"""

import argparse
import copy
import csv
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

# One config for each pair of teacher and student.
CONFIGS = (
    'lad/lad_bottleneck_pspnet-r101_pspnet-r18_8xb2-80k_cityscapes-512x1024.py',
    'lad/lad_bottleneck_pspnet-r101_pspnet-mv2_8xb2-80k_cityscapes-512x1024.py',
    'lad/lad_fpn-bottleneck_upernet-swin-b_upernet-swin-t_8xb2-160k_ade20k-512x512.py',
    'lad/lad_neck_retinanet-x101_retinanet-r50_8xb2-2x_coco.py',
    'lad/lad_neck_cascade-mask-rcnn-x101_faster-rcnn-r50_8xb2-2x_coco.py',
    'lad/lad_neck_cascade-mask-rcnn-x101_mask-rcnn-r50_8xb2-2x_coco.py',
)
LOSSES = ('LADLoss', 'CADLoss')
COLUMNS = (
    'device', 'size', 'config', 'weights', 'loss', 'precision', 'angle_layer', 'angle_channel',
    'loss_value', 'loss_change', 'gradient_change',
)  # fmt: skip


def make_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('out', type=Path, metavar='CSV', help='rows are added to it')
    parser.add_argument(
        '--only', metavar='TEXT', default='', help='configs with TEXT in their name'
    )
    parser.add_argument('--device', default=None, help='default: cuda if there is one, else cpu')
    parser.add_argument('--size', type=int, nargs=2, default=(128, 128), metavar=('H', 'W'))
    parser.add_argument('--precisions', nargs='+', default=['bf16'], metavar='NAME')
    parser.add_argument('--config', metavar='CONFIG', help='a distillation')
    parser.add_argument('--teacher', metavar='CKPT', help="with --config: the teacher's checkpoint")
    parser.add_argument(
        '--student', metavar='CKPT', help='with --config: a checkpoint of the distillation'
    )
    return parser.parse_args()


def main():
    args = make_arguments()
    import torch

    from rawkd_mm.analysis.benchmark_setting import forget_pretrained
    from rawkd_mm.training import inline_models, load_config

    args.device = torch.device(args.device or ('cuda' if torch.cuda.is_available() else 'cpu'))
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.manual_seed(0)
    names = [args.config] if args.config else [n for n in CONFIGS if args.only in n]
    for name in names:
        cfg = inline_models(load_config(args.config or str(ROOT / 'configs' / name)))
        forget_pretrained(cfg.model)
        cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
        rows = list(compare(args, cfg, Path(name).name))
        args.out.parent.mkdir(parents=True, exist_ok=True)
        is_new = not args.out.is_file()
        with args.out.open('a', newline='') as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator='\n')
            if is_new:
                writer.writeheader()
            for row in rows:
                writer.writerow(row)
                print(row, flush=True)


def compare(args, cfg, name: str):
    """Yield the rows of one pair."""
    import torch
    from mmengine.registry import MODELS, init_default_scope

    from rawkd_mm.analysis.benchmark_setting import make_batch
    from rawkd_mm.training import replace_sync_batchnorm
    from rawkd_mm.training.build_model import build_model
    from rawkd_mm.training.checkpoint_loading import load_checkpoint
    from rawkd_mm.training.device_name import device_name

    init_default_scope(cfg.default_scope)
    cfg.model.update(teacher_ckpt=args.teacher, allow_random_teacher=True, init_student=None)
    size = tuple(args.size)
    for part in (cfg.model, cfg.model.architecture, cfg.model.teacher):
        if (part.get('data_preprocessor') or {}).get('size') is not None:
            part['data_preprocessor']['size'] = size
    if args.teacher:
        batch = real_batch(cfg)
    else:
        batch = make_batch(build_model(cfg.model.architecture), 2, size)
    for loss in [cfg.model.distiller.loss.type] if args.config else LOSSES:
        config = copy.deepcopy(cfg.model)
        config.distiller.loss = dict(type=loss, loss_weight=3.0)

        def measure_with(config=config, **settings):
            torch.manual_seed(0)
            model = MODELS.build({**copy.deepcopy(config), **settings})
            replace_sync_batchnorm(model)
            if args.student:
                model.load_state_dict(load_checkpoint(args.student)['state_dict'])
            model.to(args.device)
            data = model.data_preprocessor(copy.deepcopy(batch), training=True)
            return measure(model.train(), data)

        expected = measure_with()
        for precision in args.precisions:
            found = measure_with(teacher_precision=precision, teacher_channels_last=True)
            angles = [
                [angle(a, b, start) for a, b in zip(found[0], expected[0])] for start in (1, 2)
            ]
            yield dict(
                device=device_name(args.device),
                size='x'.join(map(str, found[3])),
                config=name,
                weights='trained' if args.teacher else 'random',
                loss=loss,
                precision=precision,
                angle_layer=f'{max(angles[0]):.4f}',
                angle_channel=f'{max(angles[1]):.4f}',
                loss_value=f'{expected[1]:.6f}',
                loss_change=f'{abs(found[1] - expected[1]) / expected[1]:.2e}',
                gradient_change=f'{relative(found[2], expected[2]):.2e}',
            )


def real_batch(cfg, size: int = 16) -> dict:
    """Give the first training images of a config's data set."""
    from mmengine.dataset import pseudo_collate
    from mmengine.registry import DATASETS

    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    return pseudo_collate([dataset[i] for i in range(size)])


def measure(model, data) -> tuple:
    """Give the teacher's features, the distillation's loss, its gradient as one vector, and H, W."""
    import torch

    torch.manual_seed(0)  # dropout of the student
    losses = model(**copy.deepcopy(data), mode='loss')
    features = [pair.teacher for pair in model.distiller.last_comparison.pairs.values()]
    loss = sum(value for key, value in losses.items() if key.startswith('distill.'))
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    flat = torch.cat([g.flatten() for g in gradients if g is not None])
    return features, loss.item(), flat, tuple(data['inputs'].shape[2:])


def angle(a, b, start: int) -> float:
    """Give the mean angle in degrees of the vectors that the dimensions from ``start`` on span.

    By the distance of unit vectors, which is exact near 0.
    """
    a, b = (x.double().flatten(start) for x in (a, b))
    a, b = (x / x.norm(dim=-1, keepdim=True).clamp(min=1e-300) for x in (a, b))
    chord = (a - b).norm(dim=-1)
    return (2 * (chord / 2).clamp(max=1).asin()).rad2deg().mean().item()


def relative(a, b) -> float:
    return ((a - b).double().norm() / b.double().norm()).item()


if __name__ == '__main__':
    main()
