"""What a training did, as one HTML file: curves, tables, pictures and how it was made."""

import time
from pathlib import Path
from urllib.error import URLError

from mmengine.device import get_device

from ..compat import version_texts
from ..training import CheckpointError, UsageError
from .evaluation import Evaluation, EvaluationCache, evaluate
from .progress import make_progress, progressing
from .report_charts import draw_charts
from .report_pictures import make_pictures
from .report_subject import ALONE, TEACHER, ReportError, ReportSubject
from .report_tables import class_table, metric_table
from .work_dir import WorkDirError

TEMPLATE = Path(__file__).with_name('report.html.jinja')


def evaluate_all(subject: ReportSubject, progress) -> dict[str, Evaluation]:
    """Evaluate the models, as far as they were not before.

    Args:
        subject (ReportSubject): What the report is about; may get another note.
        progress (rich.progress.Progress): Where bars are shown.

    Returns:
        dict[str, Evaluation]: By name of the model.

    Raises:
        CheckpointError: If weights other than the teacher's are missing or do not fit.
        ReportError: If the teacher's weights are not there.
        WorkDirError: If a work dir has no checkpoint.
    """
    cache = EvaluationCache(subject.run.folder / 'report_cache.json')
    result = {}
    for name, model in subject.models.items():
        with progressing(progress, f'evaluating: {name}') as advance:
            try:
                result[name] = cache.get(
                    model.cfg, model.checkpoint, lambda m=model: evaluate(*m, get_device(), advance)
                )
            except CheckpointError as error:
                if name != TEACHER:
                    raise CheckpointError(f'{model.checkpoint}: {error}') from error
                # a distillation does without the part behind the teacher's last feature
                subject.notes.append(f'The teacher is not evaluated: {error}')
    return result


def render(subject: ReportSubject, evaluations: dict, pictures: dict | None, command: str) -> str:
    """Fill the template.

    Args:
        subject (ReportSubject): What the report is about.
        evaluations (dict): Name of a model to its Evaluation; empty for what the logs tell.
        pictures (dict | None): See ``make_pictures``; None for none.
        command (str): What the report says to have been written with.

    Returns:
        str: HTML.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters['cell'] = lambda v: '–' if v is None else f'{v:.1f}'
    environment.filters['delta'] = lambda v: '' if v is None else f'{v:+.1f}'.replace('-', '−')
    runs = {subject.label: subject.run} | ({ALONE: subject.baseline} if subject.baseline else {})
    template = environment.from_string(TEMPLATE.read_text(encoding='utf-8'))
    return template.render(
        title=subject.run.folder.resolve().name,
        task='Detection' if subject.is_detection else 'Segmentation',
        notes=subject.notes,
        metrics=metric_table(subject, evaluations),
        evaluated=bool(evaluations),
        classes=class_table(subject, evaluations),
        charts=draw_charts(subject, evaluations),
        pictures=pictures,
        is_distillation=subject.is_distillation,
        runs=runs,
        config=subject.cfg.pretty_text,
        versions=list(version_texts().values()),
        command=command,
        written=time.strftime('%Y-%m-%d %H:%M:%S'),
    )


def write_report(
    work_dir: Path,
    baseline: Path | None = None,
    teacher_ckpt: str | None = None,
    out: Path | None = None,
    images: int = 4,
    logs_only: bool = False,
    cfg_options: dict | None = None,
    command: str = '',
) -> Path:
    """Write the report of a training.

    Args:
        work_dir (Path): Of the training.
        baseline (Path | None): Work dir of the same student trained alone. Defaults to None.
        teacher_ckpt (str | None): Path or URL of the teacher's weights. Defaults to None, the
            config's.
        out (Path | None): The file. Defaults to None, report.html in the work dir.
        images (int): Validation images to show. Defaults to 4.
        logs_only (bool): Show only what the logs tell. Defaults to False.
        cfg_options (dict | None): Entries that override those of the config. Defaults to None.
        command (str): What the report says to have been written with. Defaults to ''.

    Returns:
        Path: The file.

    Raises:
        ReportError: If it cannot be written: work dirs, configs, data or weights are missing or do
            not fit.
    """
    try:
        subject = ReportSubject(work_dir, baseline, teacher_ckpt, cfg_options)
        evaluations, pictures = {}, None
        if not logs_only and subject.can_validate:
            with make_progress() as progress:
                evaluations = evaluate_all(subject, progress)
                if images:
                    pictures = make_pictures(subject, list(evaluations), images, progress)
        text = render(subject, evaluations, pictures, command)
    except FileNotFoundError as error:
        raise ReportError(
            f'the validation data are not there: {error} (current folder: '
            f'{Path.cwd()}). Start the report where the training was started, say where they are '
            'with --cfg-options val_dataloader.dataset.data_root=DIR (val_evaluator.ann_file=FILE, too, '
            'for COCO), or leave out what needs them with --logs-only.'
        ) from error
    except URLError as error:
        raise ReportError(
            f'weights cannot be downloaded: {error}. Give those of the teacher '
            'with --teacher-ckpt PATH, or leave out what needs them with --logs-only.'
        ) from error
    except (WorkDirError, UsageError, CheckpointError) as error:
        raise ReportError(str(error)) from error
    out = out or work_dir / 'report.html'
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding='utf-8')
    return out
