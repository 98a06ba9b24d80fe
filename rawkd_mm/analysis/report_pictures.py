"""The pictures of a report: what the models see, and angles between features."""

import base64
import contextlib
import io

from mmengine.device import get_device

from ..algorithms import FrozenTeacherDistill
from ..training import CheckpointError, replace_sync_batchnorm
from . import feature_angles as fa
from .charts import draw_colour_bar, paint_map
from .pictures import (
    Picture,
    build_dataset,
    build_model,
    images_of,
    load_model,
    predictions_of,
    read_checkpoint,
    show,
    truth_of,
)
from .progress import progressing
from .report_subject import ALONE, ReportError, ReportSubject


def make_pictures(subject: ReportSubject, columns: list, images: int, progress) -> dict:
    """Draw images, as the models of ``columns`` see them, and the angles of each pair.

    Args:
        subject (ReportSubject): What the report is about.
        columns (list[str]): Names of its models.
        images (int): How many are drawn, at most.
        progress (rich.progress.Progress): Where bars are shown.

    Returns:
        dict: rows of pictures as data URLs, the number of images that there are, and angles.

    Raises:
        FileNotFoundError: If the data are not there.
        CheckpointError: If weights are missing or do not fit.
        ReportError: If the student alone is another one.
    """
    models = {name: subject.models[name] for name in columns}
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = build_dataset(subject.cfg)
        count = min(images, len(dataset))
        shown = [i * len(dataset) // count for i in range(count)]
        drawn = {'image': images_of(dataset, shown), 'ground truth': truth_of(dataset, shown)}
        with progressing(progress, 'drawing predictions') as advance:
            for done, (name, model) in enumerate(models.items(), 1):
                network = load_model(*model, get_device())
                drawn[name] = predictions_of(network, dataset, shown)
                advance(done, len(models))
        with progressing(progress, 'measuring angles') as advance:
            angles = find_angles(subject, models, dataset, shown, advance)
    rows = [
        dict(index=i, pictures=[(title, to_url(pictures[k])) for title, pictures in drawn.items()])
        for k, i in enumerate(shown)
    ]
    return dict(rows=rows, number=len(dataset), angles=angles and paint_angles(angles, shown))


def find_angles(
    subject: ReportSubject, models: dict, dataset, shown: list, advance
) -> list[fa.PairAngles] | None:
    """Measure the angles between the features of student and teacher.

    Args:
        subject (ReportSubject): What the report is about.
        models (dict): Name to model.
        dataset: Of validation images.
        shown (list[int]): Indices of images.
        advance (Callable): Called with the number of images done, and of all.

    Returns:
        list[PairAngles] | None: None where the training has no pairs of features.

    Raises:
        ReportError: If the student alone is another one.
    """
    if not subject.is_distillation or not subject.cfg.model.get('teacher_ckpt'):
        return None
    algorithm = build_model(subject.cfg)
    pairs = getattr(algorithm.distiller, 'pairs', None)
    if not isinstance(algorithm, FrozenTeacherDistill) or not pairs:
        return None
    replace_sync_batchnorm(algorithm)
    algorithm.to(get_device()).eval()
    checkpoints = {
        ours: read_checkpoint(models[theirs].checkpoint)
        for ours, theirs in ((fa.DISTILLED, subject.label), (fa.ALONE, ALONE))
        if theirs in models
    }
    try:
        return fa.measure_angles(algorithm, checkpoints, dataset, shown, advance)
    except CheckpointError as error:
        raise ReportError(f'--baseline: {error} It must be of the same student.') from error


def paint_angles(angles: list, shown: list) -> list[dict]:
    """Paint the angles of each pair on a scale of its own.

    Args:
        angles (list[PairAngles]): What was measured.
        shown (list[int]): Indices of the images.

    Returns:
        list[dict]: pair, rows of pictures, the bar that explains the colours, means, fitted_on.
    """
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
    """Draw a picture with its boxes as a WebP image within a data URL.

    Args:
        picture (Picture): Pixels and boxes.

    Returns:
        str: The URL.
    """
    import matplotlib.pyplot as plt

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
