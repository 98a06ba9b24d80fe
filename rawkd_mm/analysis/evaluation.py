"""Evaluates a checkpoint on the validation set of a config, over all and for each class."""

import contextlib
import copy
import hashlib
import io
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from .pictures import load_model
from .text_files import write_text

_PER_CLASS = 'per class'


class Evaluation(NamedTuple):
    """What a checkpoint reaches.

    Attributes:
        metrics: Name to value, as in the log of a validation.
        measure: What is given for each class, such as 'IoU'; None if the evaluator has none.
        classes: Name of a class to value, in percent; None where the data have no such object.
    """

    metrics: dict[str, float]
    measure: str | None
    classes: dict[str, float | None]


class EvaluationCache:
    """Keeps evaluations in a JSON file; one counts for a model, its weights and the data's config."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries = json.loads(path.read_text()) if path.is_file() else {}

    def get(self, cfg, checkpoint: str, compute: Callable[[], Evaluation]) -> Evaluation:
        """Give what was computed before, or compute it."""
        key = self._key(cfg, checkpoint)
        if key not in self._entries:
            self._entries[key] = compute()._asdict()
            write_text(self._path, json.dumps(self._entries, indent=1))
        return Evaluation(**self._entries[key])

    @staticmethod
    def _key(cfg, checkpoint: str) -> str:
        parts = [cfg.model, cfg.val_dataloader, cfg.val_evaluator, os.getcwd(), str(checkpoint)]
        if os.path.isfile(checkpoint):
            status = os.stat(checkpoint)
            parts += [status.st_size, status.st_mtime_ns]
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def evaluate(cfg, checkpoint: str, device: str, advance: Callable[[int, int], None]) -> Evaluation:
    """Evaluate a checkpoint as a validation of the training would.

    Args:
        cfg (Config): Of the model that the checkpoint is of, with val_dataloader and val_evaluator.
        checkpoint (str): Path or URL.
        device (str): Where the model runs.
        advance (Callable): Called with the number of batches done, and of all.

    Returns:
        Evaluation: Over all, and for each class.

    Raises:
        CheckpointError: If weights are missing or do not fit.
        FileNotFoundError: If the data are not there.
    """
    import torch
    from mmengine.evaluator import Evaluator
    from mmengine.runner import Runner

    with contextlib.redirect_stdout(io.StringIO()):  # the evaluators print tables
        model = load_model(cfg, checkpoint, device)
        loader = Runner.build_dataloader(copy.deepcopy(cfg.val_dataloader), seed=0)
        evaluator = Evaluator(_with_classes(cfg.val_evaluator))
        evaluator.dataset_meta = loader.dataset.metainfo
        with torch.no_grad():
            for done, batch in enumerate(loader, 1):
                evaluator.process(data_samples=model.val_step(batch), data_batch=batch)
                advance(done, len(loader))
        measure, classes = _iou_of_classes(evaluator)
        metrics = evaluator.evaluate(len(loader.dataset))
    prefix, suffix = f'{_PER_CLASS}/', '_precision'
    for name in [name for name in metrics if name.startswith(prefix)]:
        value = metrics.pop(name)
        if name.endswith(suffix):
            measure, label = 'AP', name.removeprefix(prefix).removesuffix(suffix)
            classes[label] = _percent(value)
    metrics = {name: float(value) for name, value in metrics.items()}
    return Evaluation(metrics, measure, classes)


def _with_classes(evaluators) -> list[dict]:
    """Add an evaluator of each class to a CocoMetric; its values are rounded to 0.1 %."""
    from ..registry import type_name

    evaluators = copy.deepcopy(evaluators)
    evaluators = list(evaluators) if isinstance(evaluators, (list, tuple)) else [evaluators]
    for config in evaluators:
        if type_name(config['type']) == 'CocoMetric':
            metric = config.get('metric', 'bbox')
            kind = metric if isinstance(metric, str) else metric[0]
            if kind in ('bbox', 'segm'):
                extra = dict(metric=kind, classwise=True, prefix=_PER_CLASS)
                evaluators.append({**config, **extra})
                break
    return evaluators


def _iou_of_classes(evaluator) -> tuple[str | None, dict[str, float | None]]:
    """Compute what mmseg's IoUMetric only prints, from the areas that it has summed up."""
    for metric in evaluator.metrics:
        if type(metric).__name__ == 'IoUMetric' and metric.results:
            areas = [sum(column) for column in zip(*metric.results)]
            values = metric.total_area_to_metrics(
                *areas, metric.metrics, metric.nan_to_num, metric.beta
            )
            measure = next(name for name in values if name != 'aAcc')
            names = metric.dataset_meta['classes']
            return measure, dict(zip(names, map(_percent, values[measure])))
    return None, {}


def _percent(value) -> float | None:
    value = 100 * float(value)
    return None if math.isnan(value) or value < 0 else value
