"""The config of a distillation as text."""

import argparse
import copy
import os
import tempfile
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..teachers import teacher_from_name
from ..training import UsageError, join_imports, make_paths_relative
from .methods import Method, find_root
from .models import written_out


def compose(
    args: argparse.Namespace,
    student_cfg: Config,
    teacher_cfg: Config,
    method: Method,
    pairs: list,
    dry_run_shape: tuple[int, int, int] | None,
    inherited: list[str] | None = None,
    unlabelled: dict | None = None,
) -> tuple[str, dict]:
    """Write the config; gives the text and the absolute paths that are left in it."""
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
    if unlabelled is not None:
        hooks.append(unlabelled)
    architecture = Code('_base_.model') if named else Code('student')
    model = make_model(args, teacher_cfg, method, pairs, dry_run_shape, architecture, inherited)
    if named:
        model = dict(_delete_=True, **model)
    added = Config(dict(custom_imports=imports, custom_hooks=hooks))
    relative = Config(dict(teacher=model['teacher'], teacher_ckpt=model['teacher_ckpt']))
    roots = [os.getcwd(), str(find_root())]
    _, left = make_paths_relative(relative, roots)
    if unlabelled is not None:
        left.update(make_paths_relative(added, roots)[1])
    added = added.to_dict()
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
    body.append(write_entry('custom_imports', added['custom_imports']))
    text = write_entry('model', model)
    note = f'        # {method.note}\n'
    text = text.replace('        loss=', note + '        loss=', 1)
    what = 'automatically' if args.features in (['auto'], ['memory']) else 'as asked for'
    text = text.replace('        pairs=', f'        # chosen {what}\n        pairs=', 1)
    body.append(text)
    body += [write_entry(key, value) for key, value in changes.items()]
    comment = '# logs the norms of the features and the angle between them'
    if unlabelled is not None:
        comment += '; brings in the images without labels'
    body.append(f'{comment}\n' + write_entry('custom_hooks', added['custom_hooks']))
    if not named:
        rest = '\n'.join(write_entry(key, value) for key, value in student.items())
        body.append(f"# Data and schedule are the student's own.\n{rest}")
    return '\n'.join(header) + '\n' + '\n\n'.join(body) + '\n', left


def make_model(
    args, teacher_cfg, method: Method, pairs, dry_run_shape, architecture, inherited=None
) -> dict:
    """Give the model of the distillation."""
    if '::' in args.teacher and teacher_from_name(args.teacher) is None:
        teacher = dict(cfg_path=args.teacher, pretrained=False)
    else:
        teacher = written_out(teacher_cfg).to_dict()
    entries = []
    for level, (student, partner) in enumerate(pairs):
        entry = dict(student=student.source.text, teacher=partner.source.text)
        if method.levels:
            entry.update(copy.deepcopy(method.levels[min(level, len(method.levels) - 1)]))
        entries.append(entry)
    distiller = dict(type='FeatureDistiller', loss=method.loss, **method.distiller, pairs=entries)
    if dry_run_shape is not None:
        distiller['dry_run_shape'] = dry_run_shape
    model = dict(
        type='FrozenTeacherDistill',
        architecture=architecture,
        teacher=teacher,
        teacher_ckpt=args.teacher_ckpt,
        teacher_speed='auto',
    )
    if inherited:
        model['init_student'] = inherited
    return dict(**model, distiller=distiller)


def read_back(text: str) -> Config:
    """Read the config that is to be written, as a file in another folder."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'config.py'
        path.write_text(text, encoding='utf-8')
        try:
            return Config.fromfile(str(path))
        except Exception as error:
            raise UsageError(
                f"the student's config cannot be written as text: {type(error).__name__}: {error}"
            ) from error


def short_name(config: str) -> str:
    """Give what a config is called in a comment."""
    return config if '::' in config else Path(config).name


def write_entry(key: str, value: Any) -> str:
    """Write an entry of a config as Python."""
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
