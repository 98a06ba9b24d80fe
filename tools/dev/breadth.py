#!/usr/bin/env python
"""Run one iteration of a distillation for every family of published models, and for many pairs of them.

A family is a folder of configs of MMSegmentation or MMDetection. One config of it is the teacher and the
student at once, so that one iteration tries it in both roles. The pairs are of different models. Each is
composed as tools/make_distill_config.py --features auto does, with random weights, and trained for one
iteration on two made-up images. Nothing is downloaded.

Each runs in a process of its own, with a limit of time and memory, and its result is added to
docs/data/breadth.json at once: what is there already is not run again, so that an interrupted run goes
on. In the end docs/breadth.md is written from it. All of it takes hours on two cores.
"""

import argparse
import contextlib
import gc
import io
import json
import logging
import os
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import _package  # noqa: F401, I001 (finds the checkout's package)

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / 'docs/data/breadth.json'
SMALL = (128, 128)

# Folders of configs that are no families of models: data sets, and parts of configs.
NO_FAMILIES = {
    'mmseg': ('_base_', 'dsdl'),
    'mmdet': (
        '_base_', 'cityscapes', 'common', 'deepfashion', 'dsdl', 'lvis', 'objects365', 'openimages',
        'pascal_voc', 'v3det', 'wider_face',
    ),
}  # fmt: skip
# What stands for a family where the shortest name of a small model isn't what to take: the first of the
# folder's is no model, needs a file, or is not what the family is known for.
REPRESENTATIVES = {
    'mmseg': dict(
        segmenter='segmenter_vit-t_mask_8xb1-160k_ade20k-512x512.py',
        mobilenet_v3='mobilenet-v3-d8-scratch-s_lraspp_4xb4-320k_cityscapes-512x1024.py',
        ddrnet='ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-1024x1024.py',
        pidnet='pidnet-s_2xb6-120k_1024x1024-cityscapes.py',
        poolformer='fpn_poolformer_s12_8xb4-40k_ade20k-512x512.py',
        segnext='segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512.py',
        # that of VOC has the weights of another data set's classes in its loss
        san='san-vit-b16_coco-stuff164k-640x640.py',
        setr='setr_vit-l_naive_8xb2-160k_ade20k-512x512.py',
        swin='swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py',
        twins='twins_svt-s_uperhead_8xb2-160k_ade20k-512x512.py',
        pspnet='pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py',
        deeplabv3plus='deeplabv3plus_r18-d8_4xb2-80k_cityscapes-512x1024.py',
        hrnet='fcn_hr18s_4xb2-80k_cityscapes-512x1024.py',
        ocrnet='ocrnet_hr18s_4xb2-80k_cityscapes-512x1024.py',
        upernet='upernet_r18_4xb2-80k_cityscapes-512x1024.py',
        fcn='fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py',
    ),
    'mmdet': dict(
        bytetrack='yolox_x_8xb4-amp-80e_crowdhuman-mot17halftrain_test-mot17halfval.py',
        strongsort='yolox_x_8xb4-80e_crowdhuman-mot17halftrain_test-mot17halfval.py',
        cascade_rpn='cascade-rpn_faster-rcnn_r50-caffe_fpn_1x_coco.py',
        centernet='centernet_r18_8xb16-crop512-140e_coco.py',
        dcn='faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py',
        dcnv2='faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco.py',
        detectors='detectors_htc-r50_1x_coco.py',
        fpg='retinanet_r50_fpg_crop640_50e_coco.py',
        hrnet='fcos_hrnetv2p-w18-gn-head_4xb4-1x_coco.py',
        gcnet='mask-rcnn_r50-gcb-r4-c3-c5_fpn_1x_coco.py',
        # those of the pretraining have no loss to train with
        glip='glip_atss_swin-t_a_fpn_dyhead_16xb2_ms-2x_funtune_coco.py',
        grounding_dino='grounding_dino_r50_scratch_8xb2_1x_coco.py',
        nas_fpn='retinanet_r50_nasfpn_crop640-50e_coco.py',
        pvt='retinanet_pvt-t_fpn_1x_coco.py',
        rtmdet='rtmdet_tiny_8xb32-300e_coco.py',
        sort='faster-rcnn_r50_fpn_8xb2-4e_mot17halftrain_test-mot17halfval.py',
        retinanet='retinanet_r18_fpn_1x_coco.py',
        yolox='yolox_tiny_8xb8-300e_coco.py',
    ),
}
# Families whose smallest model is too large for this: fewer layers or channels, and smaller images where
# a model takes images of one size.
SHORTER = {
    'mmseg/setr': dict(backbone=dict(num_layers=4, out_indices=(0, 1, 2, 3))),
    'mmseg/beit': dict(backbone=dict(num_layers=4, out_indices=(0, 1, 2, 3), img_size=SMALL)),
    # its text encoder reads every class in one sentence, and not in 14
    'mmseg/san': dict(text_encoder=dict(templates=['a photo of a {}.'])),
    'mmseg/mae': dict(backbone=dict(num_layers=4, out_indices=(0, 1, 2, 3), img_size=SMALL)),
    'mmdet/bytetrack': dict(
        backbone=dict(deepen_factor=0.33, widen_factor=0.375),
        neck=dict(in_channels=[96, 192, 384], out_channels=96, num_csp_blocks=1),
        bbox_head=dict(in_channels=96, feat_channels=96),
    ),
}
SHORTER['mmdet/strongsort'] = SHORTER['mmdet/bytetrack']
SHORTER['mmdet/ocsort'] = dict(detector=SHORTER['mmdet/bytetrack'])
# models that have a teacher of their own begin without its weights, and find its config
SHORTER['mmdet/lad'] = dict(teacher_ckpt=None)
SHORTER['mmdet/ld'] = dict(
    teacher_ckpt=None, teacher_config='CONFIGS/gfl/gfl_r101_fpn_ms-2x_coco.py'
)
# checkpoints of activations need fairscale
SHORTER['mmdet/grounding_dino'] = dict(
    language_model=dict(name='BERT'), encoder=dict(num_cp=0), num_queries=100
)
SHORTER['mmdet/mm_grounding_dino'] = SHORTER['mmdet/grounding_dino']
SHORTER['mmdet/glip'] = dict(
    language_model=dict(name='BERT'), bbox_head=dict(lang_model_name='BERT')
)
# What a family was given here that its published config alone does not have, or what keeps it away.
_MMPRETRAIN = "with onedl-mmpretrain, model-index, einops and 'transformers<5' installed"
_TEXT = 'with a text encoder of the same size and random weights in place of BERT'
_GROUNDING = (
    f'{_TEXT}; encoder.num_cp=0, or install fairscale. The decoder of onedl-mmdetection 3.5.1 hands its '
    'ref_point_head twice the channels that it takes'
)
NOTES = {
    'mmseg/convnext': _MMPRETRAIN,
    'mmseg/poolformer': _MMPRETRAIN,
    'mmseg/san': 'parameters that only pretrained weights set were given small random values',
    'mmseg/vpd': (
        "it needs CompVis' latent-diffusion (ldm), which no package index has, and the weights of "
        'Stable Diffusion'
    ),
    'mmdet/carafe': 'its operator has no implementation for CPUs',
    'mmdet/clrnet': (
        "it also needs custom_imports=dict(imports=['mmdet.datasets']), and a class of your own whose "
        '_forward takes images in place of a dict'
    ),
    'mmdet/convnext': _MMPRETRAIN,
    'mmdet/detectors': 'its standardised convolutions are scaled as when weights are loaded',
    'mmdet/glip': f"{_TEXT} and 'transformers<5' installed",
    'mmdet/grounding_dino': _GROUNDING,
    'mmdet/mm_grounding_dino': _GROUNDING,
    'mmdet/lad': 'with teacher_ckpt=None',
    'mmdet/ld': 'with teacher_ckpt=None and the whole path of teacher_config',
    'mmdet/misc': 'it needs Detectron2, which no package index has',
    'mmdet/ocsort': 'with lap installed',
    'mmdet/reid': _MMPRETRAIN,
    'mmdet/timm_example': _MMPRETRAIN,
}

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
    # across kinds: mask classification, tokens, maps
    ('pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py',
     'mask2former/mask2former_swin-t_8xb2-90k_cityscapes-512x1024.py', 'cad'),
    ('segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
     'mask2former/mask2former_swin-t_8xb2-160k_ade20k-512x512.py', 'lad'),
    ('segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
     'segmenter/segmenter_vit-s_mask_8xb1-160k_ade20k-512x512.py', 'pad'),
    ('segmenter/segmenter_vit-t_mask_8xb1-160k_ade20k-512x512.py',
     'segmenter/segmenter_vit-s_mask_8xb1-160k_ade20k-512x512.py', 'lad'),
    ('segmenter/segmenter_vit-t_mask_8xb1-160k_ade20k-512x512.py',
     'upernet/upernet_r50_4xb4-160k_ade20k-512x512.py', 'cad'),
    ('mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py',
     'mask2former/mask2former_swin-t_8xb2-160k_ade20k-512x512.py', 'cad'),
    ('mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py',
     'segformer/segformer_mit-b2_8xb2-160k_ade20k-512x512.py', 'cad'),
    ('maskformer/maskformer_r50-d32_8xb2-160k_ade20k-512x512.py',
     'mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py', 'naive'),
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
    # across kinds: queries, boxes, masks, with a neck and without
    ('faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', 'dino/dino-4scale_r50_8xb2-12e_coco.py', 'cad'),
    ('rtmdet/rtmdet_tiny_8xb32-300e_coco.py', 'dino/dino-4scale_r50_8xb2-12e_coco.py', 'cad'),
    ('retinanet/retinanet_r18_fpn_1x_coco.py',
     'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py', 'lad'),
    ('detr/detr_r18_8xb2-500e_coco.py', 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', 'cad'),
    ('dino/dino-4scale_r50_8xb2-12e_coco.py', 'rtmdet/rtmdet_s_8xb32-300e_coco.py', 'cad'),
    ('mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
     'mask2former/mask2former_r50_8xb2-lsj-50e_coco.py', 'cad'),
    ('rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
     'mask2former/mask2former_r50_8xb2-lsj-50e_coco.py', 'lad'),
    ('panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py',
     'mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py', 'cad'),
    ('mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
     'maskformer/maskformer_r50_ms-16xb1-75e_coco.py', 'cad'),
    ('faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco.py',
     'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', 'cad'),
]  # fmt: skip
PAIRS = {'mmseg': SEGMENTORS, 'mmdet': DETECTORS}

# What an error says of a model that needs packages, files or a device that are not here.
NOT_HERE = (
    r'ImportError|ModuleNotFoundError|[Ii]nstall|FileNotFoundError|URLError|huggingface|on the Hub|'
    'device cpu not found'
)
ALONE = 'it fails without a distillation too'
HEADER = ROOT / 'docs/data/breadth_head.md'


def configs_of(package: str) -> Path:
    """Give the folder of a package's published configs."""
    import importlib.util

    return Path(importlib.util.find_spec(package).origin).parent / '.mim/configs'


def families(package: str) -> list[str]:
    """Give the names of the folders that hold a family of models."""
    folders = (path for path in configs_of(package).iterdir() if path.is_dir())
    return sorted(path.name for path in folders if path.name not in NO_FAMILIES[package])


def representative(package: str, family: str) -> str:
    """Give the config that stands for a family: of a small model, and the shortest name of these."""
    if family in REPRESENTATIVES[package]:
        return f'{family}/{REPRESENTATIVES[package][family]}'
    files = [path.name for path in (configs_of(package) / family).glob('*.py')]
    files = [name for name in files if not name.startswith('__') and '_tta' not in name]
    small = [n for n in files if re.search(r'r18|r50|tiny|-t[-_]|-s[-_]|b0|s12', n)]
    return f'{family}/{min(small or files, key=lambda name: (len(name), name))}'


def jobs() -> dict[str, tuple]:
    """Give all that is run, by the key of its result: package, student, teacher, method and size."""
    result = {}
    for package, rows in PAIRS.items():
        for row in rows:
            student, teacher, method, *size = row
            key = f'pair {package} {stem(teacher)} {stem(student)} {method}'
            result[key] = (package, student, teacher, method, size[0] if size else SMALL, {})
        for family in families(package):
            config = representative(package, family)
            shorter = SHORTER.get(f'{package}/{family}', {})
            result[f'family {package} {family}'] = (package, config, config, 'cad', SMALL, shorter)
    return result


def run(
    package: str, student: str, teacher: str, method: str, size: tuple, shorter: dict
) -> dict[str, object]:
    """Make a pair and train it for one iteration.

    Returns:
        dict[str, object]: 'result': 'ran', 'refused' or 'failed'; 'features' or 'reason'; the 'loss'.
    """
    from rawkd_mm import distill_config
    from rawkd_mm.training import TrialError, UsageError, run_one_iteration

    # MMEngine reads no names such as gn+ws and legacy_1.x
    names = [
        f'{package}::{name}' if re.match(r'\w+/', name) else str(configs_of(package) / name)
        for name in (student, teacher)
    ]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        if shorter:
            file = Path(folder, 'shorter.py')
            text = f'_base_ = {names[0]!r}\nmodel = {shorter!r}\n'
            file.write_text(text.replace('CONFIGS', str(configs_of(package))))
            if "'BERT'" in text:
                bert = Path(folder, 'bert')
                _make_text_encoder(bert)
                file.write_text(file.read_text().replace("'BERT'", repr(str(bert))))
            names = [str(file)] * 2
        args = argparse.Namespace(
            student=names[0],
            teacher=names[1],
            teacher_options={},
            teacher_ckpt='teacher.pth',
            method=method,
            features=['auto'],
            no_check=True,
            out='out.py',
        )
        try:
            with _unset_is_nan():
                result = distill_config.make(args, size)
            # A teacher without a checkpoint is as its constructor leaves it, with memory that nobody
            # has written to (SSD). Some models (SAN) cannot begin without others' weights.
            with contextlib.suppress(AttributeError, OSError), distill_config.scope_of(result.cfg):
                result.algorithm.teacher.init_weights()
            _fill_unset(result.algorithm.student, result.algorithm.teacher)
            failed = None
            losses, size = distill_config.try_out(result)
        except TrialError as error:
            failed = _short(error)  # and not the error, which keeps the iteration's memory
        except (UsageError, ValueError, RuntimeError) as error:
            kind = 'refused' if isinstance(error, ValueError) else 'failed'
            is_built = not re.search(r'cannot be (built|read)', str(error))
            kind = kind if is_built else 'failed'
            if kind == 'failed' and re.search(NOT_HERE, str(error)):
                kind = 'not here'
            return dict(result=kind, reason=_short(error))
    if failed is not None:
        try:
            with distill_config.scope_of(result.cfg):
                result.algorithm.distillation_stopped = True
                run_one_iteration(result.algorithm, result.cfg.optim_wrapper, result.size)
        except TrialError:
            return dict(result='not here', reason=f'{ALONE}: {failed}')
        return dict(result='failed', reason=failed)
    features = [
        [[f.source.text, f.shape[0], round(f.stride, 2)] for f in (of_student, of_teacher)]
        for of_student, of_teacher in result.pairs
    ]
    distilled = sum(value for name, value in losses.items() if name.startswith('distill'))
    return dict(
        result='ran',
        features=features,
        size=list(size),
        loss=float(f'{losses["loss"]:.3g}'),
        distilled=float(f'{distilled:.3g}'),
    )


@contextlib.contextmanager
def _unset_is_nan() -> Iterator[None]:
    """Let parameters that a constructor leaves unset be NaN, and not what the memory had."""
    import torch

    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def _fill_unset(*models: 'torch.nn.Module') -> None:  # noqa: F821 (imported when it is needed)
    """Give values to what only others' weights would have set."""
    import torch
    from mmcv.cnn import ConvAWS2d

    for model in models:
        for value in (*model.parameters(), *model.buffers()):
            if value.is_floating_point() and value.data.isnan().any():
                random = torch.randn_like(value.data) * 0.02
                value.data.copy_(torch.where(value.data.isnan(), random, value.data))
        for module in model.modules():
            # takes its scale from weights that come without one
            if isinstance(module, ConvAWS2d):
                own = module.state_dict()
                module.load_state_dict(
                    {k: v for k, v in own.items() if k not in ('weight_gamma', 'weight_beta')},
                    strict=False,
                )


def _make_text_encoder(folder: Path) -> None:
    """Write a text encoder of BERT's width with two layers, random weights and a small vocabulary."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    letters = [chr(code) for code in range(ord('a'), ord('z') + 1)] + [*'0123456789']
    words = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', '.', '?', 'object', *letters]
    words += [f'##{letter}' for letter in letters]
    folder.mkdir()
    vocabulary = folder / 'vocab.txt'
    vocabulary.write_text('\n'.join(words) + '\n')
    BertTokenizerFast(str(vocabulary)).save_pretrained(folder)
    config = BertConfig(vocab_size=len(words), num_hidden_layers=2)
    BertModel(config).save_pretrained(folder)


def _short(error: Exception) -> str:
    text = re.sub(r', the current sys\.path is:.*?(?=$|\. )', '', ' '.join(str(error).split()))
    text = text.replace(str(Path.home()), '~').replace(str(ROOT), '.')
    return text if len(text) < 700 else text[:700] + '...'


def run_in_process(job: tuple, seconds: int, gigabytes: int) -> dict[str, object]:
    """Run one in a process that is forked from this one, which has imported everything."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            os.close(read)
            resource.setrlimit(resource.RLIMIT_AS, (gigabytes << 30, gigabytes << 30))
            _sample_fewer_regions()
            try:
                found = run(*job)
            except MemoryError:
                found = dict(result='failed', reason=f'it needs more than {gigabytes} GB')
            except Exception as error:
                traceback.print_exc()
                found = dict(result='failed', reason=f'{type(error).__name__}: {_short(error)}')
            with os.fdopen(write, 'w') as pipe:
                json.dump(found, pipe)
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    begun = time.monotonic()
    while time.monotonic() - begun < seconds:
        if os.waitpid(child, os.WNOHANG)[0]:
            with os.fdopen(read) as pipe:
                text = pipe.read()
            return json.loads(text) if text else dict(result='failed', reason='its process died')
        time.sleep(0.2)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(read)
    return dict(result='failed', reason=f'not done after {seconds} s')


def _sample_fewer_regions() -> None:
    """Let RoI heads learn from at most 32 regions of an image: they are most of the time."""
    from mmdet.models.task_modules.samplers.base_sampler import BaseSampler

    init = BaseSampler.__init__

    def init_fewer(self: BaseSampler, num: int, *args: object, **kwargs: object) -> None:
        init(self, min(num, 32), *args, **kwargs)

    BaseSampler.__init__ = init_fewer


def stem(name: str) -> str:
    return re.split(r'_\d+xb\d+|\.py', name.partition('/')[2])[0]


def cells(record: dict) -> str:
    """Give what was chosen, or the reason why nothing was, as the cell of a table."""
    if record['result'] != 'ran':
        return f'{record["result"]}: {record["reason"]}'.replace('|', '\\|')

    def feature(text: str, channels: int, stride: float) -> str:
        return f'`{text}` ({channels}, {stride:.3g})'

    if record['student'] == record['teacher']:
        return '<br>'.join(feature(*of_student) for of_student, _ in record['features'])
    return '<br>'.join(f'{feature(*a)} from {feature(*b)}' for a, b in record['features'])


def make_page(records: dict[str, dict]) -> str:
    """Make the page of the results, by the keys of :func:`jobs`."""
    text = HEADER.read_text()
    parts = dict(mmseg='Segmentation', mmdet='Detection')
    lines = []
    for package, title in parts.items():
        found = [r for k, r in records.items() if k.startswith(f'family {package} ')]
        numbers = {kind: sum(r['result'] == kind for r in found) for kind in RESULTS}
        lines.append(f'| {title} | {len(found)} | ' + ' | '.join(map(str, numbers.values())) + ' |')
    text += (
        '## Families\n\nA family is a folder of published configs, data sets left out. One config of it '
        'is teacher and student at once.\n*Ran*: in both roles. *Refused*: it is no student, or no '
        'sound feature can be chosen.\n*Not here*: it cannot be built or run on a CPU, its training '
        'fails without a distillation too, or it needs packages or\nfiles that could not be had. '
        '*Failed*: only the distillation fails, or it took too long.\n\n'
        '| | families | ran | refused | not here | failed |\n|---|---|---|---|---|---|\n'
        + '\n'.join(lines)
        + '\n'
    )
    for package, title in parts.items():
        text += (
            f'\n### {title}\n\nIn brackets: channels and stride. The loss is that of the distillation '
            'alone (CAD).\n\n| family | config | chosen, or why not | loss |\n|---|---|---|---|\n'
        )
        for key, record in sorted(records.items()):
            if key.startswith(f'family {package} '):
                loss = record.get('distilled', '')
                name = stem(record['student'])
                family = key.split()[2]
                note = NOTES.get(f'{package}/{family}')
                chosen = cells(record) + (f' ({note})' if note else '')
                text += f'| {family} | {name} | {chosen} | {loss} |\n'
    text += '\n## Pairs of different models\n'
    for package, title in parts.items():
        text += (
            f'\n### {title}: pairs\n\nIn brackets: channels and stride.\n\n'
            '| teacher | student | method | features, student from teacher |\n|---|---|---|---|\n'
        )
        for key in jobs():
            if key.startswith(f'pair {package} ') and key in records:
                teacher, student, method = key.split()[2:]
                text += f'| {teacher} | {student} | {method} | {cells(records[key])} |\n'
    return text


RESULTS = ('ran', 'refused', 'not here', 'failed')


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('-o', '--out', default=str(ROOT / 'docs/breadth.md'), metavar='FILE')
    parser.add_argument('--data', default=str(DATA), metavar='FILE', help='the results so far')
    parser.add_argument(
        '--only',
        nargs='+',
        metavar='TEXT',
        help="only what has one of these in its key, such as 'family mmdet detr'",
    )
    parser.add_argument('--redo', action='store_true', help='run what there is a result of, too')
    parser.add_argument(
        '--redo-failed', action='store_true', help='run what failed or was refused again'
    )
    parser.add_argument('--seconds', type=int, default=300, metavar='N', help='for each (300)')
    parser.add_argument('--gigabytes', type=int, default=14, metavar='N', help='for each (14)')
    parser.add_argument('--page-only', action='store_true', help='write the page and run nothing')
    args = parser.parse_args()
    warnings.simplefilter('ignore')
    logging.disable(logging.WARNING)
    data = Path(args.data)
    records = json.loads(data.read_text()) if data.is_file() else {}
    known = jobs()
    records = {key: record for key, record in records.items() if key in known}
    wanted = [key for key in known if not args.only or any(text in key for text in args.only)]
    if not args.redo:
        wanted = [
            k
            for k in wanted
            if k not in records or (args.redo_failed and records[k]['result'] != 'ran')
        ]
    if wanted and not args.page_only:
        _import_everything()
    for key in [] if args.page_only else wanted:
        begun = time.monotonic()
        found = run_in_process(known[key], args.seconds, args.gigabytes)
        package, student, teacher, method, *_ = known[key]
        records[key] = dict(student=student, teacher=teacher, **found)
        data.parent.mkdir(parents=True, exist_ok=True)
        data.write_text(json.dumps(dict(sorted(records.items())), indent=1) + '\n')
        print(f'{key}: {time.monotonic() - begun:.0f} s, {cells(records[key])}', flush=True)
        gc.collect()
    Path(args.out).write_text(make_page(records), encoding='utf-8')


def _import_everything() -> None:
    """Import what the children need, so that each of them begins at once; one thread, as they fork."""
    import torch

    torch.set_num_threads(1)
    import mmdet.models  # noqa: F401
    import mmseg.models  # noqa: F401

    from rawkd_mm import distill_config  # noqa: F401


if __name__ == '__main__':
    main()
