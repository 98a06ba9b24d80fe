"""The method at a glance: teacher, student alone, LAD and CAD on DigitScenes."""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from concurrent.futures import FIRST_EXCEPTION, wait
from pathlib import Path

from mmengine.config import Config

from ..training import load_config
from .demo_figures import draw_curves, draw_predictions
from .demo_tasks import DISTILLED, LABELS, Demo, Run
from .equal_time import equal_time_iterations
from .evaluation import evaluate
from .one_training import Training
from .progress import make_progress, progressing
from .shipped import make_digit_scenes, shipped_folder
from .training_logs import seconds_per_iteration
from .trainings import Trainings


class DemoError(Exception):
    """A step of the demo has failed, and has said why; the message says which."""


def make_data(demo: Demo) -> None:
    """Make the data, unless they are there.

    Args:
        demo (Demo): What is to be shown.

    Raises:
        DemoError: If they cannot be made.
    """
    try:
        make_digit_scenes(demo.data_root, demo.task.size, train=demo.train, val=demo.val)
    except subprocess.CalledProcessError:
        raise DemoError('the data could not be made, see above') from None


def options(run: Run, demo: Demo, iters: int, labels: int, teacher: Path | None) -> list[str]:
    """Give what is changed in the config of a training.

    Args:
        run (Run): The training.
        demo (Demo): What is to be shown.
        iters (int): Its iterations.
        labels (int): How many images the student has the labels of.
        teacher (Path | None): The teacher's checkpoint, for a distillation.

    Returns:
        list[str]: 'key=value' entries for --cfg-options.
    """
    result = {'randomness.seed': run.seed}
    for loader in ('train', 'val', 'test'):
        result[f'{loader}_dataloader.dataset.data_root'] = demo.data_root
    result.update(demo.task.options(demo.data_root))
    if run.method != 'teacher':
        # each seed has images of its own; with seed 0 the config's, the first ones
        chosen = sorted({(labels * run.seed + i) % demo.train for i in range(labels)})
        result['train_dataloader.dataset.indices'] = str(chosen).replace(' ', '')
    if demo.iters is not None or run.method == 'longer':
        result['train_cfg.max_iters'] = result['param_scheduler.0.total_steps'] = iters
        if iters == 10:  # a warm-up of exactly one step makes OneCycleLR divide by zero
            result['param_scheduler.0.pct_start'] = 0.3
    if demo.iters is not None:
        result['train_cfg.val_interval'] = max(1, iters // 4)
        result['default_hooks.checkpoint.interval'] = max(1, iters // 4)
        result['default_hooks.logger.interval'] = max(1, min(50, iters // 4))
    if run.method in DISTILLED:
        result['model.teacher_ckpt'] = teacher
        result['custom_hooks.1.dataset.data_root'] = demo.data_root / 'images/train'
    return [f'{key}={value}' for key, value in result.items()]


def training(
    run: Run, demo: Demo, iters: int, labels: int, teacher: Path | None = None
) -> Training:
    """Describe a training; finished ones with other iterations, data or teacher are refused.

    Args:
        run (Run): The training.
        demo (Demo): What is to be shown.
        iters (int): Its iterations.
        labels (int): How many images the student has the labels of.
        teacher (Path | None): The teacher's checkpoint, for a distillation.

    Returns:
        Training: To be submitted to ``Trainings``.
    """
    settings = dict(
        iters=iters, train=demo.train, val=demo.val, data_root=str(demo.data_root.resolve())
    )
    if run.method in DISTILLED:
        settings['teacher'] = 'from scratch' if demo.from_scratch else 'shipped'
    return Training(
        label=name_of(run),
        config=demo.task.configs[run.method],
        folder=demo.work_dir / run.name,
        length=iters,
        metric=demo.task.metric,
        settings=settings,
        options=options(run, demo, iters, labels, teacher),
    )


def train_all(demo: Demo, progress) -> dict:
    """Train everything, some trainings at a time.

    Args:
        demo (Demo): What is to be shown.
        progress (rich.progress.Progress): Where bars are shown.

    Returns:
        dict: {method: {seed: result}}.

    Raises:
        TrainingError: If a training fails or cannot be done.
    """
    task = demo.task
    configs = {method: Config.fromfile(file) for method, file in task.configs.items()}
    labels = configs['student'].train_dataloader.dataset.indices
    iters = {method: demo.iters or cfg.train_cfg.max_iters for method, cfg in configs.items()}
    runs = [Run(method, seed) for seed in demo.seeds for method in ('student', 'CAD', 'LAD')]
    if demo.from_scratch:
        runs.insert(0, Run('teacher', demo.seeds[0]))
    costs = {run: task.costs[run.method] * iters[run.method] for run in runs}
    costs.update({Run('longer', seed): costs[Run('CAD', seed)] for seed in demo.seeds})
    futures = {}
    with Trainings(progress, demo.jobs) as trainings:
        overall = Overall(progress, {name_of(run): cost for run, cost in costs.items()}, demo.jobs)

        def wait_for(*wanted: Run) -> list[dict]:
            """Wait for some; raises what any of all raised, as soon as it did."""
            pending = set(futures.values())
            while pending and not all(futures[run].done() for run in wanted):
                done, pending = wait(pending, timeout=1, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
                overall.show()
            return [futures[run].result() for run in wanted]

        def submit(run: Run, iters: int, teacher: Path | None = None) -> None:
            futures[run] = trainings.submit(training(run, demo, iters, labels, teacher))

        for run in [run for run in runs if run.method not in DISTILLED]:
            submit(run, iters[run.method])
        teacher = task.teacher_weights
        if demo.from_scratch:  # the students with a teacher wait for it, the others fill the time
            teacher = wait_for(runs[0])[0]['checkpoint']
        for run in [run for run in runs if run.method in DISTILLED]:
            submit(run, iters[run.method], teacher)
        for seed in demo.seeds:
            compared = Run('CAD', seed), Run('student', seed)
            wait_for(*compared)
            cad, alone = (seconds_per_iteration(demo.work_dir / run.name) for run in compared)
            submit(Run('longer', seed), equal_time_iterations(iters['student'], alone, cad))
        wait_for(*futures)
        overall.show()
    results = {method: {} for method in LABELS}
    for run, future in futures.items():
        result = future.result()
        value = task.percent * result['metrics'][task.metric]
        results[run.method][run.seed] = {task.unit: value, **result}
    if not demo.from_scratch:
        results['teacher'][demo.seeds[0]] = shipped_teacher(demo, progress)
    return results


def name_of(run: Run) -> str:
    """Give what the bar of a training is called."""
    return f'{LABELS[run.method]}, seed {run.seed}'


def shipped_teacher(demo: Demo, progress) -> dict:
    """Evaluate the teacher that comes with the package.

    Args:
        demo (Demo): What is to be shown.
        progress (rich.progress.Progress): Where a bar is shown.

    Returns:
        dict: metrics, seconds (None) and checkpoint; as of a training.
    """
    task = demo.task
    changed = {'val_dataloader.dataset.data_root': str(demo.data_root)}
    changed.update({key: str(value) for key, value in task.options(demo.data_root).items()})
    checkpoint = str(task.teacher_weights)
    with progressing(progress, 'teacher, evaluation') as advance:
        cfg = load_config(str(task.configs['teacher']), changed)
        metrics = evaluate(cfg, checkpoint, 'cpu', advance).metrics
    value = task.percent * metrics[task.metric]
    return {task.unit: value, 'metrics': metrics, 'seconds': None, 'checkpoint': checkpoint}


class Overall:
    """The bar of all trainings together, with the time that is left.

    Args:
        progress (rich.progress.Progress): Where it is shown, beside the bars of the trainings.
        costs (dict[str, float]): Expected seconds of each training, by the name of its bar.
        jobs (int): Trainings side by side.
    """

    def __init__(self, progress, costs: dict[str, float], jobs: int) -> None:
        self._progress = progress
        self._costs = costs
        self._jobs = jobs
        self._begun = self._said = time.monotonic()
        self._at_first = None  # the share that was done before
        self._bar = progress.add_task('all', total=len(costs), note='')
        self.show()

    def show(self) -> None:
        """Bring the bar up to date; a line each half minute where there is no terminal."""
        tasks = {task.description: task for task in self._progress.tasks}
        shares = {
            name: tasks[name].completed / tasks[name].total
            for name in self._costs
            if name in tasks and tasks[name].total
        }
        total = sum(self._costs.values())
        done = sum(self._costs[name] * share for name, share in shares.items()) / total
        if self._at_first is None:
            self._at_first = done
        now = time.monotonic()
        elapsed, new = now - self._begun, done - self._at_first
        # what was expected counts as long as little is done
        expected = total / self._jobs
        pace = (elapsed + 0.1 * expected) / (new + 0.1)
        left = (1 - done) * pace
        note = (
            f'{done:.0%}, {left / 60:.0f} min left'
            if left > 90
            else f'{done:.0%}, {left:.0f} s left'
        )
        finished = sum(share == 1 for share in shares.values())
        self._progress.update(self._bar, completed=finished, note=note)
        console = self._progress.console
        if not console.is_terminal and now - self._said > 30:
            self._said = now
            console.print(f'all: {note}', markup=False)


def write_report(demo: Demo) -> None:
    """Write what CAD did to the student of the first seed; the report prints its path.

    Args:
        demo (Demo): What was trained.

    Raises:
        DemoError: If it cannot be written.
    """
    distilled, alone = (
        demo.work_dir / Run(method, demo.seeds[0]).name for method in ('CAD', 'student')
    )
    command = [os.path.relpath(shipped_folder('tools') / 'analysis_tools/report.py'), distilled]
    command += ['--baseline', alone, '--out', demo.work_dir / 'report.html']
    print('\nThe whole story of CAD, to be opened in a browser:', flush=True)
    if subprocess.run([sys.executable, *map(str, command)]).returncode:
        raise DemoError('the report could not be written, see above')


def make_table(results: dict, seeds: list, unit: str) -> str:
    """Give the results as a Markdown table.

    Args:
        results (dict): {method: {seed: result}}.
        seeds (list): Of the students.
        unit (str): What the metric is called, and its name in a result.

    Returns:
        str: Lines, with mean and sample standard deviation over the seeds.
    """
    alone = results['student']
    lines = [f'| | {unit} | over the student alone | seconds |', '|---|---|---|---|']
    for method, runs in results.items():
        values = [run[unit] for run in runs.values()]
        cell = f'{statistics.mean(values):.2f}'
        if len(values) > 1:
            cell += f' ± {statistics.stdev(values):.2f}'
        delta = ''
        if method in ('longer', *DISTILLED):
            deltas = [runs[seed][unit] - alone[seed][unit] for seed in seeds]
            delta = f'{statistics.mean(deltas):+.2f}'
            if len(deltas) > 1:
                delta += f' ± {statistics.stdev(deltas):.2f}'
        seconds = [run['seconds'] for run in runs.values()]
        took = 'trained before' if None in seconds else f'{statistics.mean(seconds):.0f}'
        lines.append(f'| {LABELS[method]} | {cell} | {delta} | {took} |')
    return '\n'.join(lines)


def run_demo(demo: Demo) -> None:
    """Make the data, train everything, and write and print what came out.

    Args:
        demo (Demo): What is to be shown.

    Raises:
        DemoError: If the data cannot be made, or the report not be written.
        TrainingError: If a training fails or cannot be done.
    """
    task = demo.task
    clock = Clock()
    make_data(demo)
    clock.step('data')
    print(f'Training in {demo.work_dir}; the whole log of a training is <folder>/train.log')
    with make_progress() as progress:
        results = train_all(demo, progress)
    clock.step('trainings')

    table = make_table(results, demo.seeds, task.unit)
    (demo.work_dir / 'table.md').write_text(table + '\n')
    (demo.work_dir / 'results.json').write_text(json.dumps(results, indent=2))
    draw_predictions(demo, results, demo.work_dir / 'predictions.png')
    draw_curves(demo, results, demo.work_dir / 'curves.png')
    clock.step('figures')
    cfg = Config.fromfile(task.configs['student'])
    seeds = ', '.join(map(str, demo.seeds))
    print(
        f'\nDigitScenes: labels of {cfg.train_dataloader.dataset.indices} of {demo.train} images, '
        f'{demo.iters or cfg.train_cfg.max_iters} iterations, seed {seeds}; {task.unit} on val in '
        f'percent, seconds with {demo.jobs} trainings side by side\n\n{table}\n'
    )
    for name in ('table.md', 'results.json', 'predictions.png', 'curves.png'):
        print(demo.work_dir / name)
    write_report(demo)
    clock.step('report')
    print(f'\n{clock}')


class Clock:
    """Seconds of each step, by the clock and of the processor, of this process and all it started."""

    def __init__(self) -> None:
        self._steps: list[tuple[str, float, float]] = []
        self._last = self._now()

    @staticmethod
    def _now() -> tuple[float, float]:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return time.monotonic(), sum(usage.ru_utime + usage.ru_stime for usage in used)

    def step(self, name: str) -> None:
        """End a step."""
        now = self._now()
        self._steps.append((name, *(b - a for a, b in zip(self._last, now))))
        self._last = now

    def __str__(self) -> str:
        rows = [*self._steps, ('in all', *map(sum, list(zip(*self._steps))[1:]))]
        return 'Seconds, and in brackets those of the processor: ' + ', '.join(
            f'{name} {seconds:.0f} ({used:.0f})' for name, seconds, used in rows
        )
