#!/usr/bin/env python
"""Write the config of a distillation from the configs of a teacher and a student.

CONFIG is a path, or the name of a published config such as
mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py. The student keeps its own data and
schedule. The result is built, given the teacher's weights and trained for one iteration on made-up
images before it is written. A table says what learns from what, what it costs and what to mind.
"""

import argparse
import contextlib
import copy
import io
import logging
import os
import shlex
import sys
import tempfile
import warnings as warnings_module
from pathlib import Path
from typing import Any, NamedTuple

import _common  # noqa: F401 (finds the checkout's package)

ROOT = Path(__file__).resolve().parents[1]
# Images of the trial where there is no GPU: the longer side has at most as many pixels.
CPU_SIZE = 256
DEFAULT_SIZE = (256, 256)

_PAPER_WEIGHT = "the paper's weight on COCO; for segmentation it is an assumption"
_NAIVE_WEIGHT = (
    'assumption: the weight depends on the pair (in the paper 10 to 1000 for segmentation): '
    'tools/analysis_tools/weight_sweep.py finds it'
)
# Of the paper's pairs: UPerNet needs 10, PSPNet 100 or 1000.
_NAIVE_WEIGHTS = {'UPerHead': 10.0}
_CLIP = dict(clip_grad=dict(max_norm=35, norm_type=2))


class Method(NamedTuple):
    """What a method puts into the config.

    Attributes:
        loss: The loss of every pair.
        note: The comment on it.
        distiller: Further arguments of the distiller.
        optim_wrapper: Changes of the student's.
    """

    loss: dict
    note: str
    distiller: dict = {}
    optim_wrapper: dict = {}


def choose_method(name: str, model) -> Method:
    """Give a method's loss and connectors for a kind of student, as the zoo has them."""
    from rawkd_mm.training import UsageError

    is_segmentor = hasattr(model, 'decode_head')
    two_stages = hasattr(model, 'roi_head')
    kind = 'two-stage' if two_stages else 'one-stage'
    if name in ('lad', 'cad', 'pad'):
        return Method(dict(type=f'{name.upper()}Loss', loss_weight=3.0), _PAPER_WEIGHT)
    if name in ('naive', 'md'):
        kind = 'NaiveFeatureLoss' if name == 'naive' else 'MagnitudeLoss'
        head = type(getattr(model, 'decode_head', None)).__name__
        return Method(dict(type=kind, loss_weight=_NAIVE_WEIGHTS.get(head, 100.0)), _NAIVE_WEIGHT)
    if name == 'nfd':
        note = 'assumption: NFD is 2 (1 - correlation), so that 1.5 weighs it as 3 weighs CAD'
        return Method(dict(type='NFDLoss', loss_weight=1.5), note)
    if name == 'cwd':
        weight = 5.0 if is_segmentor else 10.0
        kind = 'segmentation, on the classes' if is_segmentor else 'detectors'
        loss = dict(type='ChannelWiseDivergence', tau=1.0, loss_weight=weight)
        return Method(loss, f"MMRazor's values for {kind}")
    if name == 'mgd':
        alpha, share = (5e-7, 0.45) if two_stages else (2e-5, 0.75 if is_segmentor else 0.65)
        kind = (
            'segmentation (the last map of the backbone)' if is_segmentor else f'{kind} detectors'
        )
        connector = dict(
            type='MGDConnector', student_channels='auto', teacher_channels='auto', lambda_mgd=share
        )
        return Method(
            dict(type='MGDLoss', alpha_mgd=alpha),
            f'the published values for {kind}',
            dict(student_connector=connector),
            _CLIP,
        )
    if is_segmentor:
        raise UsageError(
            f'--method {name} is for detectors, and the student {type(model).__name__} is none. For '
            'segmentation there are lad, cad, pad, naive, md, nfd, cwd, mgd'
        )
    if name == 'fgd':
        values = (5e-5, 2.5e-5, 5e-5, 5e-7, 0.5) if two_stages else (1e-3, 5e-4, 1e-3, 5e-6, 0.5)
        context = dict(type='GlobalContextConnector', in_channels='auto')
        return Method(
            dict(
                type='FGDLoss',
                **dict(zip(('alpha', 'beta', 'gamma', 'lambda_', 'temperature'), values)),
            ),
            f"the paper's values for {kind} detectors",
            dict(student_connector=context, teacher_connector=dict(context)),
            _CLIP,
        )
    masks, pools = (7e-5, 4e-3) if two_stages else (4e-4, 2e-2)
    loss = dict(
        type='FBKDLoss',
        mask_l2_weight=masks,
        channel_weight=pools,
        spatial_weight=pools,
        nonloacl_weight=masks,
    )
    return Method(loss, f"FKD's published values for {kind} detectors")


# Methods that take of a two-stage detector what its RoI head reads; the neck's further level is
# pooled from the one before.
OF_ROI_LEVELS = ('fgd', 'mgd', 'fkd')
# Methods that let a RetinaNet begin with the teacher's weights in these parts.
INHERIT = ('fgd', 'mgd')
INHERITED = ('neck', 'bbox_head')
METHODS = ('lad', 'cad', 'pad', 'naive', 'md', 'nfd', 'cwd', 'mgd', 'fgd', 'fkd')


def fkd_connectors(level: int) -> dict:
    """Give FKD's connectors of a level, 0 for the finest: the finer the map, the more they pool."""
    reduction, pool = ((4, 4), (4, 2), (2, 1))[min(level, 2)]
    shared = dict(
        in_channels='auto',
        reduction=reduction,
        mode='dot_product',
        sub_sample=True,
        maxpool_stride=pool,
    )
    return dict(
        student_connector=dict(type='FBKDStudentConnector', **shared),
        teacher_connector=dict(type='FBKDTeacherConnector', **shared),
    )


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--teacher', required=True, metavar='CONFIG', help="the teacher's config")
    parser.add_argument(
        '--teacher-ckpt', required=True, metavar='PATH', help='path or URL of its trained weights'
    )
    parser.add_argument('--student', required=True, metavar='CONFIG', help="the student's config")
    parser.add_argument(
        '--method',
        required=True,
        choices=METHODS,
        help='what compares the features; fgd and fkd are for detectors',
    )
    parser.add_argument(
        '--features',
        nargs='+',
        default=['auto'],
        metavar='auto|STUDENT=TEACHER',
        help='what is compared. auto (default): of a segmentor the last feature before the '
        'classifier (cwd: the scores of the main head), of a detector every level of the neck (fgd, '
        "mgd, fkd of two stages: those that the RoI head reads). Or pairs of modules' paths, such as "
        'backbone[3]=backbone[3] decode_head.convs=decode_head.bottleneck, which '
        'tools/inspect_features.py lists',
    )
    parser.add_argument('-o', '--out', required=True, metavar='OUT.py', help='the file to write')
    parser.add_argument('--force', action='store_true', help='overwrite OUT.py if it exists')
    parser.add_argument(
        '--no-check',
        action='store_true',
        help="write without loading the teacher's weights and without the trial iteration",
    )
    args = parser.parse_args()
    for name in ('teacher', 'student'):
        value = getattr(args, name)
        if '::' not in value and not Path(value).is_file():
            parser.error(
                f'--{name} {value!r} is not a file (current folder: {os.getcwd()}) and not the '
                "name of a published config, such as 'mmseg::FOLDER/FILE.py'"
            )
    ckpt = args.teacher_ckpt
    if '://' not in ckpt and not args.no_check and not Path(ckpt).is_file():
        parser.error(
            f'--teacher-ckpt {ckpt!r} is not a file (current folder: {os.getcwd()}). With '
            '--no-check the config is written without it'
        )
    if Path(args.out).suffix != '.py':
        parser.error(f'-o {args.out!r} must end in .py')
    if Path(args.out).exists() and not args.force:
        parser.error(f'-o {args.out!r} exists. Choose another name, or overwrite it with --force')
    wrong = [f for f in args.features if f != 'auto' and len(f.split('=')) != 2]
    if wrong or ('auto' in args.features and len(args.features) > 1):
        parser.error(
            f'--features {" ".join(args.features)}: expected either auto or pairs '
            'STUDENT=TEACHER, such as decode_head.convs=decode_head.bottleneck'
        )
    return args


def written_out(cfg):
    """Give a config's model as a teacher's is written: complete, without weights to begin with."""
    from rawkd_mm.training import inline_models

    model = copy.deepcopy(cfg.model)
    if cfg.get('data_preprocessor') is not None:
        model.setdefault('data_preprocessor', copy.deepcopy(cfg.data_preprocessor))
    if cfg.get('default_scope'):
        model.setdefault('_scope_', cfg.default_scope)
    whole = copy.deepcopy(cfg)
    whole.model = dict(architecture=dict(type=''), teacher=model, teacher_ckpt='given')
    return inline_models(whole).model.teacher


def build_alone(cfg, role: str):
    """Build a config's model, without weights to begin with."""
    import torch

    from rawkd_mm.teachers.frozen_teacher import build_teacher
    from rawkd_mm.training import UsageError

    try:
        with torch.random.fork_rng(devices=[]):
            return build_teacher(written_out(cfg))
    except Exception as error:
        raise UsageError(f'the {role} cannot be built: {type(error).__name__}: {error}') from error


def read_config(name: str, role: str):
    from rawkd_mm.training import UsageError, load_config, refuse_what_is_no_text, student_config

    cfg = student_config(load_config(name))
    if 'model' not in cfg:
        raise UsageError(f'--{role} {name}: the config has no model, only {sorted(cfg.keys())}')
    if '::' not in name:  # its content is written out: all of the student's, the teacher's model
        written = cfg if role == 'student' else dict(model=written_out(cfg))
        refuse_what_is_no_text(written, f'--{role} {name}')
    return cfg


def check_trainable(name: str, cfg) -> None:
    """Refuse a student whose config has nothing to train it with, as MMEngine's Runner would."""
    from rawkd_mm.training import UsageError

    missing = [k for k in ('train_dataloader', 'train_cfg', 'optim_wrapper') if not cfg.get(k)]
    if missing:
        raise UsageError(
            f'--student {name}: the config has no {", ".join(missing)}, so that nothing can be '
            'trained. The student keeps its own data and schedule: add them to its config'
        )


def trial_size(cfg) -> tuple[int, int]:
    """Give the student's crop, or, without a GPU, a smaller image of that shape."""
    from mmengine.device import get_device

    from rawkd_mm.training import training_images

    height, width = (training_images(cfg) or DEFAULT_SIZE)[:2]
    longer = max(height, width)
    if get_device() != 'cpu' or longer <= CPU_SIZE:
        return height, width
    return tuple(max(32, round(x * CPU_SIZE / longer / 32) * 32) for x in (height, width))


def choose_pairs(args, student, teacher, size) -> tuple[list, list[str]]:
    """Give the pairs of features, of an image of a size (height, width), and notes on what was left."""
    from rawkd_mm.features import (
        find_classifier,
        find_features,
        image_channels,
        match_features,
        measure_feature,
    )
    from rawkd_mm.training import UsageError

    models = dict(student=student, teacher=teacher)
    channels = {role: image_channels(model) for role, model in models.items()}
    if channels['student'] != channels['teacher']:
        raise UsageError(
            f'the student takes images of {channels["student"]} channels and the teacher of '
            f'{channels["teacher"]}, so that they cannot see the same images. Give both models the '
            'same kind of image (in_channels of the backbone)'
        )
    shape = (channels['student'], *size)
    if args.features != ['auto']:
        pairs = [
            [measure_feature(m, text, shape) for m, text in zip((student, teacher), f.split('='))]
            for f in args.features
        ]
        return pairs, []
    if args.method == 'cwd' and hasattr(student, 'decode_head'):
        scores = [find_classifier(model, role, shape) for role, model in models.items()]
        numbers = [feature.shape[0] for feature in scores]
        if numbers[0] != numbers[1]:
            raise UsageError(
                f'--method cwd compares the scores of the classes, and the student has {numbers[0]}, '
                f"the teacher {numbers[1]} (outputs of the student's {scores[0].source.text} and of "
                f"the teacher's {scores[1].source.text}). Name other features, or take another method"
            )
        return [scores], []
    found = [find_features(model, role, shape) for role, model in models.items()]
    pairs, alone = match_features(*found)
    notes = [f'No partner of the same stride, left out: {", ".join(alone)}.'] if alone else []
    if args.method in OF_ROI_LEVELS and hasattr(student, 'roi_head'):
        number = roi_levels(student)
        kept = [pair for pair in pairs if (pair[0].source.index or 0) < number]
        if kept and len(kept) < len(pairs):
            left = ', '.join(ours.source.text for ours, _ in pairs if (ours, _) not in kept)
            notes.append(
                f'Left out, as {args.method.upper()} takes the levels that the RoI head reads: {left}.'
            )
            pairs = kept
    return pairs, notes


def roi_levels(model) -> int:
    """Give how many levels of its neck a two-stage detector's RoI head reads, the finest."""
    extractor = model.roi_head.bbox_roi_extractor
    extractor = extractor if hasattr(extractor, 'featmap_strides') else extractor[0]
    return len(extractor.featmap_strides)


def find_inherited(args, student, teacher) -> tuple[list[str] | None, list[str]]:
    """Give the parts of a student that begin with the teacher's weights, and a note if they cannot.

    FGD and MGD let a RetinaNet inherit neck and head ("inheriting strategy").
    """
    if args.method not in INHERIT or type(student).__name__ != 'RetinaNet':
        return None, []
    for part in INHERITED:
        ours, theirs = (
            {n: tuple(v.shape) for n, v in getattr(m, part).state_dict().items()}
            if hasattr(m, part)
            else {}
            for m in (student, teacher)
        )
        if ours != theirs:
            return None, [
                f'{args.method.upper()} lets a RetinaNet begin with the neck and the head of its '
                f"teacher. Here it begins with its own: the teacher's {part} has other parameters."
            ]
    return [*INHERITED], []


def write_entry(key: str, value: Any) -> str:
    return f'{key} = {write_value(value, before=len(key) + 3)}'


def write_value(value: Any, indent: int = 0, before: int = 0) -> str:
    """Write a value of a config as Python, in lines that can be read.

    A line may have 98 characters; ``before`` of them are taken by what stands before the value.
    """
    if isinstance(value, dict):
        if not all(isinstance(k, str) and k.isidentifier() for k in value):
            items = [f'{k!r}: {{}}' for k in value]
            begin, end = '{', '}'
        else:
            items = [f'{k}={{}}' for k in value]
            begin, end = 'dict(', ')'
        values = list(value.values())
    elif isinstance(value, (list, tuple)):
        begin, end = ('[', ']') if isinstance(value, list) else ('(', ')')
        values, items = list(value), ['{}'] * len(value)
    else:
        return repr(value)
    parts = [
        item.replace('{}', write_value(value, indent + 4, len(item) - 2), 1)
        for item, value in zip(items, values)
    ]
    comma = ',' if isinstance(value, tuple) and len(parts) == 1 else ''
    line = begin + ', '.join(parts) + comma + end
    if '\n' not in line and indent + before + len(line) <= 98:
        return line
    pad = ' ' * (indent + 4)
    return begin + '\n' + ''.join(f'{pad}{part},\n' for part in parts) + ' ' * indent + end


class Code(str):
    """Python code that stands in a config as it is."""

    def __repr__(self) -> str:
        return str(self)


def make_model(
    args, teacher_cfg, method: Method, pairs, dry_run_shape, architecture, inherited=None
) -> dict:
    """Give the model of the distillation."""
    if '::' in args.teacher:
        teacher = dict(cfg_path=args.teacher, pretrained=False)
    else:
        teacher = written_out(teacher_cfg).to_dict()
    entries = []
    for level, (student, partner) in enumerate(pairs):
        entry = dict(student=student.source.text, teacher=partner.source.text)
        if args.method == 'fkd':
            entry.update(fkd_connectors(level))
        entries.append(entry)
    distiller = dict(type='FeatureDistiller', loss=method.loss, **method.distiller, pairs=entries)
    if dry_run_shape is not None:
        distiller['dry_run_shape'] = dry_run_shape
    model = dict(
        type='FrozenTeacherDistill',
        architecture=architecture,
        teacher=teacher,
        teacher_ckpt=args.teacher_ckpt,
    )
    if inherited:
        model['init_student'] = inherited
    return dict(**model, distiller=distiller)


def short_name(config: str) -> str:
    return config if '::' in config else Path(config).name


def compose(
    args, student_cfg, teacher_cfg, method, pairs, dry_run_shape, inherited=None
) -> tuple[str, dict]:
    """Write the config; gives the text and the absolute paths that are left in it."""
    from mmengine.config import Config

    from rawkd_mm.training import join_imports, make_paths_relative

    named = '::' in args.student
    changes = {}
    if method.optim_wrapper:
        changes['optim_wrapper'] = copy.deepcopy(method.optim_wrapper)
        if student_cfg.optim_wrapper.get('clip_grad', {}) is None:
            changes['optim_wrapper']['clip_grad']['_delete_'] = True
    both = (cfg.get('custom_imports') for cfg in (student_cfg, teacher_cfg))
    imports = join_imports(*both, dict(imports=['rawkd_mm'], allow_failed_imports=False))
    logger = (student_cfg.get('default_hooks') or {}).get('logger') or {}
    hook = dict(type='FeatureGeometryHook', interval=logger.get('interval', 50))
    hooks = [*(student_cfg.get('custom_hooks') or []), hook]
    architecture = Code('_base_.model') if named else Code('student')
    model = make_model(args, teacher_cfg, method, pairs, dry_run_shape, architecture, inherited)
    if named:
        model = dict(_delete_=True, **model)
    ours = Config(dict(custom_imports=imports, custom_hooks=hooks)).to_dict()
    relative = Config(dict(teacher=model['teacher'], teacher_ckpt=model['teacher_ckpt']))
    roots = [os.getcwd(), str(ROOT)]
    _, left = make_paths_relative(relative, roots)
    model.update(relative.to_dict())

    header = [
        f'# {args.method.upper()}: {short_name(args.student)} learns from',
        f'# {short_name(args.teacher)}.',
        '# Written by rawkd_mm; it needs that package and no other file but data and weights, whose',
        '# paths are relative to the folder in which the training is started. To train:',
        f'#   python tools/train.py {Path(args.out).name}',
    ]
    body = []
    if named:
        body.append(f'_base_ = {args.student!r}  # data and schedule too')
    else:
        cfg = copy.deepcopy(student_cfg)
        for key in ('custom_imports', 'custom_hooks', 'work_dir'):
            cfg.pop(key, None)
        if method.optim_wrapper:
            cfg.optim_wrapper.update(copy.deepcopy(method.optim_wrapper))
            changes = {}
        left.update(make_paths_relative(cfg, roots)[1])
        student = cfg._cfg_dict.to_dict()
        body.append(
            f'# The student, as {Path(args.student).name} has it.\n'
            + write_entry('student', student.pop('model'))
        )
    body.append(write_entry('custom_imports', ours['custom_imports']))
    text = write_entry('model', model)
    note = f'        # {method.note}\n'
    text = text.replace('        loss=', note + '        loss=', 1)
    what = 'automatically' if args.features == ['auto'] else 'as asked for'
    text = text.replace('        pairs=', f'        # chosen {what}\n        pairs=', 1)
    body.append(text)
    body += [write_entry(key, value) for key, value in changes.items()]
    comment = '# logs the norms of the features and the angle between them'
    body.append(f'{comment}\n' + write_entry('custom_hooks', ours['custom_hooks']))
    if not named:
        rest = '\n'.join(write_entry(key, value) for key, value in student.items())
        body.append(f"# Data and schedule are the student's own.\n{rest}")
    return '\n'.join(header) + '\n' + '\n\n'.join(body) + '\n', left


def read_back(text: str):
    """Read the config that is to be written, as a file in another folder."""
    from mmengine.config import Config

    from rawkd_mm.training import UsageError

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'config.py'
        path.write_text(text, encoding='utf-8')
        try:
            return Config.fromfile(str(path))
        except Exception as error:
            raise UsageError(
                f"the student's config cannot be written as text: {type(error).__name__}: {error}"
            ) from error


def scope_of(cfg):
    """Let the names in a config mean what they mean in a training, for as long as it lasts."""
    from mmengine.registry import DefaultScope

    return DefaultScope.overwrite_default_scope(cfg.get('default_scope'))


def build_algorithm(cfg, with_weights: bool):
    """Build the distillation that a config describes, initialised as a training begins.

    Nothing is downloaded to begin with: the student is random. Without the teacher's weights for
    --no-check.
    """
    from mmengine.registry import MODELS

    from rawkd_mm.training import UsageError
    from rawkd_mm.training.config import remove_pretrained

    model = copy.deepcopy(cfg.model)
    if 'data_preprocessor' in cfg:  # as the Runner does
        model.setdefault('data_preprocessor', copy.deepcopy(cfg.data_preprocessor))
    remove_pretrained(model.architecture)
    if not with_weights:
        model.update(teacher_ckpt=None, allow_random_teacher=True, init_student=None)
    try:
        # the loading of a checkpoint prints its path
        with scope_of(cfg), contextlib.redirect_stdout(io.StringIO()):
            algorithm = MODELS.build(model)
    except Exception as error:
        raise UsageError(f'the distillation cannot be built: {error}') from error
    # As PyTorch leaves them, the weights of large models give losses that are not finite. Some models
    # (SAN) can only begin with pretrained weights: these stay as PyTorch leaves them.
    with scope_of(cfg), contextlib.suppress(AttributeError, OSError):
        algorithm.init_weights()
    return algorithm


def complexity(model, inputs, samples=None) -> tuple[int, int | None]:
    """Count parameters and, where MMEngine's counter can, FLOPs of a forward."""
    import torch
    from mmengine.analysis import get_model_complexity_info
    from torch import nn

    class Forward(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, inputs):
            if samples is None:
                return self.model(inputs)
            result = self.model(inputs, samples, mode='tensor')
            return tuple(x for x in torch.utils._pytree.tree_leaves(result) if torch.is_tensor(x))

    parameters = sum(p.numel() for p in model.parameters())
    training = model.training
    model.eval()
    try:
        # it prints which modules did not run
        with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
            info = get_model_complexity_info(
                Forward(), inputs=(inputs,), show_table=False, show_arch=False
            )
        return parameters, info['flops']
    except Exception:
        # a head that cannot be traced (PointRend's tensor mode, say)
        return parameters, None
    finally:
        model.train(training)


def count_all(algorithm, pairs, size) -> list[tuple[str, int, int | None]]:
    """Give name, parameters and FLOPs of teacher, student and connectors."""
    import torch

    from rawkd_mm.training import made_up_images

    rows = []
    for role in ('teacher', 'student'):
        model = getattr(algorithm, role)
        images, samples = made_up_images(model, size, 1)
        images = torch.stack(images).float()
        rows.append((f'{role}, {type(model).__name__}', *complexity(model, images, samples)))
    connectors = algorithm.distiller.connectors
    parameters = sum(p.numel() for p in connectors.parameters())
    flops = 0
    for pair, (student, teacher) in zip(algorithm.distiller.pairs, pairs):
        aligned = (teacher.shape[0], *teacher.shape[1:])
        for key, shape in (
            (pair.key, student.shape),
            (pair.connector_key('student'), aligned),
            (pair.connector_key('teacher'), aligned),
        ):
            if key in connectors and flops is not None:
                more = complexity(connectors[key], torch.zeros(1, *shape))[1]
                flops = None if more is None else flops + more
    rows.append(('connectors', parameters, flops))
    return rows


def short(number: int | None) -> str:
    if number is None:
        return 'not countable'
    for unit, name in ((1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
        if number >= unit:
            return f'{number / unit:.2f} {name}'
    return str(number)


def find_warnings(args, cfgs, algorithm, pairs, counts) -> list[str]:
    """Say what may be wrong with a pair of models."""
    from rawkd_mm.teachers.frozen_teacher import make_renormalize
    from rawkd_mm.training import class_names, main_head_classes, training_images

    student, teacher = algorithm.student, algorithm.teacher
    result = []
    numbers = main_head_classes(student), main_head_classes(teacher)
    names = tuple(map(class_names, cfgs))
    if numbers[0] != numbers[1]:
        result.append(
            f'Other classes: the student has {numbers[0]}, the teacher {numbers[1]}. Features can '
            'still be compared, if the teacher has learnt about such images.'
        )
    elif None not in names and names[0] != names[1]:
        other = next((a, b) for a, b in zip(*names) if a != b)
        result.append(
            f'Other classes: of {numbers[0]} each, but the student has {other[0]!r} where the '
            f'teacher has {other[1]!r}.'
        )
    if make_renormalize(algorithm.data_preprocessor, teacher.data_preprocessor) is not None:
        result.append(
            "Other normalisation: the teacher's images are made from the student's in each "
            'iteration (mean, std, order of the channels).'
        )
    for ours, theirs in pairs:
        ratio = max(ours.stride, theirs.stride) / min(ours.stride, theirs.stride)
        if ratio > 2.01:
            result.append(
                f'Strides that differ by a factor of {ratio:.1f}: {ours.source.text} has '
                f'{ours.stride:g}, {theirs.source.text} {theirs.stride:g}. What the finer map knows '
                'about positions is lost, or made up, by resizing. tools/inspect_features.py lists '
                'others.'
            )
    if counts[0][1] <= counts[1][1]:
        result.append(
            f'The teacher is not larger than the student: {short(counts[0][1])} parameters, the '
            f'student has {short(counts[1][1])}. Are the two the wrong way round?'
        )
    ours, theirs = map(training_images, cfgs)
    if None not in (ours, theirs) and ours[:2] != theirs[:2]:
        result.append(
            f"Images of another size: the student trains on {ours}, the teacher's config on {theirs}. "
            "The teacher's features are best at the size that it was trained with."
        )
    return result


def print_tables(console, algorithm, pairs, counts, size, notes, warnings) -> None:
    from rich.table import Table

    def cell(feature) -> tuple[str, str, str]:
        return feature.source.text, 'x'.join(map(str, feature.shape)), f'{feature.stride:.3g}'

    table = Table(title=f'Features, of an image of {size[0]}x{size[1]}', title_justify='left')
    for name in ('student', 'shape', 'stride', 'teacher', 'shape', 'stride', 'aligned by'):
        table.add_column(name, overflow='fold')
    for pair, (student, teacher) in zip(algorithm.distiller.pairs, pairs):
        steps = []
        if student.shape[0] != teacher.shape[0]:
            steps.append(f'1x1 convolution {student.shape[0]} -> {teacher.shape[0]}')
        if student.shape[1:] != teacher.shape[1:]:
            steps.append(
                f'bilinear resizing {"x".join(map(str, student.shape[1:]))} -> '
                f'{"x".join(map(str, teacher.shape[1:]))}'
            )
        for role in ('student', 'teacher'):
            config = getattr(pair, f'{role}_connector')
            if config is not None:
                steps.append(f'{config["type"]} ({role})')
        table.add_row(*cell(student), *cell(teacher), ', '.join(steps) or 'nothing needed')
    console.print(table)
    table = Table(title=f'Cost, of an image of {size[0]}x{size[1]}', title_justify='left')
    for name in ('', 'parameters', 'FLOPs'):
        table.add_column(name, justify='right' if name else 'left')
    for name, parameters, flops in counts:
        table.add_row(name, short(parameters), short(flops))
    console.print(table)
    for note in notes:
        console.print(note, markup=False, highlight=False)
    for warning in warnings:
        console.print(f'WARNING: {warning}', markup=False, highlight=False)


def dry_run_shape(student, teacher, pairs, size) -> tuple[int, int, int] | None:
    """Give the distiller another image than its own if that is too small for a model."""
    from rawkd_mm.features import image_channels, measure_feature

    channels = image_channels(student)
    try:
        for ours, theirs in pairs:
            measure_feature(student, ours.source.text, (channels, 64, 64))
            measure_feature(teacher, theirs.source.text, (channels, 64, 64))
    except (RuntimeError, ValueError):
        return (channels, *size)
    return None


class Result(NamedTuple):
    """A distillation that can be written, and what is said about it.

    Attributes:
        text: The config.
        cfg: The same, read.
        algorithm: Built from it.
        pairs: The student's and the teacher's features.
        size: Height and width of the image that the shapes are about.
        notes: What was left out.
        left: Absolute paths in the config, by their keys.
        cfgs: The student's and the teacher's configs.
    """

    text: str
    cfg: Any
    algorithm: Any
    pairs: list
    size: tuple[int, int]
    notes: list[str]
    left: dict
    cfgs: tuple


def make(args: argparse.Namespace, size: tuple[int, int] | None = None) -> Result:
    """Compose the config that the arguments ask for and build it; on images of a size or the crop's."""
    from rawkd_mm.features import AutoFeatureError
    from rawkd_mm.training import training_images

    cfgs = read_config(args.student, 'student'), read_config(args.teacher, 'teacher')
    check_trainable(args.student, cfgs[0])
    student, teacher = build_alone(cfgs[0], 'student'), build_alone(cfgs[1], 'teacher')
    method = choose_method(args.method, student)
    images = training_images(cfgs[0])
    crop = images and images[:2]
    size = size or trial_size(cfgs[0])
    try:
        pairs, notes = choose_pairs(args, student, teacher, size)
    except (AutoFeatureError, RuntimeError):
        # some heads pool over more positions than a small image has
        if crop is None or crop == size:
            raise
        size = crop
        pairs, notes = choose_pairs(args, student, teacher, size)
    shape = dry_run_shape(student, teacher, pairs, size)
    inherited, more = find_inherited(args, student, teacher)
    notes += more
    text, left = compose(args, *cfgs, method, pairs, shape, inherited)
    cfg = read_back(text)
    algorithm = build_algorithm(cfg, with_weights=not args.no_check)
    return Result(text, cfg, algorithm, pairs, size, notes, left, cfgs)


def try_out(result: Result) -> tuple[dict[str, float], tuple[int, int]]:
    """Train for one iteration; gives the losses, and height and width of the images.

    Where small images fail, those of the training are tried: a query detector chooses from more
    positions than a small image has, and a deformable convolution wants maps of 3x3.
    """
    from rawkd_mm.training import TrialError, run_one_iteration, training_images

    images = training_images(result.cfgs[0])
    whole = images[:2] if images else (4 * DEFAULT_SIZE[0],) * 2
    for size in (result.size, whole):
        try:
            with scope_of(result.cfg):
                wrapper = result.cfg.optim_wrapper
                return run_one_iteration(result.algorithm, wrapper, size), size
        except TrialError:
            if min(size) >= min(whole):
                raise


def main() -> None:
    args = parse_args()

    # see train.py
    from rich.console import Console

    from rawkd_mm.training import UsageError

    # what this prints says all that the packages below would
    warnings_module.simplefilter('ignore')
    logging.disable(logging.WARNING)
    console = Console(width=None if sys.stdout.isatty() else 140)
    try:
        result = make(args)
        algorithm, pairs, size = result.algorithm, result.pairs, result.size
        counts = count_all(algorithm, pairs, size)
        warnings = find_warnings(args, result.cfgs, algorithm, pairs, counts)
        warnings += [f'An absolute path is left: {k} = {v!r}' for k, v in result.left.items()]
        print_tables(console, algorithm, pairs, counts, size, result.notes, warnings)
        if not args.no_check:
            losses, size = try_out(result)
            values = ', '.join(f'{k} {v:.4g}' for k, v in losses.items() if k.startswith('distill'))
            console.print(
                f'One iteration on 2 made-up images of {size[0]}x{size[1]} ran: loss '
                f'{losses["loss"]:.4g}; {values}',
                markup=False,
                highlight=False,
            )
    except (UsageError, ValueError, RuntimeError) as error:
        sys.exit(f'make_distill_config.py: error: {error}')
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(result.text, encoding='utf-8')
    print(f'{out} is written. To train:\n    python tools/train.py {shlex.quote(str(out))}')


if __name__ == '__main__':
    main()
