"""A distiller that is configured by pairs of features."""

import copy
import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from .. import functional
from ..features.dry_run import dry_run, image_channels, without_traces
from ..features.mmrazor_adapter import ConfigurableDistiller, for_module
from ..features.recorder import FeatureRecorder, FeatureSource
from ..registry import MODELS, check_type, register_model, type_name

# The other keys of a pair are those that the distiller may give for all pairs.
_OWN_KEYS = ('student', 'teacher', 'align', 'name')

# Arguments of connectors and losses in which 'auto' is the number of channels.
_CHANNEL_ARGUMENTS = (
    'in_channel',
    'in_channels',
    'out_channel',
    'out_channels',
    'channels',
    'student_channels',
    'teacher_channels',
)


class FeaturePair(NamedTuple):
    """One student feature, the teacher feature that it is compared with, and how.

    Attributes:
        name (str): Name of the log entry, such as ``'loss_cad_decode_head.bottleneck'``.
        student (FeatureSource): Where the student's feature comes from.
        teacher (FeatureSource): Where the teacher's feature comes from.
        align (str | dict | None): 'auto', the config of a connector, or None.
        loss (dict): Config of the loss.
        student_connector (dict | None): Config of what the aligned student feature goes through.
        teacher_connector (dict | None): Config of what the teacher's feature goes through.
    """

    name: str
    student: FeatureSource
    teacher: FeatureSource
    align: str | dict | None
    loss: dict
    student_connector: dict | None
    teacher_connector: dict | None

    @property
    def key(self) -> str:
        """Key in the module dicts, where no dot is allowed: of the loss and of ``align``."""
        return self.name.replace('.', '_')

    def connector_key(self, role: str) -> str:
        """Key of the student's or the teacher's connector."""
        return f'{self.key}_{role}'


class PairFeatures(NamedTuple):
    """The features of a pair in the last forward.

    Attributes:
        student (Tensor): The student's, as its module gave it.
        aligned (Tensor): The same with the channels, height and width of the teacher's.
        teacher (Tensor): The teacher's, shape (B, C, H, W) of a map.
    """

    student: Tensor
    aligned: Tensor
    teacher: Tensor


def _method_name(loss: dict) -> str:
    """'CADLoss' -> 'cad', 'mmrazor.ChannelWiseDivergence' -> 'channelwisedivergence'."""
    return type_name(loss['type']).lower().replace('loss', '')


def _parse_pairs(pairs: Sequence[dict], shared: dict[str, dict | None]) -> list[FeaturePair]:
    """Check the configs of the pairs and name them; ``shared`` is for those that lack a key."""
    if isinstance(pairs, dict) or not isinstance(pairs, Sequence) or isinstance(pairs, str):
        raise TypeError(f'pairs must be a list of dicts, got {type(pairs).__name__}: {pairs!r}')
    complete = [_complete(i, pair, shared) for i, pair in enumerate(pairs)]
    sources = [[FeatureSource.parse(p[role]) for role in ('student', 'teacher')] for p in complete]
    # The student's feature names the entry; where that is not unique, the teacher's helps.
    names = [
        pair.get('name') or f'{_method_name(pair["loss"])}_{student.label}'
        for pair, (student, _) in zip(complete, sources)
    ]
    result = []
    for pair, (student, teacher), name in zip(complete, sources, names):
        if names.count(name) > 1 and 'name' not in pair:
            name = f'{name}_{teacher.label}'
        # MMEngine sums what has 'loss' in its name and backpropagates it.
        pair['name'] = name if name.startswith('loss') else f'loss_{name}'
        result.append(FeaturePair(**{**pair, 'student': student, 'teacher': teacher}))
    keys = [pair.key for pair in result]
    twice = sorted({pair.name for pair in result if keys.count(pair.key) > 1})
    if twice:
        raise ValueError(f'several pairs would be logged as {twice}; give each a name=...')
    return result


def _complete(i: int, pair: dict, shared: dict[str, dict | None]) -> dict:
    """Check the config of one pair and fill in what it lacks, the name excepted."""
    if not isinstance(pair, dict):
        raise TypeError(
            f"pairs[{i}] must be a dict such as dict(student='decode_head.bottleneck', "
            f"teacher='decode_head.bottleneck'), got {pair!r}"
        )
    unknown = sorted(set(pair) - {*_OWN_KEYS, *shared})
    missing = [key for key in ('student', 'teacher') if key not in pair]
    if unknown or missing:
        raise ValueError(
            f'pairs[{i}] has unknown keys {unknown} and lacks {missing}; a pair has student, '
            'teacher and optionally loss, align, student_connector, teacher_connector, name'
        )
    if not isinstance(pair.get('name', ''), str):
        raise ValueError(f'name of pairs[{i}] must be a string, got {pair["name"]!r}')
    pair = {'align': 'auto', **shared, **pair}
    if not _is_config(pair['loss']):
        raise ValueError(
            f'pairs[{i}] has no loss: give it one, loss=dict(type=...), or give the distiller '
            f'one for all pairs; got {pair["loss"]!r}'
        )
    align = pair['align']
    if align is not None and align != 'auto' and not isinstance(align, dict):
        raise ValueError(
            f"align of pairs[{i}] must be 'auto', None or the config of a connector, got {align!r}"
        )
    for key in ('student_connector', 'teacher_connector'):
        if pair[key] is not None and not _is_config(pair[key]):
            raise ValueError(
                f'{key} of pairs[{i}] must be None or the config of a connector, '
                f'dict(type=...), got {pair[key]!r}'
            )
    return pair


def _is_config(value: Any) -> bool:
    return isinstance(value, dict) and 'type' in value


def _build(config: dict, what: str) -> nn.Module:
    check_type(config, what)
    # what belongs to a distiller is MMRazor's unless the config says otherwise
    module = MODELS.build({'_scope_': 'mmrazor', **copy.deepcopy(config)})
    # MMEngine does not look for init_cfg within the ModuleDicts of a distiller
    if getattr(module, 'init_cfg', None):
        module.init_weights()
    return module


def _has_auto(config: Any) -> bool:
    if isinstance(config, dict):
        return any(_has_auto(value) for value in config.values())
    if isinstance(config, (list, tuple)):
        return any(_has_auto(value) for value in config)
    return isinstance(config, str) and config == 'auto'


def _fill_channels(config: dict, feature: Tensor, where: str) -> dict:
    """Put the number of channels of a feature where a config of a connector or loss says 'auto'.

    Args:
        config (dict): Config of a connector or loss; not changed.
        feature (Tensor): Shape (B, C, H, W).
        where (str): What the config belongs to, for errors.

    Raises:
        ValueError: If the feature is no map, or 'auto' stands in another argument.
    """
    if not _has_auto(config):
        return config
    if feature.dim() != 4:
        raise ValueError(
            f"{where}: 'auto' is the number of channels of a feature map of shape (B, C, H, W), "
            f'got a feature of shape {tuple(feature.shape)}; write the number'
        )
    wrong = [
        name
        for name, value in config.items()
        if _has_auto(value) and (name not in _CHANNEL_ARGUMENTS or value != 'auto')
    ]
    if wrong:
        raise ValueError(
            f"{where}: 'auto' in {wrong} has no meaning; it is the number of channels, in one of "
            f'{", ".join(_CHANNEL_ARGUMENTS)}. Write the value, or leave the argument out.'
        )
    return {name: feature.shape[1] if value == 'auto' else value for name, value in config.items()}


def _asks_for_samples(loss: nn.Module) -> inspect.Parameter | None:
    """Find the parameter ``data_samples`` of a loss's forward."""
    parameter = inspect.signature(loss.forward).parameters.get('data_samples')
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return parameter if parameter is not None and parameter.kind in by_name else None


def _recorder_name(source: FeatureSource) -> str:
    return f'feature {source.module}' + (':input' if source.is_input else '')


def _add_recorders(recorders: dict | None, sources: Sequence[FeatureSource]) -> dict:
    ours = {
        _recorder_name(s): dict(type='Feature', source=s.module, is_input=s.is_input)
        for s in sources
    }
    return {**(recorders or {}), **ours}


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
            (:func:`rawkd_mm.features.dry_run.image_channels`), and 64x64 pixels.
        **kwargs: Every argument of ``ConfigurableDistiller``; works beside the pairs.

    Attributes:
        student_trainable (bool): Whether a student feature without gradient is an error. Defaults to
            True.
        record_geometry (bool): Whether :meth:`compute_distill_losses` fills ``geometry``.
        geometry (dict[str, FeatureGeometry]): For each pair, by its name, the terms of
            :func:`rawkd_mm.functional.decompose` of the features that were last compared.
        compared (dict[str, tuple[Tensor, Tensor]]): For each pair, by its name, the aligned student
            feature and the teacher's feature that were last compared, until the next iteration: to
            find out whose they are when a loss is not finite.

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
        student_recorders: dict[str, dict] | None = None,
        teacher_recorders: dict[str, dict] | None = None,
        distill_losses: dict[str, dict] | None = None,
        **kwargs: Any,
    ) -> None:
        shared = dict(
            loss=loss, student_connector=student_connector, teacher_connector=teacher_connector
        )
        parsed = _parse_pairs(pairs, shared)
        if not parsed and not distill_losses:
            raise ValueError(
                'there is nothing to distil: give pairs=[dict(student=..., teacher=...)] and a loss'
            )
        super().__init__(
            student_recorders=_add_recorders(student_recorders, [pair.student for pair in parsed]),
            teacher_recorders=_add_recorders(teacher_recorders, [pair.teacher for pair in parsed]),
            distill_losses=distill_losses,
            **kwargs,
        )
        self.dry_run_shape = None if dry_run_shape is None else tuple(dry_run_shape)
        self._image_channels: dict[str, int] = {}
        self.pairs = parsed
        self._check_keys()
        for pair in self.pairs:
            if not _has_auto(pair.loss):
                self.distill_losses[pair.key] = _build(pair.loss, f'{pair.name}: loss')
        self._dry_run_features: dict[str, dict[FeatureSource, Tensor]] = {}
        self.student_trainable = True
        self.record_geometry = False
        self.geometry: dict[str, functional.FeatureGeometry] = {}
        self.compared: dict[str, tuple[Tensor, Tensor]] = {}

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
                        f'the pair {pair.name!r} has modules called {keys}, and {key!r} is also '
                        'what a module of another pair, or a loss or connector of your own, is '
                        'called: rename that, or give the pair a name=...'
                    )
            taken.update(keys)

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
        dry_run(model, self.dry_run_shape or self._find_shape(role, model), recorders)
        features = {}
        for source, recorder in zip(sources, recorders):
            recorder.clone_if_overwritten()
            features[source] = self._feature(role, source)
        for recorder in recorders:
            recorder.reset_data_buffer()
        self._dry_run_features[role] = features
        if len(self._dry_run_features) == 2:
            self._build_pairs()
            self._dry_run_features = {}

    def _find_shape(self, role: str, model: nn.Module) -> tuple[int, int, int]:
        """Give the shape of the dry run's image, once it is clear that both models take the same."""
        self._image_channels[role] = image_channels(model)
        if len(set(self._image_channels.values())) > 1:
            raise ValueError(
                f'the student takes images of {self._image_channels["student"]} channels and the '
                f'teacher of {self._image_channels["teacher"]}, so that they cannot see the same '
                'images. Give both models the same kind of image (in_channels of the backbone)'
            )
        return (self._image_channels[role], 64, 64)

    def _build_pairs(self) -> None:
        """Build what depends on the features of the dry run."""
        for pair in self.pairs:
            student = self._dry_run_features['student'][pair.student]
            teacher = self._dry_run_features['teacher'][pair.teacher]
            self._build_align(pair, student, teacher)
            for role in ('student', 'teacher'):
                config = getattr(pair, f'{role}_connector')
                if config is not None:
                    where = f'{pair.name}: {role}_connector'
                    module = _build(_fill_channels(config, teacher, where), where)
                    self.connectors[pair.connector_key(role)] = module
            if pair.key not in self.distill_losses:
                config = _fill_channels(pair.loss, teacher, f'{pair.name}: loss')
                self.distill_losses[pair.key] = _build(config, f'{pair.name}: loss')
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
            self.connectors[pair.key] = _build(config, f'{pair.name}: align')
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
                f'of {teacher.shape[0]}'
            )
        if pair.key in self.connectors:
            align = self.connectors[pair.key]
            student = align(for_module(align, student))
        if student.dim() == 4 and teacher.dim() == 4 and student.shape[2:] != teacher.shape[2:]:
            student = F.interpolate(
                student, size=teacher.shape[2:], mode='bilinear', align_corners=False
            )
        return student

    def _compare(
        self,
        pair: FeaturePair,
        student: Tensor,
        teacher: Tensor,
        data_samples: list[BaseDataElement] | None,
    ) -> Tensor:
        """Send two aligned features through their connectors and compute the loss."""
        loss = self.distill_losses[pair.key]
        arguments = {}
        parameter = _asks_for_samples(loss)
        if parameter is not None:
            if data_samples is None and parameter.default is parameter.empty:
                raise RuntimeError(
                    f'{pair.name}: {type(loss).__name__} needs the data samples of the batch and '
                    'got none. Use FrozenTeacherDistill as the algorithm, which hands them over '
                    "(MMRazor's SingleTeacherDistill does not), with a data set that has "
                    'annotations.'
                )
            arguments['data_samples'] = data_samples
        features = (
            self._connect(pair, r, x) for r, x in (('student', student), ('teacher', teacher))
        )
        return loss(*(for_module(loss, feature) for feature in features), **arguments)

    def _connect(self, pair: FeaturePair, role: str, feature: Tensor) -> Any:
        key = pair.connector_key(role)
        if key not in self.connectors:
            return feature
        connector = self.connectors[key]
        return connector(for_module(connector, feature))

    def compute_distill_losses(
        self, data_samples: list[BaseDataElement] | None = None
    ) -> dict[str, Tensor]:
        """Compare the features that the recorders hold.

        Args:
            data_samples (list, optional): The batch's data samples, for the losses that ask for
                them. Defaults to None.

        Returns:
            dict[str, Tensor]: A loss for each pair, by its name, beside those of
            ``loss_forward_mappings``.

        Raises:
            RuntimeError: If a feature was not produced in the last forward, or more than once, or
                overwritten; or if a loss needs data samples and there are none.
        """
        losses = super().compute_distill_losses()
        self.forget()
        for pair in self.pairs:
            feature, student, teacher = self.features(pair)
            if self.student_trainable and torch.is_grad_enabled() and not feature.requires_grad:
                raise RuntimeError(
                    f'{pair.name}: the student feature has no gradient, so that the student would '
                    'learn nothing from it. It is frozen (frozen_stages), or lies within a block '
                    'that runs under activation checkpointing (with_cp=True): choose a later '
                    'module, or the whole block.'
                )
            self.compared[pair.name] = (student.detach(), teacher.detach())
            losses[pair.name] = self._compare(pair, student, teacher, data_samples)
            if self.record_geometry:
                with torch.no_grad():
                    self.geometry[pair.name] = functional.decompose(student, teacher)
        return losses

    def forget(self) -> None:
        """Let go of the features that were last compared."""
        self.geometry, self.compared = {}, {}

    def features(self, pair: FeaturePair) -> PairFeatures:
        """Give what the recorders hold of a pair, and align it.

        Args:
            pair (FeaturePair): One of ``pairs``.

        Returns:
            PairFeatures: The features.

        Raises:
            RuntimeError: If a feature was not produced in the last forward, or more than once, or
                overwritten.
        """
        student = self._feature('student', pair.student)
        teacher = self._feature('teacher', pair.teacher)
        return PairFeatures(student, self._align(pair, student, teacher), teacher)

    def _recorder(self, role: str, source: FeatureSource) -> FeatureRecorder:
        manager = self.student_recorders if role == 'student' else self.teacher_recorders
        return manager.get_recorder(_recorder_name(source))

    def _feature(self, role: str, source: FeatureSource) -> Tensor:
        try:
            return self._recorder(role, source).get_record_data(data_idx=source.index)
        except (RuntimeError, TypeError, IndexError) as error:
            raise type(error)(f'{role}: {error}') from error
