"""Pictures of feature maps during a training."""

import types
from typing import Any

import mmcv
import mmrazor.engine
import numpy as np
import torch
from mmengine.dist import master_only
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmengine.visualization import Visualizer
from mmrazor.engine.hooks.visualization_hook import RazorVisualizationHook as _RazorsHook
from mmrazor.registry import HOOKS
from torch import nn

from ..algorithms import FrozenTeacherDistill


@HOOKS.register_module(name='RazorVisualizationHook', force=True)
class RazorVisualizationHook(_RazorsHook):
    """Replaces MMRazor's hook of this name; does not change the state of the training.

    See there for the arguments. What is different:

    - The model is in eval mode for the pictures, and in its own mode afterwards. MMRazor leaves it in
      that of the training: dropout is in the pictures, and the statistics of each BatchNorm move.
    - The training draws the random numbers that it would draw without.
    - Sources ``'teacher....'`` work beside ``'architecture....'``, the student's: the teacher sees the
      same images, made as its own config says.
    - Pictures are written whatever the visualizer: MMSegmentation 1.2.2's fails on those without
      predictions.
    """

    needs_distillation = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._visualizer = _Pictures(self._visualizer)

    @master_only
    def before_run(self, runner: Runner) -> None:
        """Hook the modules that the recorders name."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if isinstance(model, FrozenTeacherDistill):
            # the teacher is no submodule of the algorithm, so that it would not be found
            both = nn.Module()
            both.architecture, both.teacher = model.architecture, model.teacher
            both.distiller = model.distiller
            model = both
        self.recorder_manager.initialize(model)

    def _visualize(self, runner: Runner, stage: str) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        seen = types.SimpleNamespace(
            work_dir=runner.work_dir,
            timestamp=runner.timestamp,
            cfg=runner.cfg,
            val_loop=runner.val_loop,
            model=_Both(model),
        )
        out_dir = self.out_dir  # MMRazor appends to it in every call
        modes = {module: module.training for module in model.modules()}
        model.eval()
        try:
            with torch.random.fork_rng(devices=[]):
                super()._visualize(seen, stage)
        finally:
            self.out_dir = out_dir
            for module, mode in modes.items():
                module.training = mode


class _Pictures:
    """What MMRazor's hook asks of a visualizer, for pictures that are drawn already."""

    def __init__(self, visualizer: Visualizer) -> None:
        self.visualizer = visualizer
        self.draw_featmap = visualizer.draw_featmap  # MMRazor's, which its hook has put there

    def add_datasample(
        self,
        name: str,
        image: np.ndarray,
        show: bool,
        wait_time: float,
        out_file: str | None,
        step: int,
        **_: Any,
    ) -> None:
        if show:
            self.visualizer.show(image, win_name=name, wait_time=wait_time)
        if out_file is not None:
            mmcv.imwrite(mmcv.rgb2bgr(image), out_file)
        else:
            self.visualizer.add_image(name, image, step)


class _Both:
    """Runs the student, and the teacher if there is a frozen one, on a batch."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def test_step(self, data: dict) -> list:
        if isinstance(self.model, FrozenTeacherDistill):
            self.model.frozen_teacher.predict(data, self.model.data_preprocessor)
        return self.model.test_step(data)


# Imports from MMRazor must give this class too, as configs do.
mmrazor.engine.hooks.RazorVisualizationHook = RazorVisualizationHook
