"""The figures of a demo: what each model sees, and curves."""

import contextlib
import io
import statistics
import textwrap
from pathlib import Path

from ..training import load_config
from .demo_tasks import DISTILLED, LABELS, Demo, Run
from .pictures import build_dataset, images_of, load_model, predictions_of, show, truth_of
from .training_logs import curve, read_scalars


def draw_predictions(demo: Demo, results: dict, path: Path, count: int = 5) -> None:
    """Draw validation images, ground truth and what each model sees.

    Every checkpoint is loaded with a plain config: those of the distillation are students.

    Args:
        demo (Demo): What was trained.
        results (dict): {method: {seed: result}}.
        path (Path): The picture.
        count (int): Number of images, at most. Defaults to 5.
    """
    import matplotlib.pyplot as plt

    task = demo.task
    data = {'val_dataloader.dataset.data_root': str(demo.data_root)}
    configs = {
        method: load_config(str(task.configs[method]), data) for method in ('teacher', 'student')
    }
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = build_dataset(configs['student'])
        images = range(min(count, len(dataset)))
        columns = {'image': images_of(dataset, images), 'ground truth': truth_of(dataset, images)}
        for method, runs in results.items():
            run = next(iter(runs.values()))
            config = configs['teacher' if method == 'teacher' else 'student']
            name = textwrap.fill(LABELS[method], 16)
            title = f'{name}\n{run[task.unit]:.1f} {task.unit}'
            model = load_model(config, run['checkpoint'])
            columns[title] = predictions_of(model, dataset, images)

    figure, axes = plt.subplots(
        len(images),
        len(columns),
        figsize=(1.6 * len(columns), 1.6 * len(images) + 0.5),
        squeeze=False,
    )
    for column, (title, pictures) in enumerate(columns.items()):
        for row, picture in enumerate(pictures):
            show(axes[row][column], picture)
        axes[0][column].set_title(title, fontsize=9)
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def cosines(folder: Path) -> dict:
    """Give the cosine between student and teacher, the mean of all pairs of features.

    Args:
        folder (Path): Work dir of a training.

    Returns:
        dict: {iteration: cosine}.
    """
    means = {}
    for entry in read_scalars(folder):
        values = [value for name, value in entry.items() if name.endswith('/cos_theta')]
        if values:
            means[entry['step']] = statistics.mean(values)
    return means


def draw_curves(demo: Demo, results: dict, path: Path) -> None:
    """Draw the metric, and the cosine between student and teacher, over the iterations.

    Args:
        demo (Demo): What was trained.
        results (dict): {method: {seed: result}}.
        path (Path): The picture.
    """
    import matplotlib.pyplot as plt

    task = demo.task

    colours = dict(
        teacher='0.45', student='tab:blue', longer='tab:blue', LAD='tab:orange', CAD='tab:green'
    )
    dashes = dict(teacher='--', longer=':')
    figure, (metric, angle) = plt.subplots(1, 2, figsize=(10, 4))
    for method, runs in results.items():
        for i, (seed, run) in enumerate(runs.items()):
            style = dict(color=colours[method], label=None if i else LABELS[method])
            if method == 'teacher':
                metric.axhline(run[task.unit], linestyle=dashes[method], **style)
                continue
            folder = demo.work_dir / Run(method, seed).name
            values = {k: task.percent * v for k, v in curve(folder, task.metric).items()}
            line = dashes.get(method, '-')
            metric.plot(values.keys(), values.values(), line, marker='o', markersize=3, **style)
            if method in DISTILLED:
                values = cosines(folder)
                angle.plot(values.keys(), values.values(), linewidth=1, **style)
    metric.set(xlabel='iteration', ylabel=f'{task.unit} on val (%)', title=task.title)
    angle.set(
        xlabel='iteration',
        ylabel='cosine (whole map, mean of batch and maps)',
        title='Student and teacher feature',
    )
    for axis in (metric, angle):
        axis.grid(alpha=0.3)
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)
