"""The teacher of a distillation: a model that gives features and never changes."""

import copy
from collections.abc import Callable, Sequence

import torch
from mmengine.model import BaseModel, revert_sync_batchnorm
from torch import Tensor, nn

from ..compat import is_autocast_enabled
from ..features import FeatureCapture, FeatureSource, run_to_last_feature, single_images
from ..features.mmrazor_adapter import RazorSide
from ..training.build_model import build_model
from .images import make_renormalize
from .input_size import TeacherInput
from .sharing import SharedTeacher
from .speed import TeacherCompute

__all__ = ['FrozenTeacher', 'build_teacher']


def build_teacher(config: dict | BaseModel) -> BaseModel:
    """Build a teacher as :func:`build_model` does, with BN in place of SyncBN.

    In eval mode the two are the same, and BN runs on every device and without processes.
    """
    return revert_sync_batchnorm(build_model(config))


class FrozenTeacher:
    """A model that gives features and never changes.

    It is no ``nn.Module``, so that it has no part in what a runner does with the modules of a
    model: optimizer, DDP, train(), checkpoints, EMA copies, initialisation.

    Args:
        model (BaseModel): The teacher, with its weights.
        preprocessor (nn.Module): The data_preprocessor that makes the student's images.
        capture (FeatureCapture): The features that it gives.
        compute (TeacherCompute): What it computes in.
        razor (RazorSide): MMRazor's recorders and deliveries of the teacher.
        input_size (TeacherInput): At which size it sees the images.
        absent (list[str], optional): Names of the parameters and buffers that did not come from a
            checkpoint. None, the default, if none was loaded.
        classes (Sequence[str], optional): Names of the classes that the checkpoint says it knows.
        in_use (list[str], optional): Names of the parameters and buffers that the features need.

    Attributes:
        model (BaseModel): The teacher in eval mode, without gradient.
        is_borrowed (bool): Whether the model belongs to the object that this is a copy of.
        renormalize (Renormalize | None): Makes the teacher's images from the student's.
        input_size (TeacherInput): At which size it sees them.
        compute (TeacherCompute): What it computes in; copies share it, as they share the model.
        capture (FeatureCapture): The features that it gives.
        shared (SharedTeacher | None): Runs it for several students, if there are.
    """

    def __init__(
        self,
        model: BaseModel,
        preprocessor: nn.Module,
        capture: FeatureCapture,
        compute: TeacherCompute,
        razor: RazorSide,
        input_size: TeacherInput,
        absent: list[str] | None = None,
        classes: Sequence[str] | None = None,
        in_use: list[str] | None = None,
    ) -> None:
        model.eval()  # that of a detector with a teacher of its own gives None
        self.model = model.requires_grad_(False)
        self.renormalize = make_renormalize(preprocessor, model.data_preprocessor)
        self.is_borrowed = False
        self.absent = absent
        self.classes = classes
        self.in_use = in_use
        self.capture = capture
        self.compute = compute
        self.shared: SharedTeacher | None = None
        self._razor = razor
        self.input_size = input_size

    def __deepcopy__(self, memo: dict) -> 'FrozenTeacher':
        # A copy of the algorithm (EMA) has its own distiller, but the model never changes.
        copied = copy.copy(self)
        memo[id(self)] = copied
        copied.is_borrowed = True
        copied._razor = copy.deepcopy(self._razor, memo)
        return copied

    def follow(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Go to the device that a function moves tensors to.

        ``half()``, ``to_empty()`` and the meta device do not change the weights. A cast to float64 is
        applied: it loses nothing.

        Args:
            fn (Callable): What ``nn.Module._apply`` is given.
        """
        here = next(self.model.parameters()).device
        probe = torch.empty(0, device=here, dtype=torch.float32)
        moved = fn(probe)
        if moved.dtype == torch.float64:
            self.model.to(moved.dtype)
        if moved.device != here and not moved.is_meta:
            self.model.to(moved.device)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the images that the model takes."""
        if self.compute.settings.precision in ('bf16', 'fp16'):  # autocast converts them
            return torch.float32
        return next(self.model.parameters()).dtype

    @property
    def has_recorders(self) -> bool:
        """Whether MMRazor's recorders or deliveries watch it."""
        razor = self._razor
        return razor.needs_whole_forward or bool(razor.recorders or razor.parameters)

    @torch.no_grad()
    def extract_features(
        self, inputs: Tensor, data_samples: list | None = None
    ) -> dict[FeatureSource, Tensor]:
        """Run the teacher as far as the last feature, on the student's images.

        Args:
            inputs (Tensor): The student's images, shape (B, C, H, W); or its clips of T images,
                (B, T, C, H, W), of which the teacher sees each image.
            data_samples (list, optional): What belongs to them.

        Returns:
            dict[FeatureSource, Tensor]: The features, of the part of the teacher's images that is not
            padding to fit its patches. Outside of autocast they are float32 (or the
            student's type) whatever the teacher computed in, because connectors and losses do not
            mix types; under autocast they are what the teacher computed.

        What MMRazor's recorders and deliveries record is left in them.
        """
        if self.shared is not None:
            return self.shared.extract_features(self, inputs, data_samples)
        return self.run(inputs, data_samples, self.capture)

    @torch.no_grad()
    def run(
        self,
        inputs: Tensor,
        data_samples: list | None,
        capture: FeatureCapture,
    ) -> dict[FeatureSource, Tensor]:
        """Run the model for the features of a capture; see :meth:`extract_features`.

        Args:
            inputs (Tensor): The student's images, shape (B, C, H, W).
            data_samples (list, optional): What belongs to them.
            capture (FeatureCapture): The features.

        Returns:
            dict[FeatureSource, Tensor]: The features.
        """
        if self.model.training:
            self.model.eval()
        inputs, data_samples = single_images(inputs, data_samples)
        student_dtype = inputs.dtype  # of a student that was cast, where it is not the teacher's
        images = self._images(inputs, data_samples)
        data_samples = self.input_size.samples(data_samples, inputs.shape[2:])
        device_type = images.device.type
        with (
            self._razor.record(self.model, self.is_borrowed),
            self.compute.autocast(device_type),
        ):
            if self._razor.needs_whole_forward:
                with capture.record(self.model) as recording:
                    self.model(images, data_samples, mode='loss')
                features = capture.features(recording, 'teacher')
            else:
                with self.compute.graphs():
                    features = run_to_last_feature(
                        self.model, images, data_samples, capture, self._razor
                    )
        features = {
            source: self.input_size.crop(feature, source.text, inputs.shape[2:])
            for source, feature in features.items()
        }
        if not self.compute.changes_features and student_dtype == images.dtype:
            return features

        def convert(feature: Tensor) -> Tensor:
            return self._for_student(feature, student_dtype, is_autocast_enabled(device_type))

        self._razor.convert(convert)
        return {source: convert(feature) for source, feature in features.items()}

    def _images(self, inputs: Tensor, data_samples: list | None) -> Tensor:
        """Make the teacher's images from the student's."""
        if self.renormalize is not None:
            inputs = self.renormalize(inputs, data_samples)
        inputs = self.input_size.apply(inputs, data_samples)
        if self.compute.settings.channels_last:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return inputs.to(self.dtype)

    def _for_student(
        self, feature: Tensor, student_dtype: torch.dtype, is_student_low: bool
    ) -> Tensor:
        """Bring a feature into a type and layout that every loss and connector can take."""
        if not feature.is_floating_point():
            return feature
        if not is_student_low and feature.dtype in (torch.bfloat16, torch.float16):
            feature = feature.float()
        if student_dtype != self.dtype:
            feature = feature.to(student_dtype)
        return feature.contiguous()

    @torch.no_grad()
    def predict(self, data: dict | tuple | list, preprocessor: nn.Module) -> list:
        """Run the whole teacher, as the student is run in a validation.

        Args:
            data (dict | tuple | list): A batch of a data loader.
            preprocessor (nn.Module): The data_preprocessor that makes the student's images.

        Returns:
            list: What the model's ``mode='predict'`` gives, a data sample for each image.
        """
        self.model.eval()
        data = preprocessor(data, False)
        inputs, data_samples = data['inputs'], data.get('data_samples')
        if self.renormalize is not None:
            inputs = self.renormalize(inputs, data_samples)
        with self.compute.autocast(inputs.device.type):
            return self.model(inputs, data_samples, mode='predict')
