"""The method at a glance: teacher, student alone, LAD and CAD on DigitScenes."""

import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import FIRST_EXCEPTION, wait
from pathlib import Path

from mmengine.config import Config

from .demo_figures import draw_curves, draw_predictions
from .demo_tasks import LABELS, Demo, Run
from .one_training import Training
from .progress import make_progress
from .shipped import shipped_folder
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
    command = [sys.executable, shipped_folder('tools') / 'dataset_converters/digit_scenes.py']
    command += ['--root', demo.data_root, '--size', str(demo.task.size)]
    command += ['--train', str(demo.train), '--val', str(demo.val)]
    if subprocess.run(command).returncode:
        raise DemoError('the data could not be made, see above')


def options(run: Run, demo: Demo, iters: int, teacher: Path | None) -> list:
    """Give what is changed in the config of a training.

    Args:
        run (Run): The training.
        demo (Demo): What is to be shown.
        iters (int): Its iterations.
        teacher (Path | None): The teacher's checkpoint, for a distillation.

    Returns:
        list[str]: 'key=value' entries for --cfg-options.
    """
    result = {'randomness.seed': run.seed}
    for loader in ('train', 'val', 'test'):
        result[f'{loader}_dataloader.dataset.data_root'] = demo.data_root
    result.update(demo.task.options(demo.data_root))
    if demo.iters is not None:
        result['train_cfg.max_iters'] = result['param_scheduler.0.total_steps'] = iters
        result['train_cfg.val_interval'] = max(1, iters // 4)
        result['default_hooks.checkpoint.interval'] = max(1, iters // 4)
        result['default_hooks.logger.interval'] = max(1, min(50, iters // 4))
    if teacher is not None:
        result['model.teacher_ckpt'] = teacher
    return [f'{key}={value}' for key, value in result.items()]


def training(run: Run, demo: Demo, iters: int, teacher: Path | None) -> Training:
    """Describe a training; finished ones with other iterations or data are refused.

    Args:
        run (Run): The training.
        demo (Demo): What is to be shown.
        iters (int): Its iterations.
        teacher (Path | None): The teacher's checkpoint, for a distillation.

    Returns:
        Training: To be submitted to ``Trainings``.
    """
    return Training(
        label=f'{LABELS[run.method]}, seed {run.seed}',
        config=demo.task.configs[run.method],
        folder=demo.work_dir / run.name,
        length=iters,
        metric=demo.task.metric,
        settings=dict(
            iters=iters, train=demo.train, val=demo.val, data_root=str(demo.data_root.resolve())
        ),
        options=options(run, demo, iters, teacher),
    )


def train_all(demo: Demo, iters: int, progress) -> dict:
    """Train everything, some trainings at a time.

    Args:
        demo (Demo): What is to be shown.
        iters (int): Iterations of each training.
        progress (rich.progress.Progress): Where bars are shown.

    Returns:
        dict: {method: {seed: result}}.

    Raises:
        TrainingError: If a training fails or cannot be done.
    """
    teacher_run = Run('teacher', demo.seeds[0])
    alone = [Run('student', seed) for seed in demo.seeds]
    distilled = [Run(method, seed) for seed in demo.seeds for method in ('LAD', 'CAD')]
    with Trainings(progress, demo.jobs) as trainings:
        futures = {
            run: trainings.submit(training(run, demo, iters, None))
            for run in (teacher_run, alone[0])
        }
        # the students with a teacher wait for it, the others fill the time
        wait_for(futures.values(), until=futures[teacher_run])
        teacher = futures[teacher_run].result()['checkpoint']
        for run in (*distilled, *alone[1:]):
            weights = teacher if run in distilled else None
            futures[run] = trainings.submit(training(run, demo, iters, weights))
        wait_for(futures.values())
    task = demo.task
    results = {method: {} for method in LABELS}
    for run, future in futures.items():
        result = future.result()
        value = task.percent * result['metrics'][task.metric]
        results[run.method][run.seed] = {task.unit: value, **result}
    return results


def wait_for(futures, until=None) -> None:
    """Wait for one or all futures; raises what any of them raised, as soon as it did.

    Args:
        futures (Iterable[Future]): All of them.
        until (Future | None): The one to wait for. Defaults to None, all.
    """
    pending = set(futures)
    while pending and not (until is not None and until.done()):
        done, pending = wait(pending, timeout=1, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()


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
        if method in ('LAD', 'CAD'):
            deltas = [runs[seed][unit] - alone[seed][unit] for seed in seeds]
            delta = f'{statistics.mean(deltas):+.2f}'
            if len(deltas) > 1:
                delta += f' ± {statistics.stdev(deltas):.2f}'
        seconds = statistics.mean(run['seconds'] for run in runs.values())
        lines.append(f'| {LABELS[method]} | {cell} | {delta} | {seconds:.0f} |')
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
    make_data(demo)
    iters = demo.iters or Config.fromfile(task.configs['student']).train_cfg.max_iters
    print(f'Training in {demo.work_dir}; the whole log of a training is <folder>/train.log')
    with make_progress() as progress:
        results = train_all(demo, iters, progress)

    table = make_table(results, demo.seeds, task.unit)
    (demo.work_dir / 'table.md').write_text(table + '\n')
    (demo.work_dir / 'results.json').write_text(json.dumps(results, indent=2))
    draw_predictions(demo, results, demo.work_dir / 'predictions.png')
    draw_curves(demo, results, demo.work_dir / 'curves.png')
    seeds = ', '.join(map(str, demo.seeds))
    print(
        f'\nDigitScenes, {iters} iterations, seed {seeds}: {task.unit} on val in percent; seconds with '
        f'{demo.jobs} trainings side by side\n\n{table}\n'
    )
    for name in ('table.md', 'results.json', 'predictions.png', 'curves.png'):
        print(demo.work_dir / name)
    write_report(demo)
