"""The tables of a report: metrics, and the metric of each class."""

from .report_subject import ALONE, TEACHER, ReportSubject


def metric_table(subject: ReportSubject, evaluations: dict) -> dict:
    """Make the table of metrics.

    Args:
        subject (ReportSubject): What the report is about.
        evaluations (dict): Name of a model to its Evaluation; empty for what the logs tell.

    Returns:
        dict: columns, deltas, and rows of a name, values in percent, and differences.
    """
    values = {column: e.metrics for column, e in evaluations.items()}
    if not values:  # --logs-only
        values = {ALONE: subject.baseline.last_metrics()} if subject.baseline else {}
        values[subject.label] = subject.run.last_metrics()
    names = list(dict.fromkeys(name for metrics in values.values() for name in metrics))
    rows = [
        (
            short_name(name),
            {c: percent_of(m.get(name), subject.percent) for c, m in values.items()},
        )
        for name in names
    ]
    return _table(subject, list(values), rows)


def class_table(subject: ReportSubject, evaluations: dict) -> dict | None:
    """Make the table of classes, sorted by the change over the student alone.

    Args:
        subject (ReportSubject): What the report is about.
        evaluations (dict): Name of a model to its Evaluation.

    Returns:
        dict | None: As :func:`metric_table`, and the measure; None without values of classes.
    """
    measured = {c: e for c, e in evaluations.items() if e.classes}
    if not measured:
        return None
    names = list(dict.fromkeys(name for e in measured.values() for name in e.classes))
    rows = [(n, {c: e.classes.get(n) for c, e in measured.items()}) for n in names]
    table = _table(subject, list(measured), rows)
    nothing = float('-inf')
    if ALONE in measured:
        table['rows'].sort(key=lambda row: nothing if row[2][0] is None else row[2][0])
        table['rows'].reverse()
    table['measure'] = next(iter(measured.values())).measure
    return table


def _table(subject: ReportSubject, columns: list, rows: list) -> dict:
    others = [column for column in (ALONE, TEACHER) if column in columns]
    return dict(
        columns=columns,
        deltas=[f'vs {column.removeprefix("student ")}' for column in others],
        rows=[
            (
                name,
                [values.get(column) for column in columns],
                [difference(values.get(subject.label), values.get(column)) for column in others],
            )
            for name, values in rows
        ],
    )


def short_name(metric: str) -> str:
    """Shorten the name of a metric: 'coco/bbox_mAP_50' becomes 'bbox mAP 50'.

    Args:
        metric (str): As the log calls it.

    Returns:
        str: Without prefix and underscores.
    """
    return metric.rpartition('/')[2].replace('_', ' ')


def percent_of(value: float | None, factor: int) -> float | None:
    """Give percent.

    Args:
        value (float | None): As logged; COCO gives -1 where there is no such object.
        factor (int): What makes percent of it.

    Returns:
        float | None: None where there is no value.
    """
    return None if value is None or value < 0 or value != value else factor * value


def difference(value: float | None, other: float | None) -> float | None:
    """Subtract one value from another.

    Args:
        value (float | None): The one.
        other (float | None): What is subtracted.

    Returns:
        float | None: None where one of them is missing.
    """
    return None if value is None or other is None else value - other
