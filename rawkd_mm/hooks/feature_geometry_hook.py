"""Records magnitudes and angle of the distilled features over the training."""

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from .. import functional
from ..distillers import FeatureDistiller
from ..registry import HOOKS

# Entries of rawkd_mm.functional.FeatureGeometry, and what they are called in a log.
_LOG_NAMES = {
    'student_norm': 'n',
    'teacher_norm': 'm',
    'coupling': 'mn_over_N',
    'cosine': 'cos_theta',
    'magnitude_term': 'magnitude_term',
    'angular_term': 'angular_term',
}


@HOOKS.register_module()
class FeatureGeometryHook(Hook):
    """Logs n, m, mn/N, the cosine and the two terms of Eq. (10) of every pair of features.

    They are those of the supplement's Fig. 8, mean over the batch and over all processes, and are
    logged as ``geometry/<pair>/<value>``, with ``<pair>`` the name of the pair's loss. The student's
    feature is what ``align`` has made of it, and the teacher's is as its module gave it. That is what
    the loss sees, unless the pair has a ``student_connector`` or a ``teacher_connector``. Works with
    any loss of a ``FeatureDistiller`` and costs nothing in the iterations between.

    Args:
        interval (int): Record every this many iterations, and at the first. Defaults to 50.

    Raises:
        ValueError: If the interval is not positive.
        TypeError: If the model has no ``FeatureDistiller``.
    """

    # after the optimizer, before the LoggerHook writes
    priority = 'NORMAL'
    # a student alone has no use for it: --student-alone leaves it out
    needs_distillation = True

    def __init__(self, interval: int = 50) -> None:
        if interval < 1:
            raise ValueError(f'interval must be at least 1 iteration, got {interval}')
        self.interval = interval

    def _distiller(self, runner: Runner) -> FeatureDistiller:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        distiller = getattr(model, 'distiller', None)
        if not isinstance(distiller, FeatureDistiller):
            raise TypeError(
                'FeatureGeometryHook needs a distillation with a FeatureDistiller, got '
                f'{type(model).__name__} with {type(distiller).__name__}'
            )
        return distiller

    def before_train(self, runner: Runner) -> None:
        """Check that there is something to record."""
        self._distiller(runner)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: dict | None = None,
    ) -> None:
        """Decompose what was compared, average it and hand it to the visualizer."""
        is_due = (runner.iter + 1) % self.interval == 0 or runner.iter == 0
        comparison = self._distiller(runner).last_comparison
        if not is_due or comparison is None or not comparison.pairs:
            return
        geometries = {
            pair: functional.decompose(features.aligned, features.teacher)
            for pair, features in comparison.pairs.items()
        }
        names = [
            f'geometry/{pair}/{_LOG_NAMES[field]}'
            for pair, geometry in geometries.items()
            for field in geometry._fields
        ]
        values = torch.stack(
            [value.float().mean() for geometry in geometries.values() for value in geometry]
        )
        all_reduce(values, op='mean')
        # into the same JSON log as the LoggerHook's entries, beside vis_data/scalars.json
        runner.visualizer.add_scalars(
            dict(zip(names, values.tolist())),
            step=runner.iter + 1,
            file_path=f'{runner.timestamp}.json',
        )
