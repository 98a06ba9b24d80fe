"""The paper's Tables 8 and 9 (COCO) with the results of finished trainings beside its numbers."""

import functools
import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ..registry import type_name
from ..training import UsageError, is_distillation, load_config, resolve_model

PAPER = Path(__file__).with_name('paper_tables.json')
# loss -> what the tables call its method
METHODS = {
    'FBKDLoss': 'FKD',
    'ChannelWiseDivergence': 'CWD',
    'FGDLoss': 'FGD',
    'MGDLoss': 'MGD',
    'LADLoss': 'LAD',
    'CADLoss': 'CAD',
}
# type, backbone, its depth, its groups, deformable convolutions -> what the tables call the model
MODELS = {
    ('RetinaNet', 'ResNet', 50, 1, False): 'RetinaNet-R50',
    ('FasterRCNN', 'ResNet', 50, 1, False): 'Faster R-CNN-R50',
    ('MaskRCNN', 'ResNet', 50, 1, False): 'Mask R-CNN-R50',
    ('RetinaNet', 'ResNeXt', 101, 64, False): 'RetinaNet-X101',
    ('CascadeRCNN', 'ResNeXt', 101, 32, True): 'Cascade Mask R-CNN-X101',
}
# what CocoMetric calls the columns
METRICS = {'mAP': 'mAP', 'AP_S': 'mAP_s', 'AP_M': 'mAP_m', 'AP_L': 'mAP_l'}


class NoRowError(Exception):
    """A work dir gives no row of the tables; the message says why."""


class MissingMetricError(Exception):
    """A training that is a row of the tables lacks a value; the message says which."""


class Run(NamedTuple):
    """A finished training.

    Attributes:
        work_dir: Where it is.
        student: What the tables call its student.
        teacher: What the tables call its teacher; None of a student alone.
        method: FKD, ..., CAD, or 'student'.
        metrics: What its last validation logged, such as 'coco/bbox_mAP'.
    """

    work_dir: Path
    student: str
    teacher: str | None
    method: str
    metrics: dict


@functools.cache
def resolve(cfg_path: str) -> dict:
    """Read a model's config, once.

    Args:
        cfg_path (str): Path of a config, or its name in a package.

    Returns:
        dict: The model.

    Raises:
        UsageError: If it cannot be read.
    """
    return resolve_model(dict(cfg_path=cfg_path))


def name_of_model(model: dict, role: str) -> str:
    """Give what the tables call a model.

    Args:
        model (dict): Its config, which may be given by ``cfg_path``.
        role (str): What a message calls it.

    Returns:
        str: Such as 'RetinaNet-R50'.

    Raises:
        NoRowError: If no table has it.
    """
    # finding a name among those of MMDetection takes a second
    model = resolve(model['cfg_path']) if 'cfg_path' in model else model
    backbone = model.get('backbone') or {}
    key = (
        type_name(model.get('type', '')),
        type_name(backbone.get('type', '')),
        backbone.get('depth'),
        backbone.get('groups', 1),
        bool(backbone.get('dcn')),
    )
    if key not in MODELS:
        kind, net, depth, groups, deformable = key
        details = [f'{net}-{depth}']
        details += [f'{groups} groups'] if groups > 1 else []
        details += ['deformable convolutions'] if deformable else []
        raise NoRowError(f'its {role} is a {kind} ({", ".join(details)}), which no table has')
    return MODELS[key]


def name_of_method(distiller: dict, weights: dict) -> str:
    """Give what the tables call the loss of a distiller.

    Args:
        distiller (dict): Its config.
        weights (dict): The paper's loss weight of each method.

    Returns:
        str: FKD, ..., CAD.

    Raises:
        NoRowError: If no table has it, or not with that weight.
    """
    pairs = distiller.get('pairs') or []
    losses = [pair.get('loss') or distiller.get('loss') or {} for pair in pairs]
    kinds = {type_name(loss['type']) for loss in losses if 'type' in loss}
    other = list(distiller.get('distill_losses') or {})
    if len(kinds) != 1 or other or not kinds <= set(METHODS):
        raise NoRowError(
            f'it distils with {sorted(kinds) + other}; a row of the tables has one of '
            f'{", ".join(METHODS)} for all pairs'
        )
    method = METHODS[kinds.pop()]
    for loss in losses:
        weight = loss.get('loss_weight', weights.get(method))
        if weight != weights.get(method, weight):
            raise NoRowError(f"its {method} has the weight {weight}, the paper's {weights[method]}")
    return method


def last_validation(work_dir: Path) -> tuple[Path, dict]:
    """Give the last validation of a work dir, of all its sessions.

    Args:
        work_dir (Path): Of a training.

    Returns:
        tuple[Path, dict]: The folder of the log, and the record.

    Raises:
        NoRowError: If no validation on COCO was logged.
    """
    last = None
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for line in path.read_text(encoding='utf-8').splitlines():
            entry = json.loads(line)
            # after a resume the same epoch may come again: the later one counts
            is_later = last is None or entry['step'] >= last[1]['step']
            if any(name.startswith('coco/') for name in entry) and is_later:
                last = path.parent, entry
    if last is None:
        raise NoRowError('no validation on COCO was logged in it')
    return last


def read_run(work_dir: Path, paper: dict) -> Run:
    """Find out which row the training of a work dir is.

    Args:
        work_dir (Path): Of a training.
        paper (dict): Content of paper_tables.json.

    Returns:
        Run: The row.

    Raises:
        NoRowError: If it is none, or not finished.
    """
    folder, entry = last_validation(work_dir)
    config = folder / 'config.py'
    if not config.is_file():
        raise NoRowError(f'{config.relative_to(work_dir)} is missing')

    cfg = load_config(str(config))
    try:
        teacher, method = None, 'student'
        if is_distillation(cfg):
            student = name_of_model(cfg.model.architecture, 'student')
            teacher = name_of_model(cfg.model.get('teacher') or {}, 'teacher')
            method = name_of_method(cfg.model.get('distiller') or {}, paper['loss_weights'])
        else:
            student = name_of_model(cfg.model, 'student')
    except UsageError as error:
        raise NoRowError(str(error)) from error
    evaluators = cfg.val_evaluator if isinstance(cfg.val_evaluator, list) else [cfg.val_evaluator]
    annotations = [str(e.get('ann_file')) for e in evaluators]
    if not all(name.endswith('instances_val2017.json') for name in annotations):
        raise NoRowError(f'it validates on {", ".join(annotations)}, not on val2017 of COCO')
    epochs = cfg.train_cfg.get('max_epochs')
    if epochs != paper['epochs']:
        raise NoRowError(f"it trains for {epochs} epochs, the paper's for {paper['epochs']}")
    if entry['step'] != epochs:
        raise NoRowError(f'it is not finished: epoch {entry["step"]} of {epochs}')
    pairs = {(p['teacher'], p['student']) for t in paper['tables'] for p in t['pairs']}
    if teacher is not None and (teacher, student) not in pairs:
        raise NoRowError(f'no table has {teacher} as the teacher of {student}')
    return Run(work_dir, student, teacher, method, entry)


def mean_of(runs: list, metric: str, columns: list) -> list | None:
    """Average each column over trainings.

    Args:
        runs (list[Run]): Of one row.
        metric (str): Such as 'bbox'.
        columns (list[str]): Keys of ``METRICS``.

    Returns:
        list[float] | None: Percent; None without any training.

    Raises:
        MissingMetricError: If one of them has not logged a column.
    """
    if not runs:
        return None
    keys = [f'coco/{metric}_{METRICS[column]}' for column in columns]
    missing = [(run.work_dir, key) for run in runs for key in keys if key not in run.metrics]
    if missing:
        raise MissingMetricError(f'{missing[0][0]} logged no {missing[0][1]}')
    return [statistics.mean(100 * run.metrics[key] for run in runs) for key in keys]


def cell(values: list | None, base: list | None, column: int, none: str) -> str:
    """Write a value and what it is above that of the student alone, such as '41.0 (+3.6)'.

    Args:
        values (list | None): Of the row.
        base (list | None): Of the student alone.
        column (int): Which of them.
        none (str): What to write where there are no values.

    Returns:
        str: The cell.
    """
    if values is None:
        return none
    if base is None or values is base:
        return f'{values[column]:.1f}'
    # of rounded numbers, as one would compute it from the table
    delta = round(values[column], 1) - round(base[column], 1)
    return f'{values[column]:.1f} ({delta:+.1f})'


def make_tables(runs: list, paper: dict) -> str:
    """Write the tables as Markdown.

    Args:
        runs (list[Run]): What stands beside the paper's numbers.
        paper (dict): Content of paper_tables.json.

    Returns:
        str: Lines.

    Raises:
        MissingMetricError: See :func:`mean_of`.
    """
    columns = paper['columns']
    lines = [
        f'"Paper": the numbers of {paper["source"]}.',
        '"Ours": the last validation of the trainings listed below. In brackets: the difference to the '
        'student alone in the same column.',
    ]
    for table in paper['tables']:
        lines += ['', f'## {table["title"]}']
        for pair in table['pairs']:
            lines += ['', f'### {pair["teacher"]} ({pair["teacher_mAP"]}) -> {pair["student"]}', '']
            header = [f'{c}, {whose}' for c in columns for whose in ('paper', 'ours')]
            lines.append('| method | ' + ' | '.join(header) + ' |')
            lines.append('|---' * (1 + len(header)) + '|')
            base_ours = None
            for method, stated in pair['rows'].items():
                found = [
                    run
                    for run in runs
                    if run.student == pair['student']
                    and run.method == method
                    and run.teacher in (None, pair['teacher'])
                ]
                ours = mean_of(found, table['metric'], columns)
                name = 'student alone' if method == 'student' else method
                if method == 'student':
                    base_ours = ours
                if len(found) > 1:
                    name += f' (ours: mean of {len(found)})'
                row = [name]
                for i in range(len(columns)):
                    row.append(cell(stated, pair['rows']['student'], i, '-'))
                    row.append(cell(ours, base_ours, i, 'not run'))
                lines.append('| ' + ' | '.join(row) + ' |')
    return '\n'.join(lines)


def list_runs(runs: list, left_out: dict) -> str:
    """List as Markdown which trainings are in the tables.

    Args:
        runs (list[Run]): Those that are.
        left_out (dict): The other work dirs, and why.

    Returns:
        str: Lines.
    """
    lines = ['## Trainings', '']
    for run in runs:
        what = 'alone' if run.teacher is None else f'{run.method} from {run.teacher}'
        lines.append(f'- `{run.work_dir}`: {run.student}, {what}')
    lines += [] if runs else ['None.']
    if left_out:
        lines += ['', 'Left out:', '']
        lines += [f'- `{folder}`: {reason}' for folder, reason in left_out.items()]
    return '\n'.join(lines)


def collect_results(work_dirs: Iterable[Path]) -> tuple[str, str]:
    """Write the tables, and which trainings are in them.

    Args:
        work_dirs (Iterable[Path]): What tools/train.py left.

    Returns:
        tuple[str, str]: The Markdown, and how many of the work dirs are rows: '6 of 13'.

    Raises:
        MissingMetricError: If a training that is a row has not logged a column.
        UsageError: If a config cannot be read.
    """
    paper = json.loads(PAPER.read_text(encoding='utf-8'))
    runs, left_out = [], {}
    for folder in dict.fromkeys(work_dirs):
        try:
            runs.append(read_run(folder, paper))
        except NoRowError as error:
            left_out[folder] = str(error)
    text = '# COCO\n\n' + make_tables(runs, paper) + '\n\n' + list_runs(runs, left_out) + '\n'
    return text, f'{len(runs)} of {len(runs) + len(left_out)}'
