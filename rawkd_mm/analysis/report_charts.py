"""The charts of a report: losses, metrics and the geometry of the features."""

from .charts import Line, draw_curves
from .report_subject import ALONE, DISTILLED, TEACHER, ReportSubject
from .report_tables import short_name
from .work_dir import WorkDir

# The losses of the distillation, on labelled images and on those without labels.
OF_DISTILLATION = ('distill.', 'distill_unlabelled.')
COLOURS = {DISTILLED: 0, ALONE: 1, TEACHER: 2}
NEEDS_HOOK = (
    "Not logged. To log it, a config needs custom_hooks = [dict(type='FeatureGeometryHook')]."
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


def draw_charts(subject: ReportSubject, evaluations: dict) -> list[dict]:
    """Draw the curves of a training.

    Args:
        subject (ReportSubject): What the report is about.
        evaluations (dict): Name of a model to its Evaluation.

    Returns:
        list[dict]: Title, svg and a text, which says where there is nothing to draw why.
    """
    result = []

    def add(title: str, ylabel: str, lines: list, text: str, missing: str = 'Not logged.'):
        lines = [line for line in lines if line.points not in ({}, None)]
        svg = draw_curves(f'chart{len(result)}', title, ylabel, lines) if lines else None
        result.append(dict(title=title, svg=svg, text=text if lines else missing))

    task = [name for name in subject.run.losses if not name.startswith(OF_DISTILLATION)]
    add(
        'Task loss',
        'sum of the losses',
        [
            Line(subject.label, total(subject.run, task), COLOURS[DISTILLED]),
            *_of_baseline(subject, lambda run: total(run, run.losses)),
        ],
        "The student's own losses, without those of the distillation.",
        'None: the student learned from features alone.'
        if subject.has_no_losses
        else 'Not logged.',
    )
    if len(task) > 1:
        plain = [name.removeprefix('student.') for name in task]
        lines = [
            Line(short, subject.run.curve(name), i)
            for i, (name, short) in enumerate(zip(task, plain))
        ]
        lines += [
            Line(f'{short}, alone', subject.baseline.curve(short), i, '--')
            for i, short in enumerate(plain)
            if subject.baseline is not None
        ]
        add('Task losses, one by one', 'loss', lines, 'Dashed: the student alone.')
    if subject.is_distillation:
        names = [name for name in subject.run.losses if name.startswith(OF_DISTILLATION)]
        lines = [
            Line(name.removeprefix('distill.'), subject.run.curve(name), i)
            for i, name in enumerate(names)
        ]
        text = 'As logged, multiplied by their weights.'
        if any(name.startswith(OF_DISTILLATION[1]) for name in names):
            text += ' The two kinds of images each with its share of all images.'
        add('Distillation losses', 'loss', lines, text)
    for name in main_metrics(subject.run):
        levels = [
            Line(TEACHER, subject.percent * evaluations[TEACHER].metrics[name], 2, '--')
            for _ in range(TEACHER in evaluations and name in evaluations[TEACHER].metrics)
        ]
        add(
            f'{short_name(name)} on the validation set',
            f'{short_name(name)} (%)',
            [
                Line(subject.label, _percent(subject, subject.run.curve(name)), COLOURS[DISTILLED]),
                *_of_baseline(subject, lambda run, name=name: _percent(subject, run.curve(name))),
                *levels,
            ],
            'Validations during the training.',
        )
    if subject.is_distillation and not subject.run.geometry:
        add('m, n, mn/N and cos θ of the features', '', [], '', NEEDS_HOOK)
    elif subject.is_distillation:
        for title, ylabel, values, text in GEOMETRY:
            lines = [
                Line(f'{label} {pair}'.strip(), points.get(value), i, style)
                for i, (pair, points) in enumerate(subject.run.geometry.items())
                for value, label, style in values
            ]
            add(title, ylabel, lines, text)
    return result


def _of_baseline(subject: ReportSubject, points) -> list[Line]:
    return [Line(ALONE, points(run), COLOURS[ALONE]) for run in filter(None, [subject.baseline])]


def _percent(subject: ReportSubject, points: dict) -> dict:
    return {step: subject.percent * value for step, value in points.items()}


def main_metrics(run: WorkDir) -> list[str]:
    """Choose what is drawn: mIoU of segmentors, mAP of boxes and masks of detectors.

    Args:
        run (WorkDir): A training.

    Returns:
        list[str]: As the log calls them; 'metric' if it has logged none.
    """
    names = [name for name in run.metrics if name.endswith(('mIoU', '_mAP', '/mAP'))]
    return names or run.metrics[:1] or ['metric']


def total(run: WorkDir, names: list[str]) -> dict[int, float]:
    """Sum losses, at the iterations that have all of them.

    Args:
        run (WorkDir): A training.
        names (list[str]): As the log calls them.

    Returns:
        dict[int, float]: {iteration: sum}.
    """
    curves = [run.curve(name) for name in names]
    steps = [step for step in curves[0] if all(step in c for c in curves)] if curves else []
    return {step: sum(curve[step] for curve in curves) for step in steps}
