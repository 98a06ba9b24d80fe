#!/usr/bin/env python
"""Write what a distillation did as one HTML file, which needs no network.

Curves of losses, metric and feature geometry; a table of teacher, student alone and distilled student,
also for each class; validation images with what each of them sees; the angle between student and
teacher feature at each position; configuration, environment, command and time.

WORK_DIR is what tools/train.py left, of segmentation or detection. Checkpoints are evaluated on the
validation set of its config, once: the results stay in WORK_DIR/report_cache.json. Start it in the
folder where the training was started if the config has relative paths. docs/report.md explains it.
"""

import argparse
import base64
import contextlib
import copy
import io
import os
import shlex
import sys
import time
import warnings
from functools import cached_property
from pathlib import Path
from typing import NamedTuple
from urllib.error import URLError

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _charts import Line, draw_colour_bar, draw_curves, paint_map
from _common import add_cfg_options
from _work_dir import WorkDir, WorkDirError

TEMPLATE = Path(__file__).with_name('report.html.jinja')
TEACHER, ALONE, DISTILLED = 'teacher', 'student alone', 'distilled'
COLOURS = {DISTILLED: 0, ALONE: 1, TEACHER: 2}
NEEDS_HOOK = (
    "Not logged. To log it, a config needs custom_hooks = [dict(type='FeatureGeometryHook')]."
)
NO_BASELINE = (
    'There is no student alone to compare with. Train one with tools/train.py CONFIG --student-alone, '
    'and add it with --baseline WORK_DIR.'
)


class ReportError(Exception):
    """The report cannot be written; the message says why and what to do."""


class Model(NamedTuple):
    """A model to evaluate.

    Attributes:
        cfg: Config with its model, and the data and evaluators of the report.
        checkpoint: Path or URL.
    """

    cfg: object
    checkpoint: str


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('work_dir', type=Path, metavar='WORK_DIR', help='of a training')
    parser.add_argument(
        '--baseline', type=Path, metavar='WORK_DIR', help='of the same student trained alone'
    )
    parser.add_argument(
        '--teacher-ckpt',
        metavar='PATH',
        help="path or URL of the teacher's weights; default: the config's model.teacher_ckpt",
    )
    parser.add_argument(
        '-o', '--out', type=Path, metavar='FILE', help='default: WORK_DIR/report.html'
    )
    parser.add_argument(
        '--images',
        type=int,
        default=4,
        metavar='N',
        help='validation images to show, evenly from all of them (default: 4; 0 for none)',
    )
    parser.add_argument(
        '--logs-only',
        action='store_true',
        help='only what the logs tell: no data or weights are needed, nothing is evaluated',
    )
    add_cfg_options(parser)
    args = parser.parse_args()
    if args.images < 0:
        parser.error(f'--images must be at least 0, got {args.images}')
    return args


class Report:
    """Collects what the template shows.

    Args:
        args (argparse.Namespace): See :func:`parse_args`.

    Raises:
        WorkDirError: If a work dir is none.
        UsageError: If a config names a model that does not exist.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        from rawkd_mm.training import is_distillation, load_config, package_of

        self.args = args
        self.run = WorkDir.find(args.work_dir)
        self.baseline = args.baseline and WorkDir.find(args.baseline)
        self.cfg = load_config(str(self.run.config_file), args.cfg_options)
        self.is_distillation = is_distillation(self.cfg)
        self.label = DISTILLED if self.is_distillation else 'this training'
        if args.teacher_ckpt:
            if not self.is_distillation:
                raise ReportError(f'--teacher-ckpt: {args.work_dir} is no distillation')
            self.cfg.model.teacher_ckpt = args.teacher_ckpt
        if self.baseline is not None:
            self.baseline_cfg = load_config(str(self.baseline.config_file))
            if is_distillation(self.baseline_cfg):
                raise ReportError(
                    f'--baseline: {args.baseline} is a distillation, too. Give the work dir of the '
                    'student alone; tools/train.py CONFIG --student-alone trains one.'
                )
        self.is_detection = package_of(self.cfg) == 'mmdet'
        self.percent = 100 if self.is_detection else 1
        self.notes = []
        self._note_progress()
        if args.baseline is None:
            self.notes.append(NO_BASELINE)

    def _note_progress(self) -> None:
        trainings = [(self.run, self.cfg)]
        if self.baseline is not None:
            trainings.append((self.baseline, self.baseline_cfg))
        for work_dir, cfg in trainings:
            done, length, unit = work_dir.progress(cfg)
            if length is not None and done < length:
                self.notes.append(
                    f'The training in {work_dir.folder} is not finished: {unit} {done} of {length}. '
                    'What follows is what it has logged and saved so far.'
                )

    @cached_property
    def models(self) -> dict[str, Model]:
        """The models to evaluate, by their column of the table.

        Raises:
            WorkDirError: If a work dir has no checkpoint.
            ReportError: If the teacher's weights are not there.
        """
        from rawkd_mm.training import student_config, teacher_config

        result = {}
        if self.is_distillation:
            checkpoint = self._teacher_checkpoint()
            if checkpoint is not None:
                result[TEACHER] = Model(teacher_config(self.cfg), checkpoint)
        if self.baseline is not None:
            cfg = copy.deepcopy(self.cfg)  # its data and evaluators
            cfg.model = student_config(self.baseline_cfg).model
            result[ALONE] = Model(cfg, str(self.baseline.find_checkpoint()))
        result[self.label] = Model(student_config(self.cfg), str(self.run.find_checkpoint()))
        return result

    def _teacher_checkpoint(self) -> str | None:
        from rawkd_mm.training import student_config, teacher_config

        checkpoint = self.cfg.model.get('teacher_ckpt')
        if not checkpoint:
            self.notes.append(
                'The config names no weights of the teacher (model.teacher_ckpt): it is left out.'
            )
            return None
        if '://' not in checkpoint and not Path(checkpoint).is_file():
            raise ReportError(
                f"the teacher's weights are not there: {checkpoint!r} is no file (current folder: "
                f'{Path.cwd()}). Give them with --teacher-ckpt PATH, or leave out what needs them '
                'with --logs-only.'
            )
        student, teacher = (
            numbers_of_classes(make(self.cfg).model) for make in (student_config, teacher_config)
        )
        if student and teacher and not student & teacher:
            self.notes.append(
                f'The teacher tells {sorted(teacher)} classes apart, the student {sorted(student)}: '
                'it is not evaluated.'
            )
            return None
        return checkpoint

    def charts(self, evaluations: dict) -> list[dict]:
        """Draw the curves; gives title, svg and, where there is nothing to draw, why."""
        result = []

        def add(title: str, ylabel: str, lines: list, text: str, missing: str = 'Not logged.'):
            lines = [line for line in lines if line.points not in ({}, None)]
            svg = draw_curves(f'chart{len(result)}', title, ylabel, lines) if lines else None
            result.append(dict(title=title, svg=svg, text=text if lines else missing))

        task = [name for name in self.run.losses if not name.startswith('distill.')]
        add(
            'Task loss',
            'sum of the losses',
            [
                Line(self.label, total(self.run, task), COLOURS[DISTILLED]),
                *self._of_baseline(lambda run: total(run, run.losses)),
            ],
            "The student's own losses, without those of the distillation.",
        )
        if len(task) > 1:
            plain = [name.removeprefix('student.') for name in task]
            lines = [
                Line(short, self.run.curve(name), i)
                for i, (name, short) in enumerate(zip(task, plain))
            ]
            lines += [
                Line(f'{short}, alone', self.baseline.curve(short), i, '--')
                for i, short in enumerate(plain)
                if self.baseline is not None
            ]
            add('Task losses, one by one', 'loss', lines, 'Dashed: the student alone.')
        if self.is_distillation:
            names = [name for name in self.run.losses if name.startswith('distill.')]
            lines = [
                Line(name.removeprefix('distill.'), self.run.curve(name), i)
                for i, name in enumerate(names)
            ]
            add('Distillation losses', 'loss', lines, 'As logged, multiplied by their weights.')
        for name in self._main_metrics():
            levels = [
                Line(TEACHER, self.percent * evaluations[TEACHER].metrics[name], 2, '--')
                for _ in range(TEACHER in evaluations and name in evaluations[TEACHER].metrics)
            ]
            add(
                f'{short_name(name)} on the validation set',
                f'{short_name(name)} (%)',
                [
                    Line(self.label, self._percent(self.run.curve(name)), COLOURS[DISTILLED]),
                    *self._of_baseline(lambda run, name=name: self._percent(run.curve(name))),
                    *levels,
                ],
                'Validations during the training.',
            )
        if self.is_distillation and not self.run.geometry:
            add('m, n, mn/N and cos θ of the features', '', [], '', NEEDS_HOOK)
        elif self.is_distillation:
            for title, ylabel, values, text in GEOMETRY:
                lines = [
                    Line(f'{label} {pair}'.strip(), points.get(value), i, style)
                    for i, (pair, points) in enumerate(self.run.geometry.items())
                    for value, label, style in values
                ]
                add(title, ylabel, lines, text)
        return result

    def _of_baseline(self, points) -> list[Line]:
        return [Line(ALONE, points(run), COLOURS[ALONE]) for run in filter(None, [self.baseline])]

    def _percent(self, points: dict) -> dict:
        return {step: self.percent * value for step, value in points.items()}

    def _main_metrics(self) -> list[str]:
        """Choose what is drawn: mIoU of segmentors, mAP of boxes and masks of detectors."""
        names = [name for name in self.run.metrics if name.endswith(('mIoU', '_mAP', '/mAP'))]
        return names or self.run.metrics[:1] or ['metric']

    def metric_table(self, evaluations: dict) -> dict:
        """Make the table of metrics: columns, and rows of a name and values in percent."""
        values = {column: e.metrics for column, e in evaluations.items()}
        if not values:  # --logs-only
            values = {ALONE: self.baseline.last_metrics()} if self.baseline else {}
            values[self.label] = self.run.last_metrics()
        names = list(dict.fromkeys(name for metrics in values.values() for name in metrics))
        rows = [
            (
                short_name(name),
                {c: percent_of(m.get(name), self.percent) for c, m in values.items()},
            )
            for name in names
        ]
        return self._table(list(values), rows)

    def class_table(self, evaluations: dict) -> dict | None:
        """Make the table of classes, sorted by the change over the student alone."""
        measured = {c: e for c, e in evaluations.items() if e.classes}
        if not measured:
            return None
        names = list(dict.fromkeys(name for e in measured.values() for name in e.classes))
        rows = [(n, {c: e.classes.get(n) for c, e in measured.items()}) for n in names]
        table = self._table(list(measured), rows)
        nothing = float('-inf')
        if ALONE in measured:
            table['rows'].sort(key=lambda row: nothing if row[2][0] is None else row[2][0])
            table['rows'].reverse()
        table['measure'] = next(iter(measured.values())).measure
        return table

    def _table(self, columns: list, rows: list) -> dict:
        others = [column for column in (ALONE, TEACHER) if column in columns]
        return dict(
            columns=columns,
            deltas=[f'vs {column.removeprefix("student ")}' for column in others],
            rows=[
                (
                    name,
                    [values.get(column) for column in columns],
                    [difference(values.get(self.label), values.get(column)) for column in others],
                )
                for name, values in rows
            ],
        )


GEOMETRY = [
    (
        'm and n: norms of the features',
        'norm',
        [('n', 'n', '-'), ('m', 'm', '--')],
        'n: student (behind its connector), m (dashed): teacher; of the whole map, mean of the batch.',
    ),
    (
        'mn/N',
        'mn/N',
        [('mn_over_N', '', '-')],
        'By which the angular part of mean squared error is scaled, Eq. (10) of the paper.',
    ),
    (
        'cos θ between student and teacher',
        'cos θ',
        [('cos_theta', '', '-')],
        'Of the whole map as one vector, mean of the batch; 1 is the same direction.',
    ),
]


def total(run: WorkDir, names: list[str]) -> dict[int, float]:
    """Sum losses, at the iterations that have all of them."""
    curves = [run.curve(name) for name in names]
    steps = [step for step in curves[0] if all(step in c for c in curves)] if curves else []
    return {step: sum(curve[step] for curve in curves) for step in steps}


def short_name(metric: str) -> str:
    """'coco/bbox_mAP_50' -> 'bbox mAP 50'."""
    return metric.rpartition('/')[2].replace('_', ' ')


def percent_of(value: float | None, factor: int) -> float | None:
    """Give percent; None for what COCO gives as -1, where there is no such object."""
    return None if value is None or value < 0 or value != value else factor * value


def difference(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other


def numbers_of_classes(model) -> set[int]:
    """Find every num_classes in a model's config."""
    found = set()
    if isinstance(model, dict):
        if isinstance(model.get('num_classes'), int):
            found.add(model['num_classes'])
        model = list(model.values())
    if isinstance(model, (list, tuple)):
        for item in model:
            found |= numbers_of_classes(item)
    return found


def evaluate_all(report: Report, progress) -> dict:
    """Evaluate the models, as far as they were not before."""
    from _evaluation import EvaluationCache, evaluate
    from mmengine.device import get_device

    from rawkd_mm.training import CheckpointError

    cache = EvaluationCache(report.run.folder / 'report_cache.json')
    result = {}
    for name, model in report.models.items():
        with progressing(progress, f'evaluating: {name}') as advance:
            try:
                result[name] = cache.get(
                    model.cfg, model.checkpoint, lambda m=model: evaluate(*m, get_device(), advance)
                )
            except CheckpointError as error:
                if name != TEACHER:
                    raise CheckpointError(f'{model.checkpoint}: {error}') from error
                # a distillation does without the part behind the teacher's last feature
                report.notes.append(f'The teacher is not evaluated: {error}')
    return result


@contextlib.contextmanager
def progressing(progress, label: str):
    """Show a bar; gives the function to call with the number done and of all."""
    task = progress.add_task(label, total=None, note='')

    def advance(done: int, number: int) -> None:
        progress.update(task, completed=done, total=number)

    yield advance
    if progress.tasks[task].total is None:  # there was nothing to do
        progress.update(task, completed=1, total=1)


def make_pictures(report: Report, columns: list, progress) -> dict:
    """Draw images, as the models of ``columns`` see them, and the angles of each pair."""
    from _pictures import build_dataset, images_of, load_model, predictions_of, truth_of
    from mmengine.device import get_device

    models = {name: report.models[name] for name in columns}
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = build_dataset(report.cfg)
        count = min(report.args.images, len(dataset))
        shown = [i * len(dataset) // count for i in range(count)]
        drawn = {'image': images_of(dataset, shown), 'ground truth': truth_of(dataset, shown)}
        with progressing(progress, 'drawing predictions') as advance:
            for done, (name, model) in enumerate(models.items(), 1):
                network = load_model(*model, get_device())
                drawn[name] = predictions_of(network, dataset, shown)
                advance(done, len(models))
        with progressing(progress, 'measuring angles') as advance:
            angles = find_angles(report, models, dataset, shown, advance)
    rows = [
        dict(index=i, pictures=[(title, to_url(pictures[k])) for title, pictures in drawn.items()])
        for k, i in enumerate(shown)
    ]
    return dict(rows=rows, number=len(dataset), angles=angles and paint_angles(angles, shown))


def find_angles(report: Report, models: dict, dataset, shown: list, advance) -> list | None:
    """Measure the angles; None where the training has no pairs of features."""
    import _feature_angles as fa
    from _pictures import build_model, read_checkpoint
    from mmengine.device import get_device

    from rawkd_mm.algorithms import FrozenTeacherDistill
    from rawkd_mm.training import CheckpointError, replace_sync_batchnorm

    if not report.is_distillation or not report.cfg.model.get('teacher_ckpt'):
        return None
    algorithm = build_model(report.cfg)
    pairs = getattr(algorithm.distiller, 'pairs', None)
    if not isinstance(algorithm, FrozenTeacherDistill) or not pairs:
        return None
    replace_sync_batchnorm(algorithm)
    algorithm.to(get_device()).eval()
    checkpoints = {
        ours: read_checkpoint(models[theirs].checkpoint)
        for ours, theirs in ((fa.DISTILLED, report.label), (fa.ALONE, ALONE))
        if theirs in models
    }
    try:
        return fa.measure_angles(algorithm, checkpoints, dataset, shown, advance)
    except CheckpointError as error:
        raise ReportError(f'--baseline: {error} It must be of the same student.') from error


def paint_angles(angles: list, shown: list) -> list[dict]:
    """Paint the angles of each pair on a scale of its own."""
    import _feature_angles as fa
    from _pictures import Picture

    result = []
    for number, pair in enumerate(angles):
        every = [values for maps in pair.maps.values() for values in maps]
        low, high = float(min(v.min() for v in every)), float(max(v.max() for v in every))
        kinds = [k for k in (fa.ALONE, fa.DISTILLED, fa.CONNECTOR) if k in pair.maps]
        rows = [
            dict(
                index=index,
                pictures=[
                    (
                        f'{kind}: {pair.maps[kind][k].mean():.0f}°',
                        to_url(Picture(paint_map(pair.maps[kind][k], low, high))),
                    )
                    for kind in kinds
                ],
            )
            for k, index in enumerate(shown)
        ]
        bar = draw_colour_bar(f'angles{number}', low, high, 'angle (degrees)')
        means = [(kind, pair.mean(kind)) for kind in kinds]
        result.append(
            dict(pair=pair.pair, rows=rows, bar=bar, means=means, fitted_on=pair.fitted_on)
        )
    return result


def to_url(picture) -> str:
    """Draw a picture with its boxes as a WebP image within a data URL."""
    import matplotlib.pyplot as plt
    from _pictures import show

    height, width = picture.pixels.shape[:2]
    figure = plt.figure(figsize=(2.2, 2.2 * height / width))
    show(figure.add_axes((0, 0, 1, 1)), picture)
    stream = io.BytesIO()
    # few colours, of a label map or an angle, are kept as they are
    exact = not picture.boxes and height * width <= 128 * 128
    figure.savefig(
        stream, format='webp', dpi=175, pil_kwargs=dict(lossless=exact, quality=85, method=4)
    )
    plt.close(figure)
    return 'data:image/webp;base64,' + base64.b64encode(stream.getvalue()).decode()


def render(report: Report, evaluations: dict, pictures: dict | None) -> str:
    """Fill the template."""
    from jinja2 import Environment, StrictUndefined

    from rawkd_mm.compat import installed_versions

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters['cell'] = lambda v: '–' if v is None else f'{v:.1f}'
    environment.filters['delta'] = lambda v: '' if v is None else f'{v:+.1f}'.replace('-', '−')
    runs = {report.label: report.run} | ({ALONE: report.baseline} if report.baseline else {})
    template = environment.from_string(TEMPLATE.read_text(encoding='utf-8'))
    return template.render(
        title=report.args.work_dir.resolve().name,
        task='Detection' if report.is_detection else 'Segmentation',
        notes=report.notes,
        metrics=report.metric_table(evaluations),
        evaluated=bool(evaluations),
        classes=report.class_table(evaluations),
        charts=report.charts(evaluations),
        pictures=pictures,
        is_distillation=report.is_distillation,
        runs=runs,
        config=report.cfg.pretty_text,
        versions=[' '.join(found) for found in installed_versions().values() if found],
        command=shlex.join(['python', os.path.relpath(sys.argv[0]), *sys.argv[1:]]),
        written=time.strftime('%Y-%m-%d %H:%M:%S'),
    )


def write_report(args: argparse.Namespace) -> Path:
    """Write the report; gives the file, or ends the program with a message."""
    from _trainings import make_progress

    # takes seconds, and comes before a config is read, as in train.py
    from rawkd_mm.training import CheckpointError, UsageError

    try:
        report = Report(args)
        evaluations, pictures = {}, None
        if not args.logs_only:
            with make_progress() as progress:
                evaluations = evaluate_all(report, progress)
                if args.images:
                    pictures = make_pictures(report, list(evaluations), progress)
        text = render(report, evaluations, pictures)
    except FileNotFoundError as error:
        sys.exit(
            f'report.py: error: the validation data are not there: {error} (current folder: '
            f'{Path.cwd()}). Start the report where the training was started, say where they are '
            'with --cfg-options val_dataloader.dataset.data_root=DIR (val_evaluator.ann_file=FILE, too, '
            'for COCO), or leave out what needs them with --logs-only.'
        )
    except URLError as error:
        sys.exit(
            f'report.py: error: weights cannot be downloaded: {error}. Give those of the teacher '
            'with --teacher-ckpt PATH, or leave out what needs them with --logs-only.'
        )
    except (ReportError, WorkDirError, UsageError, CheckpointError) as error:
        sys.exit(f'report.py: error: {error}')
    out = args.out or args.work_dir / 'report.html'
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding='utf-8')
    return out


def main() -> None:
    args = parse_args()
    import matplotlib
    from mmengine.logging import MMLogger

    matplotlib.use('agg')
    MMLogger.get_instance('report', log_level='ERROR')  # else it prints what it loads, and tables
    warnings.filterwarnings('ignore', module='mm(cv|seg|det|engine)')
    print(write_report(args))


if __name__ == '__main__':
    main()
