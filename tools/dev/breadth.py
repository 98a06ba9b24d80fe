#!/usr/bin/env python
"""Run one iteration of many pairs of published models with features chosen automatically.

Each student learns from a teacher with random weights, as tools/make_distill_config.py composes it,
on two made-up images. Writes docs/breadth.md (or -o FILE): which pair ran, which was refused and why.
Nothing is downloaded. Takes some minutes on two cores.
"""

import argparse
import contextlib
import gc
import io
import logging
import re
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import _package  # noqa: F401, I001 (finds the checkout's package)

ROOT = Path(__file__).resolve().parents[2]
SMALL = (128, 128)

# student, teacher, method[, height and width]
SEGMENTORS = [
    ('fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py',
     'point_rend/pointrend_r50_4xb2-80k_cityscapes-512x1024.py', 'cad'),
    ('pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py',
     'deeplabv3/deeplabv3_r50-d8_4xb2-80k_cityscapes-512x1024.py', 'lad'),
    ('deeplabv3/deeplabv3_r18-d8_4xb2-80k_cityscapes-512x1024.py',
     'pspnet/pspnet_r50-d8_4xb2-80k_cityscapes-512x1024.py', 'pad'),
    ('deeplabv3plus/deeplabv3plus_r18-d8_4xb2-80k_cityscapes-512x1024.py',
     'ocrnet/ocrnet_hr18_4xb2-80k_cityscapes-512x1024.py', 'cad'),
    ('mobilenet_v3/mobilenet-v3-d8-scratch-s_lraspp_4xb4-320k_cityscapes-512x1024.py',
     'deeplabv3plus/deeplabv3plus_r18-d8_4xb2-80k_cityscapes-512x1024.py', 'cad', (416, 416)),
    ('ocrnet/ocrnet_hr18s_4xb2-80k_cityscapes-512x1024.py',
     'upernet/upernet_r50_4xb2-80k_cityscapes-512x1024.py', 'naive'),
    ('segformer/segformer_mit-b0_8xb1-160k_cityscapes-1024x1024.py',
     'segformer/segformer_mit-b2_8xb1-160k_cityscapes-1024x1024.py', 'cad'),
    ('bisenetv2/bisenetv2_fcn_4xb4-160k_cityscapes-1024x1024.py',
     'pspnet/pspnet_r50-d8_4xb2-80k_cityscapes-512x1024.py', 'cad'),
    ('bisenetv1/bisenetv1_r18-d32_4xb4-160k_cityscapes-1024x1024.py',
     'danet/danet_r50-d8_4xb2-80k_cityscapes-512x1024.py', 'md'),
    ('fastscnn/fast_scnn_8xb4-160k_cityscapes-512x1024.py',
     'gcnet/gcnet_r50-d8_4xb2-80k_cityscapes-512x1024.py', 'nfd'),
    ('stdc/stdc1_4xb12-80k_cityscapes-512x1024.py',
     'stdc/stdc2_4xb12-80k_cityscapes-512x1024.py', 'cad'),
    ('segnext/segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512.py',
     'upernet/upernet_r50_4xb4-160k_ade20k-512x512.py', 'cad'),
    ('icnet/icnet_r18-d8_4xb2-80k_cityscapes-832x832.py',
     'encnet/encnet_r50-d8_4xb2-80k_cityscapes-512x1024.py', 'cad'),
    ('pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py',
     'pidnet/pidnet-m_2xb6-120k_1024x1024-cityscapes.py', 'lad'),
    ('ddrnet/ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-1024x1024.py',
     'ddrnet/ddrnet_23_in1k-pre_2xb6-120k_cityscapes-1024x1024.py', 'cad'),
    ('sem_fpn/fpn_r50_4xb2-80k_cityscapes-512x1024.py',
     'swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py', 'cad'),
    ('knet/knet-s3_r50-d8_fcn_8xb2-adamw-80k_ade20k-512x512.py',
     'isanet/isanet_r50-d8_4xb2-80k_cityscapes-512x1024.py', 'cad'),
    ('cgnet/cgnet_fcn_4xb4-60k_cityscapes-680x680.py',
     'hrnet/fcn_hr18s_4xb2-80k_cityscapes-512x1024.py', 'cwd'),
    ('erfnet/erfnet_fcn_4xb4-160k_cityscapes-512x1024.py',
     'dnlnet/dnl_r50-d8_4xb2-80k_cityscapes-512x1024.py', 'mgd'),
    ('fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py',
     'setr/setr_vit-l_mla_8xb1-80k_cityscapes-768x768.py', 'cad'),
    ('point_rend/pointrend_r50_4xb2-80k_cityscapes-512x1024.py',
     'pspnet/pspnet_r50-d8_4xb2-80k_cityscapes-512x1024.py', 'cad'),
    ('danet/danet_r50-d8_4xb2-80k_cityscapes-512x1024.py',
     'pspnet/pspnet_r50-d8_4xb2-80k_cityscapes-512x1024.py', 'cad'),
    ('fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py',
     'segmenter/segmenter_vit-t_mask_8xb1-160k_ade20k-512x512.py', 'cad'),
    ('fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py',
     'mask2former/mask2former_r50_8xb2-90k_cityscapes-512x1024.py', 'cad'),
    ('fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py',
     'maskformer/maskformer_r50-d32_8xb2-160k_ade20k-512x512.py', 'cad'),
    ('fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py',
     'san/san-vit-b16_coco-stuff164k-640x640.py', 'cad'),
]  # fmt: skip
DETECTORS = [
    ('retinanet/retinanet_r18_fpn_1x_coco.py', 'retinanet/retinanet_r50_fpn_1x_coco.py', 'cad'),
    ('retinanet/retinanet_r18_fpn_1x_coco.py', 'gfl/gfl_r50_fpn_1x_coco.py', 'fgd'),
    ('faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
     'cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py', 'fkd'),
    ('mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
     'cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py', 'mgd'),
    ('fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', 'vfnet/vfnet_r50_fpn_1x_coco.py', 'lad'),
    ('gfl/gfl_r50_fpn_1x_coco.py', 'tood/tood_r50_fpn_1x_coco.py', 'cwd'),
    ('rtmdet/rtmdet_tiny_8xb32-300e_coco.py', 'rtmdet/rtmdet_s_8xb32-300e_coco.py', 'cad'),
    ('yolox/yolox_tiny_8xb8-300e_coco.py', 'rtmdet/rtmdet_s_8xb32-300e_coco.py', 'cad'),
    ('retinanet/retinanet_r18_fpn_1x_coco.py',
     'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', 'cad'),
    ('yolof/yolof_r50-c5_8xb8-1x_coco.py', 'detr/detr_r50_8xb2-150e_coco.py', 'cad'),
    ('retinanet/retinanet_r18_fpn_1x_coco.py', 'yolof/yolof_r50-c5_8xb8-1x_coco.py', 'cad'),
    ('retinanet/retinanet_r18_fpn_1x_coco.py',
     'faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco.py', 'cad'),
]  # fmt: skip
PAIRS = {'mmseg': SEGMENTORS, 'mmdet': DETECTORS}

HEADER = """\
# Which models can be distilled automatically

Each pair of published configs was built at full width with random weights and trained for one iteration
on two made-up images: forward, backward, optimizer step. The features were chosen by
`tools/make_distill_config.py --features auto`. `tools/dev/breadth.py` writes this page, and the tests
run it again. The page does not say what a distillation gains.

Another test checks each decode head of MMSegmentation (`tests/test_features/test_choosing.py`): it
works, or it is refused with the reason.
"""


def run(package: str, row: tuple) -> tuple[bool, str]:
    """Make a pair and train it for one iteration; gives whether it ran, and a row of the table."""
    from rawkd_mm import distill_config
    from rawkd_mm.training import TrialError, UsageError, run_one_iteration

    student, teacher, method, *size = row
    size = size[0] if size else SMALL
    args = argparse.Namespace(
        student=f'{package}::{student}',
        teacher=f'{package}::{teacher}',
        teacher_ckpt='teacher.pth',
        method=method,
        features=['auto'],
        no_check=True,
        out='out.py',
    )
    begin = f'| {stem(teacher)} | {stem(student)} | {method} | '
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            result = distill_config.make(args, size)
            with distill_config.scope_of(result.cfg):
                run_one_iteration(result.algorithm, result.cfg.optim_wrapper, result.size)
        except TrialError as error:
            return False, f'{begin}FAILED: {error} |'
        except (UsageError, ValueError, RuntimeError) as error:
            reason = str(error).partition(' Name a feature')[0].partition(' Name the features')[0]
            return False, f'{begin}{reason} |'
    pairs = '<br>'.join(
        f'`{ours.source.text}` ({ours.shape[0]}, {ours.stride:.3g}) from '
        f'`{theirs.source.text}` ({theirs.shape[0]}, {theirs.stride:.3g})'
        for ours, theirs in result.pairs
    )
    return True, f'{begin}{pairs} |'


def stem(name: str) -> str:
    return re.split(r'_\d+xb\d+|\.py', name.partition('/')[2])[0]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('-o', '--out', default=str(ROOT / 'docs/breadth.md'), metavar='FILE')
    parser.add_argument(
        '--only', metavar='TEXT', help='only pairs whose names have this in them; prints the rows'
    )
    args = parser.parse_args()
    warnings.simplefilter('ignore')
    logging.disable(logging.WARNING)
    lines = {}
    for package, rows in PAIRS.items():
        for row in rows:
            if not args.only or args.only in f'{row[0]} {row[1]}':
                lines[package, row] = run(package, row)
                print(lines[package, row][1], flush=True)
                gc.collect()
    if not args.only:
        Path(args.out).write_text(make_page(lines), encoding='utf-8')


def make_page(lines: dict) -> str:
    """Make the page of what :func:`run` gave, by package and row."""
    text = HEADER
    for package, title in (('mmseg', 'Segmentation'), ('mmdet', 'Detection')):
        results = [result for (name, _), result in lines.items() if name == package]
        text += (
            f'\n## {title}\n\nIn brackets: channels and stride.\n\n'
            '| teacher | student | method | features, student from teacher |\n|---|---|---|---|\n'
        )
        text += ''.join(f'{line}\n' for works, line in results if works)
        text += '\nRefused:\n\n| teacher | student | method | why |\n|---|---|---|---|\n'
        text += ''.join(f'{line}\n' for works, line in results if not works)
    return text


if __name__ == '__main__':
    main()
