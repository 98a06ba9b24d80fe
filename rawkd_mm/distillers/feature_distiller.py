"""A distiller that is configured by pairs of features."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from mmrazor.models import ConfigurableDistiller
from torch import Tensor, nn

from .. import functional
from ..registry import MODELS, register_model
from .feature_recorder import FeatureRecorder, FeatureSource

_PAIR_KEYS = ('student', 'teacher', 'loss', 'align', 'name')


class FeaturePair(NamedTuple):
    """One student feature, the teacher feature that it is compared with, and how.

    Attributes:
        name (str): Name of the log entry, such as ``'loss_cad_decode_head.bottleneck'``.
        student (FeatureSource): Where the student's feature comes from.
        teacher (FeatureSource): Where the teacher's feature comes from.
        align (str | dict | None): 'auto', the config of a connector, or None.
    """

    name: str
    student: FeatureSource
    teacher: FeatureSource
    align: str | dict | None

    @property
    def key(self) -> str:
        """Key in the module dicts, where no dot is allowed."""
        return self.name.replace('.', '_')


def _method_name(loss: dict) -> str:
    """'CADLoss' -> 'cad', 'mmrazor.ChannelWiseDivergence' -> 'channelwisedivergence'."""
    name = loss['type'] if isinstance(loss['type'], str) else loss['type'].__name__
    return name.rpartition('.')[2].lower().replace('loss', '')


def _parse_pairs(pairs: Sequence[dict], default_loss: dict | None) -> list[tuple]:
    """Check the configs of the pairs and name them; gives (FeaturePair, loss config) each."""
    if isinstance(pairs, dict) or not isinstance(pairs, Sequence) or isinstance(pairs, str):
        raise TypeError(f'pairs must be a list of dicts, got {type(pairs).__name__}: {pairs!r}')
    parsed = []
    for i, pair in enumerate(pairs):
        if not isinstance(pair, dict):
            raise TypeError(
                f"pairs[{i}] must be a dict such as dict(student='decode_head.bottleneck', "
                f"teacher='decode_head.bottleneck'), got {pair!r}"
            )
        unknown = sorted(set(pair) - set(_PAIR_KEYS))
        missing = [key for key in ('student', 'teacher') if key not in pair]
        if unknown or missing:
            raise ValueError(
                f'pairs[{i}] has unknown keys {unknown} and lacks {missing}; '
                f'a pair has student, teacher and optionally loss, align, name'
            )
        if not isinstance(pair.get('name', ''), str):
            raise ValueError(f'name of pairs[{i}] must be a string, got {pair["name"]!r}')
        loss = pair.get('loss', default_loss)
        if not isinstance(loss, dict) or 'type' not in loss:
            raise ValueError(
                f'pairs[{i}] has no loss: give it one, loss=dict(type=...), or give the distiller '
                f'one for all pairs; got {loss!r}'
            )
        align = pair.get('align', 'auto')
        if align is not None and align != 'auto' and not isinstance(align, dict):
            raise ValueError(
                f"align of pairs[{i}] must be 'auto', None or the config of a connector, "
                f'got {align!r}'
            )
        parsed.append((pair, FeatureSource.parse(pair['student']), loss, align))

    # The student's feature names the entry; where that is not unique, the teacher's helps.
    names = [
        pair.get('name') or f'{_method_name(loss)}_{student.label}'
        for pair, student, loss, _ in parsed
    ]
    result = []
    for (pair, student, loss, align), name in zip(parsed, names):
        teacher = FeatureSource.parse(pair['teacher'])
        if names.count(name) > 1 and 'name' not in pair:
            name = f'{name}_{teacher.label}'
        # MMEngine sums what has 'loss' in its name and backpropagates it.
        name = name if name.startswith('loss') else f'loss_{name}'
        result.append((FeaturePair(name, student, teacher, align), loss))
    keys = [pair.key for pair, _ in result]
    twice = sorted({pair.name for pair, _ in result if keys.count(pair.key) > 1})
    if twice:
        raise ValueError(f'several pairs would be logged as {twice}; give each a name=...')
    return result


def _build(config: dict) -> nn.Module:
    # what belongs to a distiller is MMRazor's unless the config says otherwise
    return MODELS.build({'_scope_': 'mmrazor', **copy.deepcopy(config)})


def _recorder_name(source: FeatureSource) -> str:
    return f'feature {source.module}'


def _add_recorders(recorders: dict | None, sources: Sequence[FeatureSource]) -> dict:
    ours = {_recorder_name(s): dict(type='Feature', source=s.module) for s in sources}
    return {**(recorders or {}), **ours}


def run_for_features(
    model: nn.Module, inputs: Tensor, data_samples: list | None, sources: Iterable[str]
) -> None:
    """Run a model on images without computing losses.

    An auxiliary head of an mmseg segmentor, which only its training runs, runs if a source lies in
    it, right behind the backbone and the neck.

    Args:
        model (nn.Module): A model of MMEngine's interface.
        inputs (Tensor): Images, shape (B, C, H, W).
        data_samples (list, optional): What belongs to them.
        sources (Iterable[str]): Paths of the modules whose outputs are wanted.
    """
    heads = getattr(model, 'auxiliary_head', None)
    named = {'auxiliary_head': heads}
    if isinstance(heads, nn.ModuleList):
        named = {f'auxiliary_head.{i}': head for i, head in enumerate(heads)}
    wanted = [h for n, h in named.items() if any(f'{s}.'.startswith(f'{n}.') for s in sources)]
    if not wanted:
        model(inputs, data_samples, mode='tensor')
        return

    def run_heads(module: nn.Module, args: tuple, features: object) -> None:
        for head in wanted:
            head(features)

    body = model.neck if getattr(model, 'with_neck', False) else model.backbone
    handle = body.register_forward_hook(run_heads)
    try:
        model(inputs, data_samples, mode='tensor')
    finally:
        handle.remove()


def dry_run(model: nn.Module, shape: Sequence[int], recorders: Sequence[FeatureRecorder]) -> None:
    """Let a model produce features from an empty image, in eval mode and without gradient.

    Args:
        model (nn.Module): A model of MMEngine's interface.
        shape (Sequence[int]): Channels, height and width of the image.
        recorders (Sequence[FeatureRecorder]): Hold what the model produced, afterwards.

    Raises:
        RuntimeError: If the model fails before each recorder has a feature.
    """
    inputs = next(model.parameters()).new_zeros((1, *shape))

    def is_complete() -> bool:
        return all(recorder.data_buffer for recorder in recorders)

    with _without_traces(model), ExitStack() as stack:
        for recorder in recorders:
            stack.enter_context(recorder)
        try:
            run_for_features(model, inputs, None, [recorder.source for recorder in recorders])
        except Exception as error:
            # A detector's head may want what an empty image lacks. Nothing is lost by that once
            # all features are there.
            if not is_complete():
                raise RuntimeError(
                    f'{type(model).__name__} failed on an empty image of shape {tuple(shape)} '
                    f'before it had produced all features: {error!r}. Set dry_run_shape of the '
                    'distiller if the model needs another one; a feature must be computed from '
                    'the image alone (backbone, neck, heads of a segmentor).'
                ) from error


@contextmanager
def _without_traces(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradient, and everything as it was afterwards: modes and random state."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        for module, mode in training.items():
            module.training = mode


@register_model
class FeatureDistiller(ConfigurableDistiller):
    """Distils pairs of features that are named by the paths of their modules.

    MMRazor's ``ConfigurableDistiller`` asks for recorders, connectors with channel numbers and a
    mapping between all of them. This one asks which student feature learns from which teacher
    feature and finds out the rest in one forward of each model when it is built:

    >>> distiller = dict(
    ...     type='FeatureDistiller',
    ...     loss=dict(type='CADLoss'),
    ...     pairs=[dict(student='decode_head.bottleneck', teacher='decode_head.bottleneck')])

    Args:
        pairs (list[dict]): Each with

            - student (str): Path of the student's module, with an index if its output is a tuple:
              ``'decode_head.bottleneck'``, ``'neck[0]'``.
            - teacher (str): The same of the teacher.
            - loss (dict, optional): Config of a loss whose ``forward`` takes the student's and the
              teacher's feature as its first two arguments. Defaults to ``loss``.
            - align ('auto' | dict | None): 'auto' puts a 1x1 convolution on the student's feature if
              its number of channels differs from the teacher's. A dict is the config of another
              connector for the student's feature. Defaults to 'auto'. Whatever it is, a student map
              of another height and width is resized to the teacher's, bilinearly.
            - name (str, optional): Name of the log entry. Defaults to the loss and the student's
              path: ``loss_cad_decode_head.bottleneck``.
        loss (dict, optional): Config of the loss of every pair that has none of its own; each pair
            gets its own instance.
        dry_run_shape (tuple[int, int, int]): Channels, height and width of the input with which
            shapes are found out. Defaults to (3, 64, 64).
        **kwargs: Every argument of ``ConfigurableDistiller``; works beside the pairs.

    Attributes:
        student_trainable (bool): Whether a student feature without gradient is an error. Defaults to
            True.
        record_geometry (bool): Whether :meth:`compute_distill_losses` fills ``geometry``.
        geometry (dict[str, FeatureGeometry]): For each pair, by its name, the terms of
            :func:`rawkd_mm.functional.decompose` of the features that were last compared.

    Raises:
        ValueError: If there is nothing to distil, a pair is malformed, a module does not exist or
            features cannot be aligned.
        RuntimeError: If a module produces no or several features in one forward.
    """

    def __init__(
        self,
        pairs: Sequence[dict] = (),
        loss: dict | None = None,
        dry_run_shape: Sequence[int] = (3, 64, 64),
        student_recorders: dict[str, dict] | None = None,
        teacher_recorders: dict[str, dict] | None = None,
        distill_losses: dict[str, dict] | None = None,
        **kwargs: Any,
    ) -> None:
        parsed = _parse_pairs(pairs, loss)
        if not parsed and not distill_losses:
            raise ValueError(
                'there is nothing to distil: give pairs=[dict(student=..., teacher=...)] and a loss'
            )
        super().__init__(
            student_recorders=_add_recorders(
                student_recorders, [pair.student for pair, _ in parsed]
            ),
            teacher_recorders=_add_recorders(
                teacher_recorders, [pair.teacher for pair, _ in parsed]
            ),
            distill_losses=distill_losses,
            **kwargs,
        )
        self.dry_run_shape = tuple(dry_run_shape)
        self.pairs = [pair for pair, _ in parsed]
        for pair, loss_cfg in parsed:
            if pair.key in self.distill_losses or pair.key in self.connectors:
                raise ValueError(
                    f'a loss or connector of your own is called {pair.key!r}, as the pair '
                    f'{pair.name!r} is: rename it, or give the pair a name=...'
                )
            self.distill_losses[pair.key] = _build(loss_cfg)
        self._dry_run_features: dict[str, dict[FeatureSource, Tensor]] = {}
        self.student_trainable = True
        self.record_geometry = False
        self.geometry: dict[str, functional.FeatureGeometry] = {}

    def prepare_from_student(self, model: BaseModel) -> None:
        """Hook the student's features and, once both models are known, align the pairs."""
        super().prepare_from_student(model)
        self._prepare('student', model)

    def prepare_from_teacher(self, model: nn.Module) -> None:
        """Hook the teacher's features and, once both models are known, align the pairs."""
        super().prepare_from_teacher(model)
        self._prepare('teacher', model)

    def _prepare(self, role: str, model: nn.Module) -> None:
        if not self.pairs:
            return
        sources = list(dict.fromkeys(getattr(pair, role) for pair in self.pairs))
        recorders = [self._recorder(role, source) for source in sources]
        dry_run(model, self.dry_run_shape, recorders)
        features = {}
        for source, recorder in zip(sources, recorders):
            recorder.clone_if_overwritten()
            features[source] = self._feature(role, source)
        for recorder in recorders:
            recorder.reset_data_buffer()
        self._dry_run_features[role] = features
        if len(self._dry_run_features) == 2:
            self._build_connectors()
            self._dry_run_features = {}

    def _build_connectors(self) -> None:
        for pair in self.pairs:
            student = self._dry_run_features['student'][pair.student]
            teacher = self._dry_run_features['teacher'][pair.teacher]
            if pair.align == 'auto':
                config = self._auto_align(pair, student, teacher)
            else:
                config = pair.align
            if config is not None:
                self.connectors[pair.key] = _build(config)
            with _without_traces(self.connectors):
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
                f'of {teacher.shape[0]}'
            )
        if pair.key in self.connectors:
            student = self.connectors[pair.key](student)
        if student.dim() == 4 and teacher.dim() == 4 and student.shape[2:] != teacher.shape[2:]:
            student = F.interpolate(
                student, size=teacher.shape[2:], mode='bilinear', align_corners=False
            )
        return student

    def compute_distill_losses(self) -> dict[str, Tensor]:
        """Compare the features that the recorders hold.

        Returns:
            dict[str, Tensor]: A loss for each pair, by its name, beside those of
            ``loss_forward_mappings``.

        Raises:
            RuntimeError: If a feature was not produced in the last forward, or more than once, or
                overwritten.
        """
        losses = super().compute_distill_losses()
        self.geometry = {}
        for pair in self.pairs:
            student = self._feature('student', pair.student)
            teacher = self._feature('teacher', pair.teacher)
            if self.student_trainable and torch.is_grad_enabled() and not student.requires_grad:
                raise RuntimeError(
                    f'{pair.name}: the student feature has no gradient, so that the student would '
                    'learn nothing from it. It is frozen (frozen_stages), or lies within a block '
                    'that runs under activation checkpointing (with_cp=True): choose a later '
                    'module, or the whole block.'
                )
            student = self._align(pair, student, teacher)
            losses[pair.name] = self.distill_losses[pair.key](student, teacher)
            if self.record_geometry:
                with torch.no_grad():
                    self.geometry[pair.name] = functional.decompose(student, teacher)
        return losses

    def _recorder(self, role: str, source: FeatureSource) -> FeatureRecorder:
        manager = self.student_recorders if role == 'student' else self.teacher_recorders
        return manager.get_recorder(_recorder_name(source))

    def _feature(self, role: str, source: FeatureSource) -> Tensor:
        try:
            return self._recorder(role, source).get_record_data(data_idx=source.index)
        except (RuntimeError, TypeError, IndexError) as error:
            raise type(error)(f'{role}: {error}') from error
