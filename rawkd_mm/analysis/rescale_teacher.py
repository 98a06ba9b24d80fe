"""A teacher of the same function whose feature has another norm.

Weight and bias of the norm before the feature are multiplied by alpha, and the weights of the layers
that read the feature are divided by alpha. ReLU is positively homogeneous: the feature is alpha times
as large, and nothing behind its readers changes. The norm m of the paper's Eq. (10) becomes alpha m,
with the same angles. So naive distillation's 2mn/N is multiplied by alpha, and LAD and CAD see no
difference.
"""

import copy
import io
import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.dataset import pseudo_collate
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ..features import FeatureCapture, FeatureSource, run_for_features
from ..training import (
    UsageError,
    is_distillation,
    load_all_weights,
    load_config,
    made_up_batch,
    replace_sync_batchnorm,
)
from ..training.checkpoint_files import WholeFilesBackend
from .feature_scale import FeatureScale, find_feature_scale
from .pictures import build_dataset, build_model, read_checkpoint

__all__ = ['Rescaled', 'rescale_state', 'rescale_teacher', 'write_rescaled_teacher']

# Largest difference, as a share of the largest value: of float64, and of weights stored in float32.
_EXACT, _STORED = 1e-9, 1e-5
_CLASSES = 1e-3  # share of positions whose class may be another one: ties, decided by the rounding


class Rescaled(NamedTuple):
    """A rescaled teacher, and what was seen when it was checked.

    Attributes:
        state (dict[str, Tensor]): The weights.
        scale (FeatureScale): Names of the multiplied and of the divided ones.
        feature_ratio (float): How many times as large the norm of the feature is, with stored weights.
        feature_error (float): Largest deviation of a value from alpha times the one before, as a share
            of the largest value.
        differences (dict[str, float]): By what was compared: the largest difference of the predictions
            with stored weights, as a share of the largest one.
        images (int): Number of images of the validation data that were compared.
        why_no_images (str): Why there were none.
    """

    state: dict[str, Tensor]
    scale: FeatureScale
    feature_ratio: float
    feature_error: float
    differences: dict[str, float]
    images: int = 0
    why_no_images: str = ''


def rescale_state(
    state: dict[str, Tensor], scale: FeatureScale, alpha: float
) -> OrderedDict[str, Tensor]:
    """Multiply and divide weights in a state dict.

    Args:
        state (dict[str, Tensor]): Not changed.
        scale (FeatureScale): What is multiplied by alpha, and what is divided by it.
        alpha (float): The factor.

    Returns:
        OrderedDict[str, Tensor]: The others as they are. These are computed in float64 and stored in
        their own type, halves in float32.

    Raises:
        UsageError: If a value leaves the range of its type.
    """
    result = OrderedDict(state)
    for names, factor in ((scale.norm, alpha), (scale.readers, 1 / alpha)):
        for name in names:
            value = state[name]
            dtype = torch.promote_types(value.dtype, torch.float32)
            result[name] = (value.double() * factor).to(dtype)
            if not result[name].isfinite().all():
                raise UsageError(
                    f'--alpha {alpha}: {name} times {factor:g} does not fit {dtype}. Take an alpha '
                    'closer to 1'
                )
    return result


def rescale_teacher(
    cfg: Any,
    state: dict[str, Tensor],
    feature: str,
    alpha: float,
    size: Sequence[int] = (128, 128),
    images: int = 4,
) -> Rescaled:
    """Rescale the feature of a teacher, and check that nothing else changes.

    Args:
        cfg (Config): Of the teacher.
        state (dict[str, Tensor]): Its weights, under the names of its ``state_dict()``.
        feature (str): The name of the feature, such as 'decode_head.bottleneck'.
        alpha (float): How many times as large it becomes, positive and finite.
        size (Sequence[int]): Height and width of the random images of the check. Defaults to 128x128.
        images (int): How many images of the validation data to compare, if they are there. Defaults
            to 4.

    Returns:
        Rescaled: The weights, and what the check saw.

    Raises:
        UsageError: If alpha is not positive and finite, the feature has no norm that sets its scale or
            is read by something else than linear layers, or a prediction changes by more than rounding.
    """
    if not (alpha > 0 and math.isfinite(alpha)):
        raise UsageError(f'--alpha must be positive and finite, got {alpha}')
    try:
        source = FeatureSource.parse(feature)
    except ValueError as error:
        raise UsageError(f'--feature: {error}') from error
    with _in_float64():
        model = _prepare(cfg, state)
        inputs, samples = made_up_batch(model, size)
        inputs = inputs.double()
        with _outputs(model) as before:
            scale, feature_before = find_feature_scale(
                model, source, lambda: _run(model, inputs, samples, source)
            )
        new_state = rescale_state(state, scale, alpha)
        exact, stored = (copy.deepcopy(model) for _ in range(2))
        _multiply(exact, scale, alpha)
        stored.load_state_dict(new_state)
        differences, feature_after = {}, None
        for changed, limit in ((exact, _EXACT), (stored, _STORED)):
            feature_after, after = _compute(changed, source, inputs, samples)
            differences['random images'] = _compare(before, after, limit, 'random images')
            ratio, error = _compare_features(feature_before, feature_after, alpha, limit, feature)
        dataset, why = _validation_data(cfg, images)
        for index in range(min(images, len(dataset))):
            data = model.data_preprocessor(pseudo_collate([dataset[index]]), False)
            was, *now = (_predict(m, data) for m in (model, exact, stored))
            for after, limit in zip(now, (_EXACT, _STORED)):
                value = _compare(was, after, limit, f'validation image {index}')
            key = 'validation images'
            differences[key] = max(value, differences.get(key, 0.0))
    return Rescaled(new_state, scale, ratio, error, differences, min(images, len(dataset)), why)


def _prepare(cfg: Any, state: dict[str, Tensor]) -> nn.Module:
    """Build the model in float64, with nothing that works in place."""
    model = build_model(cfg)
    load_all_weights(model, dict(state_dict=state))
    replace_sync_batchnorm(model)
    for module in model.modules():
        if getattr(module, 'inplace', False) is True:
            module.inplace = False
    return model.double().eval()


@contextmanager
def _in_float64() -> Iterator[None]:
    """Let what a model makes itself (anchors, positions) be float64; random numbers stay in here."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_default_dtype(before)


def _auxiliary_heads(model: nn.Module) -> dict[str, nn.Module]:
    heads = getattr(model, 'auxiliary_head', None)
    if isinstance(heads, nn.ModuleList):
        return {f'auxiliary_head.{i}': head for i, head in enumerate(heads)}
    return {} if heads is None else {'auxiliary_head': heads}


def _run(model: nn.Module, inputs: Tensor, samples: list, source: FeatureSource) -> None:
    """Run a model and its auxiliary heads, which would otherwise run in a training alone."""
    torch.manual_seed(0)  # some heads draw random numbers (SegNeXt's)
    run_for_features(model, inputs, samples, [source.module, *_auxiliary_heads(model)])


@contextmanager
def _outputs(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the tensors that the model and its auxiliary heads give out within the context."""
    found: list[Tensor] = []
    with ExitStack() as stack:
        for module in (model, *_auxiliary_heads(model).values()):
            stack.callback(
                module.register_forward_hook(
                    lambda m, args, out: found.extend(_flatten(out))
                ).remove
            )
        yield found


def _compute(
    model: nn.Module, source: FeatureSource, inputs: Tensor, samples: list
) -> tuple[Tensor, list[Tensor]]:
    capture = FeatureCapture((source,))
    with capture.record(model) as recording, _outputs(model) as outputs:
        _run(model, inputs, samples, source)
    return capture.features(recording, 'teacher')[source], outputs


def _multiply(model: nn.Module, scale: FeatureScale, alpha: float) -> None:
    values = model.state_dict()
    for names, factor in ((scale.norm, alpha), (scale.readers, 1 / alpha)):
        for value in {values[name].data_ptr(): values[name] for name in names}.values():
            value.mul_(factor)


def _flatten(value: Any) -> list[Tensor]:
    """Give the tensors in an output: in lists, dicts and data samples."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, BaseDataElement):
        value = dict(value.items())
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [x for item in value for x in _flatten(item)]
    return _flatten(value.tensor) if hasattr(value, 'tensor') else []  # boxes


def _predict(model: nn.Module, data: dict) -> list[Tensor]:
    """Give what a model predicts: scores, classes, boxes."""
    torch.manual_seed(0)
    samples = model(data['inputs'].double(), copy.deepcopy(data['data_samples']), mode='predict')
    return [
        x
        for sample in samples
        for key, value in sample.items()
        if key.startswith(('pred', 'seg_logits'))
        for x in _flatten(value)
    ]


def _compare(before: list[Tensor], after: list[Tensor], limit: float, what: str) -> float:
    """Give the largest difference of outputs, as a share of the largest value."""
    worst = 0.0
    same = len(before) == len(after) and all(x.shape == y.shape for x, y in zip(before, after))
    if not before or not same:
        number = 'gives no tensors' if not before else 'predicts another number of things'
        raise UsageError(
            f'the check failed: the model {number} on {what}, so that nothing says that it computes the '
            'same. Nothing is written'
        )
    for x, y in zip(before, after):
        if not x.numel():
            continue
        if not x.is_floating_point():
            share = (x != y).double().mean().item()
            if share > _CLASSES:
                raise UsageError(
                    f'the check failed: {share:.2%} of what is predicted on {what} is another class. '
                    'Nothing is written'
                )
            continue
        difference = ((x - y).abs().max() / x.abs().max().clamp(min=1e-300)).item()
        if not difference <= limit:
            raise UsageError(
                f'the check failed: on {what} the outputs change by {difference:.2g} of the largest '
                f'one, where at most {limit:g} is rounding. Something reads the feature in a way that '
                'was not seen, or alpha leaves no digits (take one closer to 1). Nothing is written'
            )
        worst = max(worst, difference)
    return worst


def _compare_features(
    before: Tensor, after: Tensor, alpha: float, limit: float, feature: str
) -> tuple[float, float]:
    """Give the ratio of the norms, and the largest deviation as a share of the largest value."""
    norm = torch.linalg.vector_norm(before)
    if norm == 0:
        raise UsageError(
            f'--feature {feature} is 0 at every position of the random images. Are the weights trained?'
        )
    ratio = (torch.linalg.vector_norm(after) / norm).item()
    error = ((after - alpha * before).abs().max() / (alpha * before).abs().max()).item()
    if not error <= limit:
        raise UsageError(
            f'the check failed: --feature {feature} is {ratio:g} times as large, not {alpha:g} times. '
            'Nothing is written'
        )
    return ratio, error


def _validation_data(cfg: Any, images: int) -> tuple[Any, str]:
    """Build the config's validation data; give none and why if they are not there."""
    if not images:
        return [], '--images 0'
    if not cfg.get('val_dataloader'):
        return [], 'the config has no val_dataloader'
    try:
        return build_dataset(cfg), ''
    except (FileNotFoundError, NotADirectoryError) as error:
        return [], f'the data are not there: {str(error).splitlines()[0]}'


def write_rescaled_teacher(
    config: str,
    checkpoint: str,
    feature: str,
    alpha: float,
    out: Path,
    size: Sequence[int] = (128, 128),
    images: int = 4,
    cfg_options: dict | None = None,
) -> str:
    """Write the checkpoint of a rescaled teacher; see :func:`rescale_teacher`.

    Args:
        config (str): Config file of the teacher.
        checkpoint (str): Path or URL of its weights.
        feature (str): Its name.
        alpha (float): How many times as large it becomes.
        out (Path): The file, for the same config. It has the meta data of the checkpoint.
        size (Sequence[int]): Height and width of the random images. Defaults to 128x128.
        images (int): How many images of the validation data to compare. Defaults to 4.
        cfg_options (dict, optional): Entries that override the config's.

    Returns:
        str: What was done and checked, in words.

    Raises:
        UsageError: As :func:`rescale_teacher`, and if the config is that of a distillation.
        CheckpointError: If the weights do not fit.
    """
    cfg = load_config(config, cfg_options)
    if is_distillation(cfg):
        raise UsageError(
            f"{config} is a distillation. Give the teacher's own config, which its model.teacher names"
        )
    given = read_checkpoint(checkpoint)
    state = load_all_weights(build_model(cfg), given)
    result = rescale_teacher(cfg, state, feature, alpha, size, images)
    meta = given.get('meta') if isinstance(given, dict) else None
    meta = dict(meta) if isinstance(meta, dict) else {}
    meta['rescaled'] = dict(feature=feature, alpha=alpha, **result.scale._asdict())
    buffer = io.BytesIO()
    torch.save(dict(meta=meta, state_dict=OrderedDict(result.state)), buffer)
    WholeFilesBackend().put(buffer.getvalue(), out)
    return _describe(result, feature, alpha, out)


def _describe(result: Rescaled, feature: str, alpha: float, out: Path) -> str:
    lines = [
        f'times {alpha:g}: {", ".join(result.scale.norm)}',
        f'divided by {alpha:g}: {", ".join(result.scale.readers)}',
        f'{feature} is {result.feature_ratio:.7g} times as large (deviation {result.feature_error:.1e})',
    ]
    for what, value in result.differences.items():
        number = f'{result.images} ' if what.startswith('validation') else ''
        lines.append(f'predictions on {number}{what}: the same to {value:.1e} of the largest score')
    if result.why_no_images:
        lines.append(f'predictions on validation images: not compared, {result.why_no_images}')
    return '\n'.join([*lines, f'{out} is written'])
