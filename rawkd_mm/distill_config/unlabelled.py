"""Images without labels beside the student's own data."""

import argparse
import copy
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import DATASETS

from ..datasets import LabelsNeededError
from ..registry import type_name
from ..training import UsageError
from ..training.random_numbers import separate_random_numbers
from .models import scope_of

# How often the pipeline is tried on an image: what it does is random.
_TRIES = 8


def unlabelled_hook(args: argparse.Namespace, cfg: Config) -> tuple[dict, list[str]]:
    """Make the hook that brings the images of a folder into a student's training.

    They go through the student's own training transforms, less those that need labels: these are
    found by trying the pipeline on an image of the folder.

    Args:
        args (argparse.Namespace): ``unlabelled``, the folder, and ``unlabelled_batch``, the number
            of images in an iteration, or None for the student's.
        cfg (Config): The student's.

    Returns:
        tuple[dict, list[str]]: The hook's config, and notes on what was left out.

    Raises:
        UsageError: If the student's config has no transforms, or the images do not go through them.
    """
    loader = cfg.train_dataloader
    steps = [_without_labels(step) for step in _pipeline(loader.get('dataset'))]
    if not steps:
        raise UsageError(
            "--unlabelled: no pipeline was found in the student's train_dataloader.dataset, which the "
            'images could go through'
        )
    left_out = []
    with scope_of(cfg), separate_random_numbers():
        while True:
            dataset = dict(type='UnlabelledImages', data_root=args.unlabelled, pipeline=steps)
            try:
                images = DATASETS.build(copy.deepcopy(dataset))
                for number in range(_TRIES):
                    item = images[number % len(images)]
                break
            except LabelsNeededError as error:
                left_out.append(type_name(steps.pop(error.number).get('type')))
            except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
                raise UsageError(
                    f"--unlabelled {args.unlabelled}: an image does not go through the student's "
                    f'transforms ({", ".join(type_name(s.get("type")) for s in steps)}): '
                    f'{type(error).__name__}: {error}'
                ) from error
    if not isinstance(item, dict) or not isinstance(item.get('inputs'), torch.Tensor):
        raise UsageError(
            "--unlabelled: the student's transforms do not pack an image (PackSegInputs, "
            f'PackDetInputs) once those that need labels are left out: {", ".join(left_out)}'
        )
    batch = args.unlabelled_batch or loader.get('batch_size') or 1
    workers = loader.get('num_workers', 0)
    hook = dict(type='UnlabelledImagesHook', dataset=dataset, batch_size=batch, num_workers=workers)
    note = f'{len(images)} images without labels, {batch} beside each batch of labelled ones'
    if left_out:
        note += f'; transforms left out, as they need labels: {", ".join(left_out)}'
    return hook, [f'{note}.']


def _pipeline(dataset: Any) -> list[dict]:
    """Give the transforms of a data set and, behind them, those of its wrappers."""
    if isinstance(dataset, (list, tuple)):
        dataset = dataset[0] if dataset else None
    if not isinstance(dataset, dict):
        return []
    inner = dataset.get('dataset') or dataset.get('datasets')
    return _pipeline(inner) + [copy.deepcopy(dict(s)) for s in dataset.get('pipeline') or ()]


def _without_labels(step: Any) -> Any:
    """Let a crop not look at labels, within other transforms too."""
    if isinstance(step, (list, tuple)):
        return [_without_labels(item) for item in step]
    if not isinstance(step, dict):
        return step
    step = dict(step)
    if step.get('cat_max_ratio', 1.0) < 1.0:
        step['cat_max_ratio'] = 1.0
    if 'transforms' in step:
        inner = step['transforms']
        is_list = isinstance(inner, (list, tuple))
        step['transforms'] = _inner(inner) if is_list else _without_labels(inner)
    return step


def _inner(steps: list) -> list:
    """Leave out what loads labels within another transform."""
    kept = []
    for step in steps:
        if isinstance(step, (list, tuple)):
            kept.append(_inner(step))
        elif 'Annotation' not in type_name(step.get('type')):
            kept.append(_without_labels(step))
    return kept
