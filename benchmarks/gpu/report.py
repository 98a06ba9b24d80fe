"""The report of `make bench-gpu`: what was found, which targets are met, what failed or was dropped.

``make_report`` gives all of it as one value, ``report.json``. The other functions show that value:
``to_markdown``, ``to_csv`` and ``draw``.
"""

import csv
import io
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

# Of a GPU, in the paper's supplement, section C: PSPNet-R101 -> PSPNet-R18, 2 images of 512x1024.
PAPER_MEGABYTES = 5900
PAPER_PAIR = 'pspnet-r18'
TIMES_STUDENT, TIMES_MMRAZOR, LOSS_SHARE = 1.6, 1.6, 0.01
BASELINES = ('student', 'mmrazor')
_CSV_COLUMNS = (
    'step', 'config', 'student', 'size', 'variant', 'ms', 'spread_ms', 'of_mmrazor', 'of_student',
    'teacher_ms', 'peak_mb', 'teacher_settings', 'distill_loss',
)  # fmt: skip


class Found(NamedTuple):
    """What a target is compared with.

    Attributes:
        value: The number that was found.
        bound: What it must not exceed, or reach.
        is_met: Whether it does.
        note: What else there is to say.
    """

    value: float
    bound: float
    is_met: bool
    note: str


class NothingFoundError(Exception):
    """A result lacks what a target is about; the message says what."""


def load_result(path: Path):
    """Read the result of a step.

    Args:
        path (Path): JSON, CSV, or the XML of pytest.

    Returns:
        dict | list: What JSON holds; the rows of a CSV; or of tests ``passed``, ``failed`` and
        ``skipped`` numbers.
    """
    if path.suffix == '.csv':
        with path.open(newline='') as file:
            return list(csv.DictReader(file))
    if path.suffix == '.xml':
        suites = ElementTree.parse(path).getroot().iter('testsuite')
        keys = ('tests', 'failures', 'errors', 'skipped')
        totals = [{key: int(suite.get(key, 0)) for key in keys} for suite in suites]
        tests, failures, errors, skipped = (sum(t[key] for t in totals) for key in keys)
        failed = failures + errors
        return dict(passed=tests - failed - skipped, failed=failed, skipped=skipped)
    return json.loads(path.read_text())


def make_report(session: dict, environment: dict, steps: list[dict], results: dict) -> dict:
    """Put together what the steps have found.

    Args:
        session (dict): ``command``, ``commit``, ``minutes`` and whether it is ``small``.
        environment (dict): As environment.py describes it.
        steps (list[dict]): In their order, the ``name`` of each, its ``title``, ``status``,
            ``seconds``, ``message`` and ``log``.
        results (dict): Name of a step -> its result, of those that are done.

    Returns:
        dict: ``session``, ``environment``, ``targets``, ``steps`` and ``results``.
    """
    return dict(
        session=session,
        environment=environment,
        targets=check_targets(steps, results),
        steps=steps,
        results=results,
    )


def check_targets(steps: list[dict], results: dict) -> list[dict]:
    """Compare what was found with the targets.

    Args:
        steps (list[dict]): As for :func:`make_report`.
        results (dict): As for :func:`make_report`.

    Returns:
        list[dict]: For each target and what it is about: ``target``, ``subject``, ``verdict`` ('met',
        'missed' or 'not measured'), ``value`` and ``bound`` (None if not measured), ``note``.
    """
    rows = []
    for step in steps:
        name = step['name']
        for target, find in _targets_of(name):
            row = dict(target=target, subject=step['title'], value=None, bound=None)
            if name not in results:
                note = ': '.join(filter(None, [step['status'], step['message']]))
                rows.append(dict(row, verdict='not measured', note=note))
                continue
            for subject, result in _subjects(name, step['title'], results[name]):
                try:
                    value, bound, is_met, note = find(result)
                except NothingFoundError as error:
                    rows.append(dict(row, subject=subject, verdict='not measured', note=str(error)))
                    continue
                found = dict(subject=subject, value=value, bound=bound)
                verdict = 'met' if is_met else 'missed'
                rows.append({**row, **found, 'verdict': verdict, 'note': note})
    return sorted(rows, key=lambda row: _ORDER.index(row['target']))


def _subjects(name: str, title: str, result) -> list:
    """Give what a result is about: loss_share has several pairs."""
    if name == 'loss_share':
        return [(Path(entry['config']).stem, entry) for entry in result]
    return [(title, result)]


def _rows(result: dict) -> dict:
    return {row['variant']: row for row in result['variants']}


def _ours(rows: dict, *preferred: str) -> tuple[str, dict]:
    """Give the first of the variants that was measured, and all of ours."""
    ours = {name: row for name, row in rows.items() if name not in BASELINES}
    for name in preferred:
        if name in ours:
            return name, ours
    raise NothingFoundError(f'none of the variants {", ".join(preferred)} was measured')


def _baseline(rows: dict, name: str) -> dict:
    if name not in rows:
        raise NothingFoundError(f'{name} was not measured')
    return rows[name]


def of_student(result: dict) -> Found:
    """Compare a step with that of the student alone."""
    rows = _rows(result)
    student = _baseline(rows, 'student')['seconds']
    name, ours = _ours(rows, 'auto', 'configured')
    best = min(ours, key=lambda n: ours[n]['seconds'])
    ratio = ours[name]['seconds'] / student
    note = f'{name}; best: {best}, {ours[best]["seconds"] / student:.2f}'
    return Found(ratio, TIMES_STUDENT, ratio <= TIMES_STUDENT, note)


def of_mmrazor(result: dict) -> Found:
    """Compare a step, its teacher in the student's precision, with MMRazor's."""
    rows = _rows(result)
    theirs = _baseline(rows, 'mmrazor')['seconds']
    name, ours = _ours(rows, 'auto_fp32', 'configured')
    own = [
        n for n in ours if n != 'auto' and not {'bf16', 'fp16', 'fp32'} & set(n.split('+'))
    ]  # auto may have chosen a lower precision
    best = min(own, key=lambda n: ours[n]['seconds'])
    ratio = theirs / ours[name]['seconds']
    note = f'{name}; best: {best}, {theirs / ours[best]["seconds"]:.2f}'
    if 'student' in rows:
        note += f'; without any teacher: {theirs / rows["student"]["seconds"]:.2f}'
    return Found(ratio, TIMES_MMRAZOR, ratio >= TIMES_MMRAZOR, note)


def memory_of_mmrazor(result: dict) -> Found:
    """Compare the peak memory with MMRazor's."""
    rows = _rows(result)
    theirs = _baseline(rows, 'mmrazor')['peak_megabytes']
    name, ours = _ours(rows, 'auto', 'auto_fp32', 'configured')
    return Found(
        ours[name]['peak_megabytes'], theirs, ours[name]['peak_megabytes'] < theirs, f'{name}; MB'
    )


def memory_of_paper(result: dict) -> Found:
    """Compare the peak memory with the paper's."""
    name, ours = _ours(_rows(result), 'auto', 'auto_fp32', 'configured')
    most = max(ours, key=lambda n: ours[n]['peak_megabytes'])
    value = ours[most]['peak_megabytes']
    return Found(
        value, PAPER_MEGABYTES, value < PAPER_MEGABYTES, f'most of all variants: {most}; MB'
    )


def loss_share(entry: dict) -> Found:
    """Compare the time of the losses with that of the step."""
    share = entry['loss_share']
    note = f'{1e3 * entry["loss_seconds"]:.2f} of {1e3 * entry["step_seconds"]:.1f} ms'
    return Found(share, LOSS_SHARE, share < LOSS_SHARE, note)


def tests_pass(result: dict) -> Found:
    """Tell whether the tests passed."""
    if not result['passed'] + result['failed']:
        raise NothingFoundError(f'all {result["skipped"]} tests were skipped')
    note = f'{result["passed"]} passed, {result["skipped"]} skipped'
    return Found(result['failed'], 0, result['failed'] == 0, note)


def trains(result: dict) -> Found:
    """Tell whether a training's loss stays finite and falls."""
    first, last = result['first_loss'], result['last_loss']
    finite = 'all finite' if result['finite'] else 'some not finite'
    met = result['finite'] and last < first
    return Found(last, first, met, f'mean loss of the last and of the first tenth; {finite}')


def resumes(result: dict) -> Found:
    """Tell whether a resumed training goes on as an uninterrupted one."""
    found = result['resume']
    same = 'the same weights' if found['same_weights'] else 'other weights'
    note = (
        f'losses of {found["iterations_compared"]} iterations from {found["resumed_at"]} on; '
        f'killed after iteration {found["killed_at"]}; {same} at the end'
    )
    return Found(found['after'], found['tolerance'], found['within'], note)


def two_processes(result: list) -> Found:
    """Tell whether two processes train on one device."""
    words = [
        f'{entry["backend"]} with {entry["processes"]}: {entry.get("message") or "works"}'
        for entry in result
    ]
    working = sum(entry['works'] for entry in result if entry['processes'] == 2)
    return Found(working, 1, working >= 1, '; '.join(words))


_STUDENT = 'a step takes at most 1.6 times that of the student alone, mixed precision (`auto`)'
_MMRAZOR = "at least 1.6 times as fast as MMRazor, the teacher in the student's precision"
_LOSS = 'the losses take less than 1 % of a step, mixed precision'
_LESS = "peak memory below MMRazor's"
_PAPER = "peak memory below the paper's 5.9 GB"
_TESTS = 'tests that need a GPU: none fails'
_TRAINING = 'a training in mixed precision: the loss falls'
_RESUME = 'a training that was killed and resumed: the losses of one that ran through'
_PROCESSES = 'training in two processes on one device works'
_ORDER = (
    _STUDENT, _MMRAZOR, _LOSS, _LESS, _PAPER, _TESTS, _TRAINING, _RESUME, _PROCESSES,
)  # fmt: skip


def _targets_of(name: str) -> list[tuple[str, Callable]]:
    """Give the targets that a step's result decides on."""
    others = {
        'loss_share': [(_LOSS, loss_share)],
        'gpu_tests': [(_TESTS, tests_pass)],
        'training': [(_TRAINING, trains), (_RESUME, resumes)],
        'two_processes': [(_PROCESSES, two_processes)],
    }
    if name in others:
        return others[name]
    pair, _, precision = name.rpartition('_')
    if precision not in ('amp', 'fp32'):
        return []
    targets = [(_STUDENT, of_student)] if precision == 'amp' else []
    targets += [(_MMRAZOR, of_mmrazor), (_LESS, memory_of_mmrazor)]
    return targets + [(_PAPER, memory_of_paper)] * (pair == PAPER_PAIR)


def benchmarks_of(report: dict) -> dict:
    """Give the results of benchmark_distill.py in a report, by the name of the step."""
    return {
        name: result
        for name, result in report['results'].items()
        if isinstance(result, dict) and 'variants' in result
    }


def to_csv(report: dict) -> str:
    """Give a row for each variant of each benchmark.

    Args:
        report (dict): As :func:`make_report` gives it.

    Returns:
        str: The CSV.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, _CSV_COLUMNS, lineterminator='\n')
    writer.writeheader()
    for step, result in benchmarks_of(report).items():
        rows = _rows(result)
        for name, row in rows.items():
            teacher, distilled = row['teacher_seconds'], _distill_loss(row)
            student = rows.get('student')
            writer.writerow(
                dict(
                    step=step,
                    config=result['config'],
                    student='mixed precision' if result['student_amp'] else 'float32',
                    size='x'.join(map(str, (result['batch'], *result['size']))),
                    variant=name,
                    ms=_number(1e3 * row['seconds'], 2),
                    spread_ms=_number(1e3 * row['spread'], 2),
                    of_mmrazor=_number(row['ratio_to_mmrazor'], 3),
                    of_student=student and _number(row['seconds'] / student['seconds'], 3),
                    teacher_ms=_number(teacher and 1e3 * teacher, 2),
                    peak_mb=_number(row['peak_megabytes'], 0),
                    teacher_settings=row['teacher_settings'],
                    distill_loss=_number(distilled, 5),
                )
            )
    return text.getvalue()


def _distill_loss(row: dict) -> float | None:
    losses = [value for name, value in row['losses'].items() if name.startswith('distill.')]
    return sum(losses) if losses else None


def _number(value: float | None, digits: int) -> str:
    return '' if value is None else f'{value:.{digits}f}'


def to_markdown(report: dict) -> str:
    """Give the report as a page.

    Args:
        report (dict): As :func:`make_report` gives it.

    Returns:
        str: Markdown; it shows ``report.svg`` if ``report['figure']`` is None, which is what went
        wrong with it.
    """
    session, environment = report['session'], report['environment']
    parts = [f'# Measured on {environment["device"]}']
    if session['small']:
        parts.append(
            '**A small run, to see that the command works. Its times and its verdicts say nothing '
            'about a GPU.**'
        )
    parts += [
        _list(_setting(session, environment)),
        '## Targets',
        _targets_table(report['targets']),
    ]
    parts += ['## Steps', _steps_table(report['steps'])]
    if benchmarks_of(report):
        parts += ['## A training step', *_benchmark_parts(report)]
        figure = report.get('figure')
        parts.append(f'No figure: {figure}' if figure else '![Times of a step](report.svg)')
    results = report['results']
    if results.get('loss_share'):
        parts += ['## What a step consists of', _loss_share_table(results['loss_share'])]
    if results.get('losses'):
        parts += ['## The losses', _losses_table(results['losses'])]
    if results.get('precision'):
        parts += ['## What low precision changes', _precision_table(results['precision'])]
    if results.get('training'):
        parts += ['## A training', _list(_training_lines(results['training']))]
    if results.get('two_processes'):
        parts += ['## Two processes on one device', _processes_table(results['two_processes'])]
    return '\n\n'.join(parts) + '\n'


def _setting(session: dict, environment: dict) -> list[str]:
    known = [
        ('driver', 'driver'), ('CUDA', 'cuda'), ('cuDNN', 'cudnn'), ('NCCL', 'nccl'),
        ('compute capability', 'capability'), ('memory in MB', 'memory_megabytes'),
    ]  # fmt: skip
    device = [f'{label} {environment[key]}' for label, key in known if environment.get(key)]
    versions = [*environment['versions'].values(), f'Python {environment["python"]}']
    tf32 = environment.get('cudnn_tf32')
    return [
        f'Command: `{session["command"]}`, commit {session["commit"]}',
        ', '.join([f'Device: {environment["device"]}', *device]),
        f'Host: {environment["processor"]}, {environment["threads"]} threads',
        f'torch {environment["torch"]}; {", ".join(versions)}',
        *(
            [f'float32: convolutions in {"TF32" if tf32 else "float32"}']
            if tf32 is not None
            else []
        ),
    ]


def _list(lines: list[str]) -> str:
    return '\n'.join(f'- {line}' for line in lines)


def _table(header: list, rows: list) -> str:
    """Give a Markdown table; None is an empty cell."""

    def line(cells):
        cells = ['' if cell is None else str(cell).replace('|', '\\|') for cell in cells]
        return f'| {" | ".join(cells)} |'

    return '\n'.join([line(header), '|' + '---|' * len(header), *map(line, rows)])


def _short(value: float | None) -> str:
    """Give four digits of a number; of a count, all."""
    return '' if value is None else f'{value:.0f}' if abs(value) >= 1000 else f'{value:.4g}'


def _targets_table(targets: list[dict]) -> str:
    rows = [
        (t['target'], t['subject'], t['verdict'], _short(t['value']), _short(t['bound']), t['note'])
        for t in targets
    ]
    return _table(['target', 'of', 'verdict', 'found', 'bound', 'note'], rows)


def _steps_table(steps: list[dict]) -> str:
    rows = [
        (s['name'], s['title'], s['status'], _number(s['seconds'], 0), s['message'], s['log'])
        for s in steps
    ]
    return _table(['step', 'what', 'status', 's', 'message', 'log'], rows)


def _benchmark_parts(report: dict) -> list[str]:
    """Give a table for each pair, its precisions side by side, and the notes of the measurement."""
    found, titles = benchmarks_of(report), {step['name']: step['title'] for step in report['steps']}
    pairs = list(dict.fromkeys(name.rpartition('_')[0] for name in found))
    parts = []
    for pair in pairs:
        results = [found[f'{pair}_{p}'] for p in ('amp', 'fp32') if f'{pair}_{p}' in found]
        name = next(n for n in found if n.rpartition('_')[0] == pair)
        result, title = results[0], titles[name].rpartition(', ')[0]
        size = 'x'.join(map(str, result['size']))
        parts.append(
            f'{title}, {result["batch"]} images of {size}; ms, median of {result["iters"]}:'
        )
        header, variants = [''], dict.fromkeys(v for r in results for v in _rows(r))
        for result in results:
            precision = 'mixed precision' if result['student_amp'] else 'student in float32'
            header += [precision, "of MMRazor's", "of the student's", 'peak MB']
        rows = [[name, *(c for r in results for c in _cells(_rows(r), name))] for name in variants]
        parts.append(_table(header, rows))
        notes = [
            f'`{row["variant"]}`, {"mixed precision" if result["student_amp"] else "float32"}: the '
            f'teacher runs {row["teacher_settings"]}.'
            for result in results
            for row in result['variants']
            if row['variant'].startswith('auto')
        ]
        notes += [note for result in results for note in result['notes']]
        if notes:
            parts.append(_list(list(dict.fromkeys(notes))))
    return parts


def _cells(rows: dict, name: str) -> list:
    if name not in rows:
        return [None] * 4
    row, student = rows[name], rows.get('student')
    return [
        f'{1e3 * row["seconds"]:.1f} ± {1e3 * row["spread"]:.1f}',
        _number(row['ratio_to_mmrazor'], 2),
        student and _number(row['seconds'] / student['seconds'], 2),
        _number(row['peak_megabytes'], 0),
    ]


def _loss_share_table(entries: list[dict]) -> str:
    header = ['', 'ms', 'GPU busy, ms', 'kernels', 'part of the step']
    rows = []
    for entry in entries:
        step, profiles = entry['step_seconds'], entry.get('profiles', {})

        def profiled(name, profiles=profiles):
            profile = profiles.get(name) or {}
            busy = profile.get('gpu_seconds')
            return [_number(busy and 1e3 * busy, 1), profile.get('kernels')]

        rows.append([Path(entry['config']).stem, f'{1e3 * step:.1f}', *profiled('configured'), 1])
        share = f'{entry["loss_share"]:.4f}'
        rows.append(
            ['its losses', f'{1e3 * entry["loss_seconds"]:.2f}', *profiled('losses'), share]
        )
        rows += [
            [n, None, *profiled(n), None] for n in profiles if n not in ('configured', 'losses')
        ]
    return _table(header, rows)


def _losses_table(rows: list[dict]) -> str:
    columns = (
        'shape',
        'method',
        'forward_ms',
        'backward_ms',
        'both_ms',
        'peak_mb',
        'both_gb_per_s',
    )
    return _table(list(columns), [[row[c] for c in columns] for row in rows])


def _precision_table(rows: list[dict]) -> str:
    columns = (
        'config', 'size', 'loss', 'precision', 'angle_layer', 'angle_channel', 'loss_change',
        'gradient_change',
    )  # fmt: skip
    return _table(list(columns), [[row[c] for c in columns] for row in rows])


def _training_lines(result: dict) -> list[str]:
    setting, resume = result['setting'], result['resume']
    memory = result['peak_megabytes']
    return [
        f"CAD with the quickstart's teacher, scenes of {setting['size']}x{setting['size']}, batches of "
        f'{setting["batch"]}, {result["iterations"]} iterations, in {result["seconds"]:.0f} s',
        f'Mean loss {result["first_loss"]:.4f} at first, {result["last_loss"]:.4f} at last; mIoU '
        f'{result["mIoU"]}',
        f'{1e3 * result["iteration_seconds"]:.1f} ms an iteration, of these '
        f'{1e3 * result["data_seconds"]:.1f} for the images' + (f'; {memory} MB' if memory else ''),
        f'Killed after iteration {resume["killed_at"]}, resumed at {resume["resumed_at"]}: the losses '
        f'differ by {resume["after"]:.2e} on average, by {resume["before"]:.2e} before that',
    ]


def _processes_table(attempts: list[dict]) -> str:
    rows = [
        (a['backend'], a['processes'], 'yes' if a['works'] else 'no', _short(a.get('loss')),
         a.get('message'))
        for a in attempts
    ]  # fmt: skip
    return _table(['backend', 'processes', 'works', 'last loss', 'message'], rows)


def draw(report: dict, path: Path) -> None:
    """Draw the times of all variants, a panel for each pair and precision.

    Args:
        report (dict): As :func:`make_report` gives it, with a benchmark.
        path (Path): The SVG to write.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    import matplotlib
    from matplotlib.figure import Figure

    found, titles = benchmarks_of(report), {step['name']: step['title'] for step in report['steps']}
    columns = min(len(found), 2)
    lines = -(-len(found) // columns)
    with matplotlib.rc_context(
        {'svg.fonttype': 'none', 'svg.hashsalt': 'rawkd_mm', 'font.size': 8}
    ):
        figure = Figure((5 * columns, 0.6 + 2.6 * lines), layout='constrained')
        axes = figure.subplots(lines, columns, squeeze=False).flat
        for axis, (name, result) in zip(axes, found.items()):
            _draw_panel(axis, titles[name], _rows(result))
        for axis in list(axes)[len(found) :]:
            axis.remove()
        small = ' (a small run: the times say nothing)' if report['session']['small'] else ''
        figure.suptitle(f'ms a step, {report["environment"]["device"]}{small}')
        figure.savefig(path, metadata={'Date': None})


def _draw_panel(axis, title: str, rows: dict) -> None:
    """Draw a bar for each variant, with the quartiles, and lines at the baselines."""
    names = list(rows)[::-1]
    times = [1e3 * rows[name]['seconds'] for name in names]
    quartiles = [_distances(rows[name]) for name in names]
    colours = ['#9aa0a6' if name in BASELINES else '#3b6fb6' for name in names]
    axis.barh(names, times, xerr=list(zip(*quartiles)), color=colours, error_kw=dict(lw=0.8))
    for name, style in (('student', ':'), ('mmrazor', '--')):
        if name in rows:
            axis.axvline(1e3 * rows[name]['seconds'], color='#444444', lw=0.8, ls=style)
    axis.set_title(title, fontsize=8)
    axis.spines[['top', 'right']].set_visible(False)


def _distances(row: dict) -> tuple[float, float]:
    """Give the distances in ms of the quartiles from the median."""
    seconds = row['all_seconds']
    if len(seconds) < 2:
        return 0.0, 0.0
    low, middle, high = statistics.quantiles(seconds, n=4, method='inclusive')
    return 1e3 * (middle - low), 1e3 * (high - middle)
