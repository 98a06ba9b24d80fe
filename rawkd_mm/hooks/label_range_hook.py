"""Stops a training whose labels do not belong to the model's classes."""

from collections.abc import Iterator
from typing import NamedTuple

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from ..registry import HOOKS
from ..training.build_model import number_of_classes


class LabelRange(NamedTuple):
    """Which labels there may be.

    Attributes:
        classes (int): 0 to this number less 1.
        ignored (frozenset[int]): What the losses leave out, besides.
    """

    classes: int
    ignored: frozenset[int] = frozenset()


@HOOKS.register_module()
class LabelRangeHook(Hook):
    """Stops a training on a label that is none of the model's classes.

    Without it, such a label ends a training on GPUs with a failed assertion of a kernel that tells
    neither the label nor the image, and leaves the GPU unusable for the process. The labels are
    looked at where the data loader leaves them, on the CPU, in each iteration: label maps and labels
    of boxes.

    What the model itself maps or leaves out is allowed:

    - the ``ignore_index`` of heads and losses, in label maps;
    - any label of a box, for an RPN that is trained alone (MMDetection sets them to 0) and for
      detectors that are asked in words (labels number the phrases of an image's text);
    - in label maps of panoptic models, the things' classes beside the stuff's; Mask2Former and
      MaskFormer of MMDetection take the stuff and leave out every other label;
    - any label map that comes with a detector without a semantic head, which does not read it.

    Does nothing for a model none of whose heads has ``num_classes``.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        """Find out which labels there may be."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        # In a distillation, only the student learns from labels.
        model = getattr(model, 'architecture', model)
        self._boxes = box_labels(model)
        self._maps = map_labels(model)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        """Look at the labels of the batch.

        Args:
            runner (Runner): Has the number of the iteration.
            batch_idx (int): Not used.
            data_batch (dict, optional): With ``data_samples``, as mmseg and mmdet pack them.

        Raises:
            ValueError: If there is another label; names the image, the labels and the classes.
        """
        if not isinstance(data_batch, dict):
            return
        samples = data_batch.get('data_samples') or ()
        if isinstance(samples, dict):  # semi-supervised: only these have labels that count
            samples = samples.get('sup') or ()
        for sample in samples:
            for labels, allowed in self._labels(sample):
                _check(labels, allowed, sample, runner.iter + 1)

    def _labels(self, sample: object) -> Iterator[tuple[Tensor, LabelRange]]:
        """Labels of a data sample, each with what they may be."""
        maps = getattr(sample, 'gt_sem_seg', None)
        for key in ('sem_seg', 'data') if maps is not None else ():
            labels = getattr(maps, key, None)
            if isinstance(labels, Tensor):
                yield from ((labels, allowed) for allowed in self._maps)
        labels = getattr(getattr(sample, 'gt_instances', None), 'labels', None)
        if isinstance(labels, Tensor) and self._boxes is not None:
            yield labels, self._boxes


def _check(labels: Tensor, allowed: LabelRange, sample: object, iteration: int) -> None:
    if not labels.numel():
        return
    # One pass is enough where nothing is ignored.
    lowest, highest = labels.aminmax()
    if lowest >= 0 and highest < allowed.classes:
        return
    is_wrong = labels >= allowed.classes
    if lowest < 0:
        is_wrong |= labels < 0
    for value in allowed.ignored:
        is_wrong &= labels != value
    if is_wrong.any():
        wrong = labels[is_wrong].unique().tolist()
        path = getattr(sample, 'img_path', None)
        raise ValueError(
            f'iteration {iteration}: labels {wrong[:10]} in {path or "an image"}, '
            f'but the model has {allowed.classes} classes, 0 to {allowed.classes - 1} '
            f'(ignored: {sorted(allowed.ignored)}). Check num_classes, and the labels: '
            'is reduce_zero_label right, are they class numbers and not colours?'
        )


def box_labels(model: nn.Module) -> LabelRange | None:
    """Find out which labels the boxes of a model may have.

    Args:
        model (nn.Module): A detector, or any model.

    Returns:
        LabelRange | None: None if any label will do, or nothing tells.
    """
    # RPN sets all of them to 0; with a language model they number the phrases of the text
    if _is_a(model, 'RPN') or getattr(model, 'language_model', None) is not None:
        return None
    kinds = ('BaseSemanticHead', 'FusedSemanticHead', 'BasePanopticFusionHead')
    others = [f'{name}.' for name, module in model.named_modules() if _is_a(module, *kinds)]
    counts = [
        module.num_classes
        for name, module in model.named_modules()
        if isinstance(getattr(module, 'num_classes', None), int)
        # a panoptic model's own number counts the stuff, too
        and name
        and not f'{name}.'.startswith(('backbone.', *others))
    ]
    return LabelRange(max(counts)) if counts else None


def map_labels(model: nn.Module) -> list[LabelRange]:
    """Find out which labels the label maps of a model may have.

    Args:
        model (nn.Module): A segmentor, a detector, or any model.

    Returns:
        list[LabelRange]: One for each head that reads them, all of which they have to be in; none
        if any label will do, or nothing tells.
    """
    if not _is_a(model, 'BaseDetector'):
        classes = number_of_classes(model)
        return [] if classes is None else [LabelRange(classes, _ignored_labels(model))]
    found = []
    for module in model.modules():
        if _is_a(module, 'PanopticFPNHead'):
            classes = module.num_things_classes + module.num_stuff_classes
        elif _is_a(module, 'BaseSemanticHead', 'FusedSemanticHead', 'CLRHead'):
            classes = module.num_classes
        else:
            continue
        found.append(LabelRange(classes, _ignored_labels(module)))
    return found


def _is_a(module: nn.Module, *names: str) -> bool:
    """Whether a module's class, or one that it derives from, is MMDetection's of a name.

    By name, because MMDetection need not be installed.
    """
    return any(
        kind.__name__ in names and kind.__module__.startswith('mmdet.')
        for kind in type(module).__mro__
    )


def _ignored_labels(model: nn.Module) -> frozenset[int]:
    found = set()
    for module in model.modules():
        value = getattr(module, 'ignore_index', getattr(module, 'ignore_label', ...))
        if value is None and type(module).__name__ == 'CrossEntropyLoss':
            value = -100  # MMDetection's, as PyTorch's
        if isinstance(value, int):
            found.add(value)
    return frozenset(found)
