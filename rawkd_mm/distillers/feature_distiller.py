"""A distiller that is configured by pairs of features."""

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmengine.model import BaseModel, initialize
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ..features import (
    DryRun,
    FeatureSource,
    dry_run,
    image_channels,
    is_unlabelled,
    without_traces,
)
from ..features.mmrazor_adapter import (
    ComparingDistiller,
    RazorSide,
    for_module,
)
from ..registry import MODELS, check_type, register_model
from .auto_channels import fill_channels, has_auto
from .comparison import Comparison, PairFeatures
from .pairs import FeaturePair, parse_pairs


def _build_module(config: dict, what: str) -> nn.Module:
    check_type(config, what)
    # what belongs to a distiller is MMRazor's unless the config says otherwise
    module = MODELS.build({'_scope_': 'mmrazor', **copy.deepcopy(config)})
    # MMEngine does not look for init_cfg within the ModuleDicts of a distiller
    if getattr(module, 'init_cfg', None):
        module.init_weights()
        # MMCV's ConvModule initialises itself after that, and the config would have no effect
        if config.get('init_cfg') and any(isinstance(m, ConvModule) for m in module.modules()):
            initialize(module, config['init_cfg'])
    return module


def _asks_for_samples(loss: nn.Module) -> inspect.Parameter | None:
    """Give the parameter ``data_samples`` of a loss's forward; None if none can be passed by name."""
    parameter = inspect.signature(loss.forward).parameters.get('data_samples')
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return parameter if parameter is not None and parameter.kind in by_name else None


def _image_shape(student: nn.Module, teacher: nn.Module) -> tuple[int, int, int]:
    """Give the shape of the dry run's image; both models must take as many channels."""
    channels = image_channels(student), image_channels(teacher)
    if len(set(channels)) > 1:
        raise ValueError(
            f'the student takes images of {channels[0]} channels and the '
            f'teacher of {channels[1]}, so that they cannot see the same '
            'images. Give both models the same kind of image (in_channels of the backbone)'
        )
    return (channels[0], 64, 64)


@register_model
class FeatureDistiller(ComparingDistiller):
    """Distils pairs of features that are named by the paths of their modules.

    MMRazor's ``ConfigurableDistiller`` asks for recorders, connectors with channel numbers and a
    mapping between all of them. This one asks which student feature learns from which teacher
    feature and finds out the rest in one forward of each model when it is built:

    >>> distiller = dict(
    ...     type='FeatureDistiller',
    ...     loss=dict(type='CADLoss'),
    ...     pairs=[dict(student='decode_head.bottleneck', teacher='decode_head.bottleneck')])

    Losses and connectors get contiguous maps of both models, but for our own, which take any layout
    (:func:`rawkd_mm.features.mmrazor_adapter.for_module`).

    Args:
        pairs (list[dict]): Each with

            - student (str): Path of the student's module, with an index if its output is a tuple:
              ``'decode_head.bottleneck'``, ``'neck[0]'``. ``'decode_head.dropout:input'`` is what
              a module is given, for features that are no module's output.
            - teacher (str): The same of the teacher.
            - loss (dict, optional): Config of a loss whose ``forward`` takes what comes from the
              student's and from the teacher's feature as its first two arguments. If it has a
              parameter named ``data_samples``, it gets the batch's data samples, a list, too; this
              needs ``FrozenTeacherDistill``. Defaults to ``loss``.
            - align ('auto' | dict | None): 'auto' puts a 1x1 convolution on the student's feature if
              its number of channels differs from the teacher's. A dict is the config of another
              connector for the student's feature. Defaults to 'auto'. Whatever it is, a student map
              of another height and width is resized to the teacher's, bilinearly.
            - student_connector, teacher_connector (dict, optional): Configs of trained modules
              that the aligned student feature and the teacher's feature go through. They may give
              whatever the loss takes, tuples for example. Default to those for all pairs.
            - name (str, optional): Name of the log entry. Defaults to the loss and the student's
              path: ``loss_cad_decode_head.bottleneck``.
        loss (dict, optional): Config of the loss of every pair that has none of its own; each pair
            gets its own instance. In this config and those of the two connectors an argument
            in_channel(s), out_channel(s), channels, student_channels or teacher_channels may be
            'auto': the number of channels of the teacher's feature, which the aligned student
            feature has too.
        student_connector (dict, optional): Config of the student_connector of every pair that does
            not give one, or None, itself; each pair gets its own instance.
        teacher_connector (dict, optional): The same for the teacher's.
        dry_run_shape (tuple[int, int, int], optional): Channels, height and width of the input with
            which shapes are found out. Defaults to None: as many channels as the models take
            (:func:`rawkd_mm.features.probe.image_channels`), and 64x64 pixels.
        **kwargs: Every argument of ``ConfigurableDistiller``; works beside the pairs.

    Attributes:
        last_comparison (Comparison | None): What the last training iteration compared, without
            gradient, for hooks: its losses by log name, and the features of each pair. It is None before
            the first iteration, after an iteration that failed, in eval mode, and once the
            distillation has been stopped.

    Raises:
        ValueError: If there is nothing to distil, a pair is malformed, a module does not exist,
            features cannot be aligned or 'auto' stands where it has no meaning.
        RuntimeError: If a module produces no or several features in one forward.
    """

    def __init__(
        self,
        pairs: Sequence[dict] = (),
        loss: dict | None = None,
        student_connector: dict | None = None,
        teacher_connector: dict | None = None,
        dry_run_shape: Sequence[int] | None = None,
        distill_losses: dict[str, dict] | None = None,
        **kwargs: Any,
    ) -> None:
        shared = dict(
            loss=loss, student_connector=student_connector, teacher_connector=teacher_connector
        )
        parsed = parse_pairs(pairs, shared)
        if not parsed and not distill_losses:
            raise ValueError(
                'there is nothing to distil: give pairs=[dict(student=..., teacher=...)] and a loss'
            )
        super().__init__(
            distill_losses=distill_losses,
            **kwargs,
        )
        self.dry_run_shape = None if dry_run_shape is None else tuple(dry_run_shape)
        self.pairs = parsed
        self._check_keys()
        for pair in self.pairs:
            if not has_auto(pair.loss):
                self.distill_losses[pair.key] = _build_module(pair.loss, f'{pair.name}: loss')

    def _check_keys(self) -> None:
        """Make sure that every module of every pair has a key of its own."""
        taken = {*self.distill_losses, *self.connectors}
        for pair in self.pairs:
            keys = [pair.key]
            for role in ('student', 'teacher'):
                if getattr(pair, f'{role}_connector') is not None:
                    keys.append(pair.connector_key(role))
            for key in keys:
                if key in taken:
                    raise ValueError(
                        f'the pair {pair.name!r} uses the module name {key!r}, which another pair, or '
                        'a loss or connector of your own, uses already. Rename that one, or give '
                        'the pair another name=...'
                    )
            taken.update(keys)

    def prepare(
        self,
        student: BaseModel,
        teacher: BaseModel,
        teacher_size: Callable[[int, int], tuple[int, int]] | None = None,
    ) -> tuple[DryRun, DryRun]:
        """Run each model once, and build what depends on the shapes of their features.

        Args:
            student (BaseModel): The student.
            teacher (BaseModel): The teacher.
            teacher_size (Callable, optional): Gives height and width at which the teacher sees an image
                of some height and width. Defaults to None, the same.

        Returns:
            tuple[DryRun, DryRun]: How to record the features of the student and of the teacher, and
            what they depend on.

        Raises:
            ValueError: If a module does not exist, the models take images of another number of
                channels, features cannot be aligned or 'auto' stands where it has no meaning.
            RuntimeError: If a module produces no or several features in one forward.
        """
        self.hook_recorders(student, teacher)
        razor = RazorSide(self, 'teacher')
        if not self.pairs:
            shape = self.dry_run_shape or (image_channels(teacher), 64, 64)
            shape = shape if teacher_size is None else (shape[0], *teacher_size(*shape[1:]))
            return DryRun(), dry_run(teacher, shape, [], 'teacher', razor)
        shape = self.dry_run_shape or _image_shape(student, teacher)
        student_run = dry_run(student, shape, [pair.student for pair in self.pairs], 'student')
        shape = shape if teacher_size is None else (shape[0], *teacher_size(*shape[1:]))
        teacher_run = dry_run(
            teacher, shape, [pair.teacher for pair in self.pairs], 'teacher', razor
        )
        for pair in self.pairs:
            self._build(
                pair, student_run.features[pair.student], teacher_run.features[pair.teacher]
            )
        return student_run, teacher_run

    def _build(self, pair: FeaturePair, student: Tensor, teacher: Tensor) -> None:
        self._build_align(pair, student, teacher)
        for role in ('student', 'teacher'):
            config = getattr(pair, f'{role}_connector')
            if config is not None:
                where = f'{pair.name}: {role}_connector'
                module = _build_module(fill_channels(config, teacher, where), where)
                self.connectors[pair.connector_key(role)] = module
        if pair.key not in self.distill_losses:
            config = fill_channels(pair.loss, teacher, f'{pair.name}: loss')
            self.distill_losses[pair.key] = _build_module(config, f'{pair.name}: loss')
        self._check_shape(pair, teacher)

    def _check_shape(self, pair: FeaturePair, feature: Tensor) -> None:
        """Let a loss refuse the feature that it will get, where that is known."""
        check = getattr(self.distill_losses[pair.key], 'check_shape', None)
        if check is None or pair.connector_key('teacher') in self.connectors:
            return
        try:
            check(feature.shape)
        except ValueError as error:
            raise ValueError(f'{pair.name}: {error}') from error

    def _build_align(self, pair: FeaturePair, student: Tensor, teacher: Tensor) -> None:
        config = pair.align
        if config == 'auto':
            config = self._auto_align(pair, student, teacher)
        if config is not None:
            self.connectors[pair.key] = _build_module(config, f'{pair.name}: align')
        with without_traces(self.connectors):
            aligned = self._align(pair, student, teacher)
        if aligned.shape != teacher.shape:
            raise ValueError(
                f'{pair.name}: align={pair.align!r} makes {tuple(aligned.shape)} of the student '
                f'feature {tuple(student.shape)}, but the teacher feature is '
                f"{tuple(teacher.shape)}. Use align='auto' or a connector that gives its shape; "
                "for a loss that compares different shapes, MMRazor's own arguments of the "
                'distiller'
            )

    @staticmethod
    def _auto_align(pair: FeaturePair, student: Tensor, teacher: Tensor) -> dict | None:
        if student.dim() != teacher.dim() or (
            student.dim() != 4 and student.shape != teacher.shape
        ):
            raise ValueError(
                f"{pair.name}: align='auto' aligns feature maps of shape (B, C, H, W), got "
                f'{tuple(student.shape)} of the student and {tuple(teacher.shape)} of the teacher; '
                'give the config of a connector, align=dict(type=...)'
            )
        if student.shape[1] == teacher.shape[1]:
            return None
        return dict(
            type='ConvModuleConnector',
            in_channel=student.shape[1],
            out_channel=teacher.shape[1],
            act_cfg=None,
        )

    def _align(self, pair: FeaturePair, student: Tensor, teacher: Tensor) -> Tensor:
        """Bring the student's feature to the teacher's channels, height and width."""
        if student.shape[0] != teacher.shape[0]:
            raise RuntimeError(
                f'{pair.name}: the student gave features of {student.shape[0]} images, the teacher '
                f'of {teacher.shape[0]}: one map of each image was expected. A model that splits into '
                'branches in training (TridentNet) has one map of an image in the modules before them: '
                'name one of those; tools/inspect_features.py lists them'
            )
        if pair.key in self.connectors:
            align = self.connectors[pair.key]
            student = align(for_module(align, student))
        if student.dim() == 4 and teacher.dim() == 4 and student.shape[2:] != teacher.shape[2:]:
            student = F.interpolate(
                student, size=teacher.shape[2:], mode='bilinear', align_corners=False
            )
        return student

    def _loss(
        self,
        pair: FeaturePair,
        features: PairFeatures,
        data_samples: list[BaseDataElement] | None,
    ) -> Tensor:
        """Send two aligned features through their connectors and compute the loss."""
        loss = self.distill_losses[pair.key]
        arguments = {}
        parameter = _asks_for_samples(loss)
        if parameter is not None:
            if any(map(is_unlabelled, data_samples or ())):
                self.check_unlabelled()
                data_samples = None  # it can do without labels
            if data_samples is None and parameter.default is parameter.empty:
                raise RuntimeError(
                    f'{pair.name}: {type(loss).__name__} needs the data samples of the batch and '
                    'got none. Use FrozenTeacherDistill as the algorithm, which hands them over '
                    "(MMRazor's SingleTeacherDistill does not), with a data set that has "
                    'annotations.'
                )
            arguments['data_samples'] = data_samples
        student = self._connect(pair, 'student', features.aligned)
        teacher = self._connect(pair, 'teacher', features.teacher)
        return loss(for_module(loss, student), for_module(loss, teacher), **arguments)

    def check_unlabelled(self) -> None:
        """Refuse images without labels if a loss needs labels.

        Raises:
            ValueError: If one does; names the pair.
        """
        for pair in self.pairs:
            loss = self.distill_losses[pair.key]
            parameter = _asks_for_samples(loss)
            if parameter is not None and parameter.default is parameter.empty:
                raise ValueError(
                    f'{pair.name}: {type(loss).__name__} needs the labels of the images '
                    '(data_samples), and images without labels have none. Give this pair a loss that '
                    'compares features alone, such as LADLoss, or leave out the unlabelled images'
                )

    def _connect(self, pair: FeaturePair, role: str, feature: Tensor) -> Any:
        key = pair.connector_key(role)
        if key not in self.connectors:
            return feature
        connector = self.connectors[key]
        return connector(for_module(connector, feature))

    def compare(
        self,
        student: dict[FeatureSource, Tensor],
        teacher: dict[FeatureSource, Tensor],
        data_samples: list[BaseDataElement] | None = None,
        is_student_trained: bool = True,
    ) -> Comparison:
        """Compare the features of the student and the teacher, pair by pair.

        Args:
            student (dict[FeatureSource, Tensor]): The student's features.
            teacher (dict[FeatureSource, Tensor]): The teacher's.
            data_samples (list, optional): The batch's data samples, for the losses that ask for
                them. Defaults to None.
            is_student_trained (bool): Whether a student feature without gradient is an error.
                Defaults to True.

        Returns:
            Comparison: A loss for each pair, by its name, beside those of ``loss_forward_mappings``;
            and the features of each pair.

        Raises:
            RuntimeError: If a student feature has no gradient; or if a loss needs data samples and
                there are none.
        """
        losses, features = self.mapped_losses(), {}
        for pair in self.pairs:
            found = self.align(pair, student[pair.student], teacher[pair.teacher])
            if is_student_trained and torch.is_grad_enabled() and not found.student.requires_grad:
                raise RuntimeError(
                    f'{pair.name}: the student feature has no gradient, so the student cannot learn '
                    'from it. Either the module is frozen (frozen_stages), or it lies inside a block '
                    'with activation checkpointing (with_cp=True). Choose a later module, or the '
                    'whole block.'
                )
            features[pair.name] = found
            losses[pair.name] = self._loss(pair, found, data_samples)
        return Comparison(losses, features)

    def align(self, pair: FeaturePair, student: Tensor, teacher: Tensor) -> PairFeatures:
        """Bring the student's feature to the teacher's channels, height and width.

        Args:
            pair (FeaturePair): One of ``pairs``.
            student (Tensor): The student's feature.
            teacher (Tensor): The teacher's.

        Returns:
            PairFeatures: Both, and the aligned one.

        Raises:
            RuntimeError: If the features are of another number of images.
        """
        return PairFeatures(student, self._align(pair, student, teacher), teacher)
