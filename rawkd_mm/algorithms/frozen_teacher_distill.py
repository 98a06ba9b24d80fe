"""The algorithm: a student, a frozen teacher, and a checkpoint that is the student."""

import copy
import logging
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.logging import MessageHub, print_log
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from mmrazor.models import SingleTeacherDistill
from mmrazor.models.utils import add_prefix
from torch import Tensor, nn

from ..distillers import FeatureDistiller, PairFeatures
from ..features import run_for_features
from ..features.dry_run import image_channels
from ..registry import check_type, register_model
from ..teachers.frozen_teacher import (
    FrozenTeacher,
    build_teacher,
    listing,
    number_of_classes,
)
from ..training.random_numbers import separate_random_numbers
from .student import build_student

_RESERVED = ('architecture', 'distiller', 'teacher')


@register_model
class FrozenTeacherDistill(SingleTeacherDistill):
    """MMRazor's ``SingleTeacherDistill`` with a teacher that costs little and a plain checkpoint.

    What is different:

    - The teacher is frozen: all of its modules stay in eval mode (dropout and drop path too), it has
      no gradient and no part in DDP, the optimizer, EMA or checkpoints.
    - It runs as far as the last feature that the distiller needs, and not at all once MMRazor's
      ``StopDistillHook`` has stopped the distillation.
    - Its weights must be given and must fit, its images are normalised as its own config says.
    - A recorded feature is never overwritten by a module that works in place.
    - ``state_dict()`` has the student's parameters under the student's own names and, below
      ``distiller.``, the trained connectors. It loads into the plain student model; checkpoints of
      MMRazor's algorithm load too.

    Args:
        distiller (dict): Config of a ``FeatureDistiller`` or of any of MMRazor's configurable
            distillers. What it names is looked for in MMRazor's scope first.
        teacher (dict | BaseModel): The teacher's config, or ``dict(cfg_path=...)`` with a config
            file or a name such as ``'mmseg::pspnet/...py'``.
        architecture (dict | BaseModel): The student's, likewise.
        teacher_ckpt (str, optional): Path or URL of the teacher's weights; required unless
            ``allow_random_teacher``. Loaded as weights only: what would run code is refused, unless
            the environment has ``RAWKD_MM_TRUST_CHECKPOINTS=1``.
        allow_random_teacher (bool): Take the teacher with random weights; for tests. Defaults to
            False.
        init_student (list[str], optional): Paths of modules, such as ``['neck', 'bbox_head']``, that
            both models have with the same shapes: the student begins with the teacher's weights
            there ("inheriting"). They are copied when the student's weights are initialised, so
            that a checkpoint that is loaded or resumed wins. Defaults to None.
        teacher_precision ('fp32' | 'bf16' | 'fp16' | None): What the teacher computes in, and what
            its weights are stored in. Outside of autocast the losses get its features in float32
            all the same. None is what the student computes in: mixed precision where the optimizer
            wrapper turns it on, else float32. Defaults to None.
        teacher_channels_last (bool): Let the teacher compute with the channels as the last dimension
            in memory, which is faster in low precision. Defaults to False.
        teacher_compile (bool | dict): Let ``torch.compile`` make graphs of the teacher, as large as
            the recorded modules allow; a dict holds its arguments. The first iteration takes a minute
            or so longer, and so does the first of each further size of images, of which there may be
            few: after eight the teacher runs without graphs. ``dict(dynamic=True)`` makes graphs for
            all sizes, of convolutional networks. Defaults to False.
        teacher_trainable (bool): Must be False. Defaults to False.
        teacher_norm_eval (bool): Must be True. Defaults to True.
        **kwargs: The other arguments of ``SingleTeacherDistill``: student_trainable,
            calculate_student_loss, init_cfg, module_inplace, teacher_module_inplace; and
            data_preprocessor, which MMEngine's Runner fills in from the config's top level. It is
            for a student without one; a student that has its own keeps it, as when it is trained
            alone.

    Raises:
        ValueError: If there are no weights for the teacher or they do not fit, if its images cannot
            be computed from the student's, or if it should be trained; if the student cannot
            inherit what it should; if the precision is unknown or the teacher cannot be compiled;
            if there is no such distiller.
        TypeError: If ``init_student`` or ``teacher_compile`` is of another type.

    Warns:
        In the log, if the two models have another number of classes.
    """

    def __init__(
        self,
        distiller: dict,
        teacher: BaseModel | dict,
        architecture: BaseModel | dict,
        teacher_ckpt: str | None = None,
        allow_random_teacher: bool = False,
        init_student: Sequence[str] | None = None,
        teacher_precision: str | None = None,
        teacher_channels_last: bool = False,
        teacher_compile: bool | dict = False,
        teacher_trainable: bool = False,
        teacher_norm_eval: bool = True,
        **kwargs: Any,
    ) -> None:
        if teacher_trainable or not teacher_norm_eval:
            raise ValueError(
                'FrozenTeacherDistill freezes its teacher: teacher_trainable must be False and '
                f'teacher_norm_eval True, got {teacher_trainable} and {teacher_norm_eval}. Use '
                "MMRazor's SingleTeacherDistill to train a teacher."
            )
        if not teacher_ckpt and not allow_random_teacher:
            raise ValueError(
                f'teacher_ckpt={teacher_ckpt!r}: a teacher needs its trained weights. Give the path '
                'or URL of its checkpoint (on the command line: --cfg-options '
                'model.teacher_ckpt=PATH); for a test with a random teacher, '
                'allow_random_teacher=True.'
            )
        self._check_init_student(init_student, teacher_ckpt)
        check_type(distiller, 'distiller')
        # The student draws the random numbers that it draws alone.
        student = build_student(architecture, kwargs.pop('data_preprocessor', None))
        if any(parameter.is_meta for parameter in student.parameters()):
            raise ValueError(
                'the student was built on the meta device, where tensors have no values: the teacher '
                'could not be loaded and images not be normalised. Build the distillation on the CPU '
                'and move it.'
            )
        with separate_random_numbers():
            super().__init__(
                distiller={'_scope_': 'mmrazor', **copy.deepcopy(distiller)},
                teacher=build_teacher(teacher),
                # MMRazor's algorithm takes the student's data_preprocessor
                architecture=student,
                **kwargs,
            )
        clash = [name for name, _ in self.student.named_children() if name in _RESERVED]
        if clash:
            raise ValueError(
                f'the student {type(self.student).__name__} has children named {clash}, which '
                'checkpoints of a distillation cannot tell from its own'
            )
        # No longer a submodule: what a runner does with the modules of a model is not for it.
        self._frozen_teacher = FrozenTeacher(
            self._modules.pop('teacher'), self.data_preprocessor, self.distiller
        )
        self._warn_of_classes()
        inherited = _names_below(init_student or (), self.student, self.teacher)
        if teacher_ckpt:
            # a number of batches is nothing that a checkpoint must have
            needed = [n for n in inherited if not n.endswith('num_batches_tracked')]
            shape = getattr(self.distiller, 'dry_run_shape', None)
            self._frozen_teacher.load(
                teacher_ckpt, shape or (image_channels(self.teacher), 64, 64), needed
            )
        # the student gets them as they were loaded, whatever the teacher's precision is
        weights = self.teacher.state_dict()
        self._inherited = {name: weights[name].clone() for name in inherited}
        self._frozen_teacher.set_speed(teacher_precision, teacher_channels_last, teacher_compile)
        self.distiller.student_trainable = self.student_trainable
        self._register_state_dict_hook(_to_student_names)
        self._is_built = True

    def _warn_of_classes(self) -> None:
        """Warn if the models tell apart another number of classes; it may be meant."""
        ours, theirs = number_of_classes(self.student), number_of_classes(self.teacher)
        if None not in (ours, theirs) and ours != theirs:
            print_log(
                f'The student has {ours} classes and the teacher {theirs}. That does no harm to '
                'features before the classifiers, if the teacher knows what is in the images; their '
                'outputs mean different things.',
                'current',
                logging.WARNING,
            )

    @property
    def frozen_teacher(self) -> FrozenTeacher:
        """The teacher with what it needs: its images, its weights, and how far it runs."""
        return self._frozen_teacher

    @staticmethod
    def _check_init_student(init_student: Sequence[str] | None, teacher_ckpt: str | None) -> None:
        if init_student is None:
            return
        is_list = isinstance(init_student, Sequence) and not isinstance(init_student, str)
        if not is_list or not all(isinstance(x, str) for x in init_student):
            raise TypeError(
                "init_student must be a list of paths of modules, such as ['neck', 'bbox_head'], "
                f'got {init_student!r}'
            )
        if init_student and not teacher_ckpt:
            raise ValueError(
                f'init_student={list(init_student)!r} lets the student begin with the trained '
                f"teacher's weights, and teacher_ckpt={teacher_ckpt!r} gives none. Give the "
                "teacher's checkpoint; for a test with a random teacher, init_student=None."
            )

    def init_weights(self) -> None:
        """Initialise the student as if it were alone, then the distiller; once.

        What the student inherits from the teacher is copied at the end.
        """
        is_first = not self._is_init
        if is_first:
            self.student.init_weights()
        with separate_random_numbers():
            super().init_weights()  # leaves out what is initialised
        if not is_first or not self._inherited:
            return
        student = self.student.state_dict()
        for name, value in self._inherited.items():
            student[name].copy_(value)
        print_log(
            f'The student begins with {len(self._inherited)} of its {len(student)} parameters and '
            'buffers from the teacher (init_student)',
            'current',
        )
        self._inherited = {}

    def __deepcopy__(self, memo: dict) -> 'FrozenTeacherDistill':
        # The teacher never changes: a copy (EMA) shares it.
        memo.update((id(module), module) for module in self.teacher.modules())
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    # What hooks and tools look up or set on "the model" is meant for the student.

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            student = self.__dict__.get('_modules', {}).get('architecture')
            if student is None or name.startswith('__'):
                raise
        try:
            return getattr(student, name)
        except AttributeError:
            raise AttributeError(
                f'neither {type(self).__name__} nor its student {type(student).__name__} has an '
                f'attribute {name!r}'
            ) from None

    def __setattr__(self, name: str, value: Any) -> None:
        if self._is_of_student(name) and not isinstance(value, (nn.Module, nn.Parameter)):
            setattr(self.student, name, value)
        else:
            super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if self._is_of_student(name):
            delattr(self.student, name)
        else:
            super().__delattr__(name)

    def _is_of_student(self, name: str) -> bool:
        """Whether a public attribute is none of the algorithm's own, once that is built."""
        own = self.__dict__
        if '_is_built' not in own or name.startswith('_') or name in own:
            return False
        kinds = ('_modules', '_parameters', '_buffers')
        return not hasattr(type(self), name) and all(name not in own[kind] for kind in kinds)

    def split_for_optimizer(self) -> tuple[BaseModel, dict[str, nn.Parameter]]:
        """Give what MMEngine's optimizer constructors are for, and what they must not see.

        Returns:
            tuple[BaseModel, dict[str, nn.Parameter]]: The student, whose groups are thereby those of
            the student alone; and the parameters of connectors and losses, by their names.
        """
        return self.student, dict(self.distiller.named_parameters(prefix='distiller'))

    @property
    def teacher(self) -> BaseModel:
        """The frozen teacher; no submodule of the algorithm."""
        frozen = self.__dict__.get('_frozen_teacher')
        return self._modules['teacher'] if frozen is None else frozen.model

    def set_module_inplace_false(self, architecture: nn.Module, varstr: str) -> None:
        """Turn off in-place operation in all modules of a model.

        MMRazor's own way finds them through ``_modules`` being an ``OrderedDict``, which it no
        longer is since torch 2.10.

        Args:
            architecture (nn.Module): The model.
            varstr (str): Not used; MMRazor's signature.
        """
        for module in architecture.modules():
            if getattr(module, 'inplace', False):
                module.inplace = False

    def loss(
        self, batch_inputs: Tensor, data_samples: list[BaseDataElement] | None = None
    ) -> dict[str, Tensor]:
        """Compute the student's own losses and those of the distillation.

        Args:
            batch_inputs (Tensor): Images, shape (B, C, H, W).
            data_samples (list, optional): Their annotations.

        Returns:
            dict[str, Tensor]: The student's losses below ``student.``, those of the distillation
            below ``distill.``.

        Raises:
            ValueError: If there are no images.
        """
        if len(batch_inputs) == 0:
            raise ValueError(
                f'the batch is empty: images of shape {tuple(batch_inputs.shape)}; check the data '
                'set and the batch size of train_dataloader'
            )
        distiller = self.distiller
        if isinstance(distiller, FeatureDistiller):
            distiller.forget()  # of the iteration before
        if self.distillation_stopped:
            return self._keep_connectors(self._student_losses(batch_inputs, data_samples))
        # The message hub has the number of the iteration, in a resumed training too.
        iteration = MessageHub.get_current_instance().get_info('iter', 0)
        with separate_random_numbers(2 * iteration, batch_inputs.device):
            self._run_teacher(batch_inputs, data_samples)
        distiller.set_deliveries_override(True)
        with distiller.student_recorders, distiller.deliveries:
            losses = self._student_losses(batch_inputs, data_samples)
        # MMRazor's own distillers take none
        given = (data_samples,) if isinstance(distiller, FeatureDistiller) else ()
        with separate_random_numbers(2 * iteration + 1, batch_inputs.device):
            losses.update(add_prefix(distiller.compute_distill_losses(*given), 'distill'))
        # The graph keeps what backward needs; the rest need not wait for the next iteration.
        self._forget_features()
        return losses

    @torch.no_grad()
    def extract_features(
        self, batch_inputs: Tensor, data_samples: list[BaseDataElement] | None = None
    ) -> dict[str, PairFeatures]:
        """Run both models for the features that a ``FeatureDistiller`` compares, and no further.

        Args:
            batch_inputs (Tensor): Images, shape (B, C, H, W).
            data_samples (list, optional): What belongs to them.

        Returns:
            dict[str, PairFeatures]: The features of each pair, by its name, without gradient.

        Raises:
            TypeError: If the distiller is none.
        """
        distiller = self.distiller
        if not isinstance(distiller, FeatureDistiller):
            raise TypeError(
                f'features are compared by a FeatureDistiller, not by {type(distiller).__name__}'
            )
        self._run_teacher(batch_inputs, data_samples)
        with distiller.student_recorders:
            sources = [pair.student.module for pair in distiller.pairs]
            run_for_features(self.student, batch_inputs, data_samples, sources)
        features = {pair.name: distiller.features(pair) for pair in distiller.pairs}
        self._forget_features()
        return features

    def _run_teacher(
        self, batch_inputs: Tensor, data_samples: list[BaseDataElement] | None
    ) -> None:
        self.distiller.set_deliveries_override(False)
        with self._frozen_teacher.recording():
            self._frozen_teacher.extract(batch_inputs, data_samples)

    def _forget_features(self) -> None:
        for manager in (self.distiller.teacher_recorders, self.distiller.student_recorders):
            for recorder in manager.recorders.values():
                recorder.reset_data_buffer()

    def _student_losses(
        self, batch_inputs: Tensor, data_samples: list[BaseDataElement] | None
    ) -> dict[str, Tensor]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.student_trainable):
            losses = self.student(batch_inputs, data_samples, mode='loss')
        return add_prefix(losses, 'student') if self.calculate_student_loss else {}

    def _keep_connectors(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Give the idle connectors a gradient of 0: DDP waits for one of every parameter."""
        idle = [p for p in self.distiller.parameters() if p.requires_grad]
        if idle:
            losses['distill.loss_stopped'] = sum(0.0 * p.sum() for p in idle)
        if not losses:
            raise RuntimeError(
                'the distillation was stopped and calculate_student_loss is False: nothing is left '
                'to train'
            )
        return losses

    def train(self, mode: bool = True) -> 'FrozenTeacherDistill':
        """Set the mode of the student and the connectors; the teacher stays in eval mode."""
        # not MMRazor's, which would also walk through the teacher, and returns None
        return nn.Module.train(self, mode)

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> 'FrozenTeacherDistill':
        super()._apply(fn, *args, **kwargs)
        # moving a copy (EMA on another device) must not move the original's teacher
        if not self._frozen_teacher.is_borrowed:
            self._frozen_teacher.follow(fn)
        return self

    def _load_from_state_dict(
        self, state_dict: dict, prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Understand the student's own names as well as MMRazor's; skip a teacher."""
        for key in [key for key in state_dict if key.startswith(prefix)]:
            name = key[len(prefix) :]
            parent = name.partition('.')[0]
            if parent == 'teacher':
                del state_dict[key]
            elif parent not in _RESERVED:
                state_dict[f'{prefix}architecture.{name}'] = state_dict.pop(key)
        self._keep_absent_connectors(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _keep_absent_connectors(self, state_dict: dict, prefix: str) -> None:
        """Let a plain student's checkpoint, which has no connectors, miss none of them."""
        ours = f'{prefix}distiller.'
        if any(key.startswith(ours) for key in state_dict):
            return
        kept = self.distiller.state_dict(prefix=ours)
        state_dict.update(kept)
        if kept:
            print_log(
                "The checkpoint is a student's without connectors: the distillation's "
                f'{len(kept)} parameters and buffers stay as they are.',
                'current',
            )


def _names_below(paths: Sequence[str], student: nn.Module, teacher: nn.Module) -> list[str]:
    """Names of the parameters and buffers below some modules, which must be alike in both models.

    Raises:
        ValueError: If there are none, or they differ; lists all that do, with both shapes.
    """
    names, different = [], []
    shapes = [{n: tuple(v.shape) for n, v in m.state_dict().items()} for m in (student, teacher)]
    for path in paths:
        below = [{n: s for n, s in x.items() if f'{n}.'.startswith(f'{path}.')} for x in shapes]
        for role, model, found in zip(('student', 'teacher'), (student, teacher), below):
            if not found:
                raise ValueError(
                    f'init_student: the {role} {type(model).__name__} has no parameters below '
                    f'{path!r}; it has {", ".join(n for n, _ in model.named_children())}'
                )
        names += below[0]
        for name in dict.fromkeys([*below[0], *below[1]]):
            ours, theirs = (str(x.get(name, 'missing')) for x in below)
            if ours != theirs:
                different.append(f'{name}: student {ours}, teacher {theirs}')
    if different:
        raise ValueError(
            f'init_student={list(paths)!r}: the student cannot begin with the weights of the '
            f'teacher, {len(different)} of them differ{listing(different)}. Leave out the modules '
            'that the two models do not share.'
        )
    return list(dict.fromkeys(names))


def _to_student_names(
    module: nn.Module, state_dict: dict, prefix: str, local_metadata: dict
) -> None:
    """Move 'architecture.backbone...' to 'backbone...', in place, the student first."""
    theirs = f'{prefix}architecture.'
    for key in [key for key in state_dict if key.startswith(theirs)]:
        state_dict[prefix + key[len(theirs) :]] = state_dict.pop(key)
    for key in [key for key in state_dict if key.startswith(f'{prefix}distiller.')]:
        state_dict[key] = state_dict.pop(key)
    metadata = getattr(state_dict, '_metadata', {})
    metadata.pop(f'{prefix}architecture', None)
    for key in [key for key in metadata if key.startswith(theirs)]:
        metadata[prefix + key[len(theirs) :]] = metadata.pop(key)
