"""A model that makes training steps, and how long they take."""

import copy
from collections.abc import Mapping

from mmengine.optim import build_optim_wrapper
from torch import Tensor, nn

from ..features import FeatureSource


def compared_features(
    distiller: nn.Module, pairs: Mapping
) -> tuple[dict[FeatureSource, Tensor], dict[FeatureSource, Tensor]]:
    """Copy features that were compared, so that ``distiller.compare`` takes them again.

    Args:
        distiller (FeatureDistiller): What has compared them.
        pairs (Mapping): The features of each pair by its name: what the algorithm's
            ``extract_features`` gives, or ``distiller.last_comparison.pairs``.

    Returns:
        tuple[dict[FeatureSource, Tensor], dict[FeatureSource, Tensor]]: The student's features, which
        ask for a gradient, and the teacher's.
    """
    students = {
        pair.student: pairs[pair.name].student.detach().clone().requires_grad_()
        for pair in distiller.pairs
    }
    teachers = {pair.teacher: pairs[pair.name].teacher.detach().clone() for pair in distiller.pairs}
    return students, teachers


class TimedVariant:
    """A model that makes training steps, always with the same weights and images.

    Args:
        name (str): Of the variant.
        model (BaseModel): The student alone, or a distillation.
        optim_wrapper (dict): Config; its learning rate becomes 0.
        data (dict): Prepared images and data samples.
        device (torch.device): Where the model is.
        clock (Callable): Gives seconds.
    """

    def __init__(self, name, model, optim_wrapper, data, device, clock) -> None:
        self.name, self.model, self.data = name, model, data
        self.device, self.clock = device, clock
        self.seconds, self.teacher_seconds = [], []
        self.optim_wrapper = build_optim_wrapper(model, copy.deepcopy(optim_wrapper))
        # all the arithmetic of the optimizer, and no change
        for group in self.optim_wrapper.param_groups:
            group['lr'] = 0.0

    @property
    def is_speed_open(self) -> bool:
        """Whether the next step looks for the teacher's settings (``teacher_speed``)."""
        frozen = getattr(self.model, 'frozen_teacher', None)
        return frozen is not None and frozen.compute.is_open

    @property
    def teacher_precision(self) -> str | None:
        """What the teacher computes in; None of the student's own, and without a frozen teacher."""
        frozen = getattr(self.model, 'frozen_teacher', None)
        return None if frozen is None else frozen.compute.settings.precision

    @property
    def teacher_settings(self) -> str | None:
        """What the teacher computes in, in words; None without a frozen teacher."""
        frozen = getattr(self.model, 'frozen_teacher', None)
        return None if frozen is None else frozen.compute.settings.text

    def step(self) -> None:
        """Make what MMEngine's train_step makes, with images that are prepared already."""
        with self.optim_wrapper.optim_context(self.model):
            losses = self.model(**self.data, mode='loss')
        loss, _ = self.model.parse_losses(losses)
        self.optim_wrapper.update_params(loss)

    def measure(self) -> None:
        """Time a step and, where there is a frozen teacher, its part of it."""
        self.seconds.append(self._time(self.step))
        frozen = getattr(self.model, 'frozen_teacher', None)
        if frozen is not None:
            self.teacher_seconds.append(self._time(lambda: self._run_teacher(frozen)))

    def _run_teacher(self, frozen) -> None:
        with self.optim_wrapper.optim_context(self.model):
            frozen.extract_features(self.data['inputs'], self.data['data_samples'])

    def _time(self, function) -> float:
        import torch

        synchronize = torch.cuda.synchronize if self.device.type == 'cuda' else lambda: None
        synchronize()
        start = self.clock()
        function()
        synchronize()
        return self.clock() - start

    def losses_without_dropout(self) -> dict:
        """Give the losses by name.

        MMRazor's teacher drops out at random, ours does not.
        """
        import torch

        models = [self.model]
        if self.name not in ('student', 'mmrazor'):
            models.append(self.model.teacher)
        before = []
        for model in models:
            for module in model.modules():
                for key in ('p', 'drop_prob', 'dropout_ratio'):
                    is_dropout = 'drop' in type(module).__name__.lower()
                    if is_dropout and isinstance(getattr(module, key, None), float):
                        before.append((module, key, getattr(module, key)))
                        setattr(module, key, 0.0)
        torch.manual_seed(0)
        with torch.no_grad(), self.optim_wrapper.optim_context(self.model):
            losses = self.model(**self.data, mode='loss')
            # a list holds one loss for each level
            losses = {k: v.sum() if hasattr(v, 'sum') else sum(v) for k, v in losses.items()}
        for module, key, value in before:
            setattr(module, key, value)
        if self.name == 'student':
            losses = {f'student.{name}': value for name, value in losses.items()}
        # MMRazor allows no dots in the names of its losses
        parts = {name: name.partition('.') for name in losses if 'loss' in name}
        return {
            f'{algorithm}.{loss.replace(".", "_")}': float(losses[name])
            for name, (algorithm, _, loss) in parts.items()
        }
