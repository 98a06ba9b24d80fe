"""Stops a training whose labels do not belong to the model's classes."""

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from ..algorithms.frozen_teacher import number_of_classes
from ..registry import HOOKS


@HOOKS.register_module()
class LabelRangeHook(Hook):
    """Stops a training on a label that is none of the model's classes.

    Without it, such a label ends a training on GPUs with a failed assertion of a kernel that tells
    neither the label nor the image, and leaves the GPU unusable for the process. The labels are
    looked at where the data loader leaves them, on the CPU, in each iteration: label maps of
    segmentation (the model's ``ignore_index`` is allowed) and labels of boxes.

    Does nothing for a model none of whose heads has ``num_classes``.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        """Find out which labels there may be."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        # of a distillation, the student is what learns from labels
        model = getattr(model, 'architecture', model)
        self._classes = number_of_classes(model)
        self._ignored = _ignored_labels(model)

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
        if self._classes is None or not isinstance(data_batch, dict):
            return
        for sample in data_batch.get('data_samples') or ():
            for labels in _labels(sample):
                # two passes over the labels, and more only if they find something
                if not labels.numel() or (labels.min() >= 0 and labels.max() < self._classes):
                    continue
                wrong = sorted(
                    value
                    for value in labels.unique().tolist()
                    if not 0 <= value < self._classes and value not in self._ignored
                )
                if wrong:
                    path = getattr(sample, 'img_path', None)
                    raise ValueError(
                        f'iteration {runner.iter + 1}: labels {wrong[:10]} in {path or "an image"}, '
                        f'but the model has {self._classes} classes, 0 to {self._classes - 1} '
                        f'(ignored: {sorted(self._ignored)}). Check num_classes, and the labels: '
                        'is reduce_zero_label right, are they class numbers and not colours?'
                    )


def _ignored_labels(model: nn.Module) -> set[int]:
    found = {getattr(module, 'ignore_index', None) for module in model.modules()}
    return {value for value in found if isinstance(value, int)}


def _labels(sample: object) -> list[Tensor]:
    """Labels of a data sample: its label map, those of its boxes, or both."""
    found = []
    if getattr(sample, 'gt_sem_seg', None) is not None:
        found.append(getattr(sample.gt_sem_seg, 'sem_seg', None))
        found.append(getattr(sample.gt_sem_seg, 'data', None))
    if getattr(sample, 'gt_instances', None) is not None:
        found.append(getattr(sample.gt_instances, 'labels', None))
    return [labels for labels in found if isinstance(labels, Tensor)]
