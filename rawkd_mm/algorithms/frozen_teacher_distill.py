"""The algorithm: a student, a frozen teacher, and a checkpoint that is the student."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.logging import MessageHub, print_log
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from mmrazor.models import SingleTeacherDistill
from mmrazor.models.utils import add_prefix
from torch import Tensor, nn

from ..distillers import Comparison, FeatureDistiller, PairFeatures
from ..features import (
    DryRun,
    FeatureSource,
    UnlabelledBatch,
    dry_run,
    image_channels,
    run_for_features,
    run_to_last_feature,
    single_images,
)
from ..features.mmrazor_adapter import RazorSide
from ..features.recorder import Recording
from ..registry import MODELS, check_type, register_model
from ..teachers import (
    FrozenTeacher,
    LoadedWeights,
    SpeedOptions,
    SpeedSettings,
    TeacherCompute,
    TeacherInput,
    build_teacher,
    list_candidates,
    load_teacher,
    search_speed,
)
from ..teachers.speed import check_settings
from ..training.checkpoint_names import to_algorithm_names, to_student_names
from ..training.random_numbers import separate_random_numbers
from .checks import check_compile, check_input, check_speed, check_teacher, warn_of_classes
from .inheriting import check_init_student, inherited_names
from .running_statistics import kept_statistics
from .student import build_student
from .student_attributes import StudentAttributes
from .teacher_speed import (
    STATE,
    agree,
    choice_to_state,
    loss_gradient,
    report,
    state_to_choice,
    training_length,
    warn_of_another_device,
)
from .without_labels import check_labels, freeze_what_does_not_learn, refuse_whole_forward

# Tells the random numbers of unlabelled images apart from those of labelled ones.
_UNLABELLED = 1 << 40


@register_model
class FrozenTeacherDistill(StudentAttributes, SingleTeacherDistill):
    """MMRazor's ``SingleTeacherDistill`` with a frozen teacher that stops early, and a plain checkpoint.

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
            file or a name such as ``'mmseg::pspnet/...py'``; or one from another library:
            ``dict(type='TimmTeacher', model=...)``, ``TransformersTeacher``, ``TorchvisionTeacher``,
            ``TorchTeacher``.
        architecture (dict | BaseModel): The student's, likewise.
        teacher_ckpt (str, optional): Path or URL of the teacher's weights, 'pretrained' for those that
            the library of a ``TimmTeacher`` and the like has; required unless
            ``allow_random_teacher``. Loaded as weights only: what would run code is refused, unless
            the environment has ``RAWKD_MM_TRUST_CHECKPOINTS=1``.
        allow_random_teacher (bool): Take the teacher with random weights; for tests. Defaults to
            False.
        init_student (list[str], optional): Paths of modules, such as ``['neck', 'bbox_head']``, that
            both models have with the same shapes: the student begins with the teacher's weights
            there ("inheriting"). They are copied when the student's weights are initialised, so
            that a checkpoint that is loaded or resumed wins. Defaults to None.
        teacher_input (dict, optional): At which size the teacher sees the images: ``dict(scale=1.5)``,
            ``dict(size=512, divisor=16)``, see :class:`rawkd_mm.teachers.TeacherInput`. Defaults to
            None, that of the student, made a multiple of the patches of a teacher from another library.
        teacher_speed ('auto' | dict, optional): Find the fastest precision, memory format and graphs for
            the teacher that change the gradient of the losses by 2 % at most: they are measured at the
            first training step, on its batch. ``dict(type='auto', tolerance=0.02)`` sets options, see
            :class:`rawkd_mm.teachers.SpeedOptions`; a tolerance of 0 is for float32 only. The next three
            arguments win where they are given. Defaults to None, nothing is looked for.
        teacher_precision ('fp32' | 'bf16' | 'fp16' | None): What the teacher computes in, and what
            its weights are stored in. Outside of autocast the losses get its features in float32
            all the same. None is what the student computes in: mixed precision where the optimizer
            wrapper turns it on, else float32. Defaults to None.
        teacher_channels_last (bool, optional): Let the teacher compute with the channels as the last
            dimension in memory, which is faster in low precision. Defaults to None: as
            ``teacher_speed`` finds, or False.
        teacher_compile (bool | dict, optional): Let ``torch.compile`` make graphs of the teacher, as
            large as the recorded modules allow; a dict holds its arguments. The first iteration takes a
            minute or so longer, and so does the first of each further size of images, of which there may
            be few: after eight the teacher runs without graphs. ``dict(dynamic=True)`` makes graphs for
            all sizes, of convolutional networks. Defaults to None: as ``teacher_speed`` finds if all
            images have one size, or False.
        teacher_trainable (bool): Must be False. Defaults to False.
        teacher_norm_eval (bool): Must be True. Defaults to True.
        student_trainable (bool): Whether the student learns. Defaults to True.
        calculate_student_loss (bool): Whether its own losses count. If not, the student runs to its
            last compared feature, nothing asks for labels, and the parameters behind it are frozen.
            Defaults to True.
        data_preprocessor (dict | nn.Module, optional): For a student without one; MMEngine's Runner
            fills it in from the config's top level. A student that has its own keeps it, as when it
            is trained alone. Defaults to None.
        init_cfg (dict, optional): As for ``BaseAlgorithm``. Defaults to None.
        module_inplace (bool): Whether modules of the student may work in place. Defaults to False.
        teacher_module_inplace (bool): Whether modules of the teacher may. Defaults to False.

    Attributes:
        frozen_teacher (FrozenTeacher): The teacher: its model with the weights, how its images are
            made, and how far it runs.
        distillation_stopped (bool): Whether the student learns from its own losses alone.
        unlabelled (UnlabelledBatch | None): Images without labels for the next call of ``loss``, which
            takes them; :class:`rawkd_mm.hooks.UnlabelledImagesHook` puts them here.

    Raises:
        ValueError: If there are no weights for the teacher or they do not fit, if its images cannot
            be computed from the student's, or if it should be trained; if the student cannot
            inherit what it should; if the precision is unknown or the teacher cannot be compiled;
            if there is no such distiller.
        TypeError: If ``init_student``, ``teacher_speed`` or ``teacher_compile`` is of another type.

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
        teacher_input: dict | None = None,
        teacher_speed: str | dict | None = None,
        teacher_precision: str | None = None,
        teacher_channels_last: bool | None = None,
        teacher_compile: bool | dict | None = None,
        teacher_trainable: bool = False,
        teacher_norm_eval: bool = True,
        student_trainable: bool = True,
        calculate_student_loss: bool = True,
        data_preprocessor: dict | nn.Module | None = None,
        init_cfg: dict | None = None,
        module_inplace: bool = False,
        teacher_module_inplace: bool = False,
    ) -> None:
        check_teacher(teacher_trainable, teacher_norm_eval, teacher_ckpt, allow_random_teacher)
        check_init_student(init_student, teacher_ckpt)
        speed = SpeedOptions.parse(teacher_speed)
        check_settings(teacher_precision, False if teacher_compile is None else teacher_compile)
        check_type(distiller, 'distiller')

        # Teacher and distiller must not change the random numbers that the student draws.
        student = build_student(architecture, data_preprocessor)
        with separate_random_numbers():
            # MMRazor's constructor would keep the teacher as a submodule and load it laxly.
            super(SingleTeacherDistill, self).__init__(
                student, init_cfg=init_cfg, module_inplace=module_inplace
            )
            teacher_model = build_teacher(teacher)
            if not teacher_module_inplace:
                self.set_module_inplace_false(teacher_model, 'self.teacher')
            input_size = TeacherInput.parse(teacher_input, teacher_model)
            self.distiller = MODELS.build({'_scope_': 'mmrazor', **copy.deepcopy(distiller)})
            student_run, teacher_run = _dry_runs(
                self.distiller, student, teacher_model, input_size.final_size
            )

        warn_of_classes(student, teacher_model)
        inherited = inherited_names(init_student or (), student, teacher_model)
        loaded = LoadedWeights()
        if teacher_ckpt:
            # A checkpoint need not have the number of batches that a norm has seen.
            needed = [n for n in inherited if not n.endswith('num_batches_tracked')]
            loaded = load_teacher(teacher_model, teacher_ckpt, [*teacher_run.names_in_use, *needed])
        # Copy the weights before the teacher's precision changes them.
        weights = teacher_model.state_dict()
        self._inherited = {name: weights[name].clone() for name in inherited}

        self._student_capture = student_run.capture
        self._student_razor = RazorSide(self.distiller, 'student')
        self._teacher_razor = RazorSide(self.distiller, 'teacher')
        check_compile(teacher_compile or False, self._teacher_razor)
        check_speed(speed, self._teacher_razor)
        check_input(teacher_input, self._teacher_razor)
        graphs = False if speed is not None or teacher_compile is None else teacher_compile
        compute = TeacherCompute(
            teacher_model,
            SpeedSettings(teacher_precision, bool(teacher_channels_last), graphs),
            sources=teacher_run.capture.hooked | self._teacher_razor.modules,
            kept=self._teacher_razor.parameters,
        )
        compute.is_open = speed is not None
        self._speed = speed
        self._given_speed = (teacher_precision, teacher_channels_last, teacher_compile)
        if speed is not None:
            self.distiller.register_buffer(STATE, choice_to_state(None))
        # It is no submodule: a runner would put it into DDP, the optimizer, EMA and checkpoints.
        self._frozen_teacher = FrozenTeacher(
            teacher_model,
            self.data_preprocessor,
            teacher_run.capture,
            compute,
            self._teacher_razor,
            input_size,
            *loaded,
        )
        self.student_trainable = student_trainable
        self.calculate_student_loss = calculate_student_loss
        self.distillation_stopped = False  # MMRazor's StopDistillHook sets it
        self.unlabelled: UnlabelledBatch | None = None
        self._runs_whole = calculate_student_loss or not freeze_what_does_not_learn(
            student, self.distiller, self._student_capture, self._student_razor
        )
        self._register_state_dict_hook(to_student_names)
        self._is_built = True

    @property
    def frozen_teacher(self) -> FrozenTeacher:
        """The teacher and how it runs; no submodule of the algorithm."""
        return self._frozen_teacher

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

    def split_for_optimizer(self) -> tuple[BaseModel, dict[str, nn.Parameter]]:
        """Give the student, and the parameters of connectors and losses, for optimizer constructors.

        Returns:
            tuple[BaseModel, dict[str, nn.Parameter]]: The student, whose groups are thereby those of
            the student alone; and the parameters of connectors and losses, by their names.
        """
        return self.student, dict(self.distiller.named_parameters(prefix='distiller'))

    @property
    def teacher(self) -> BaseModel:
        """The frozen teacher; no submodule of the algorithm."""
        return self._frozen_teacher.model

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
            batch_inputs (Tensor): Images, shape (B, C, H, W); or clips or groups of T images,
                (B, T, C, H, W), of a student that takes these. The teacher sees each image of them.
            data_samples (list, optional): Their annotations.

        Returns:
            dict[str, Tensor]: The student's losses below ``student.``, those of the distillation
            below ``distill.``. With ``unlabelled`` images the distillation is the mean over all
            images: the parts of the two kinds are below ``distill.`` and ``distill_unlabelled.``,
            each with its share of the images as its weight. The student's own losses are those of
            the labelled images, as without the others.

        Raises:
            ValueError: If there are no images; or if they have no labels and the student's own
                losses or one of the distillation needs them.
        """
        unlabelled, self.unlabelled = self.unlabelled, None
        if len(batch_inputs) == 0:
            raise ValueError(
                f'the batch is empty: images of shape {tuple(batch_inputs.shape)}; check the data '
                'set and the batch size of train_dataloader'
            )
        self.distiller.last_comparison = None
        if self.distillation_stopped:
            losses = {}
            if self.calculate_student_loss:
                losses = self._student_losses(batch_inputs, data_samples)
            return self._keep_connectors(losses)
        images = single_images(batch_inputs, data_samples)  # what the features are of
        # The message hub has the number of the iteration, in a resumed training too.
        iteration = MessageHub.get_current_instance().get_info('iter', 0)
        is_speed_open = self._is_speed_open(iteration, batch_inputs.device)
        with self._razor_released():
            with separate_random_numbers(2 * iteration, batch_inputs.device):
                teacher = self.frozen_teacher.extract_features(batch_inputs, data_samples)
            if self._runs_whole:
                with self._recorded_student() as recording:
                    losses = self._student_losses(batch_inputs, data_samples)
                student = self._student_capture.features(recording, 'student')
            else:
                losses, student = {}, self._student_features(*images)
            if is_speed_open:
                del teacher
                self._find_speed(*images, student, iteration)
                self._teacher_razor.clear()
                with separate_random_numbers(2 * iteration, batch_inputs.device):
                    teacher = self.frozen_teacher.extract_features(batch_inputs, data_samples)
            with separate_random_numbers(2 * iteration + 1, batch_inputs.device):
                comparison = self._compare(student, teacher, images[1])
        if unlabelled is None:
            losses.update(add_prefix(comparison.losses, 'distill'))
        else:
            share = len(batch_inputs) / (len(batch_inputs) + len(unlabelled.inputs))
            more = self._compare_unlabelled(unlabelled, iteration)
            losses.update(add_prefix(_weighted(comparison.losses, share), 'distill'))
            losses.update(add_prefix(_weighted(more, 1 - share), 'distill_unlabelled'))
        self.distiller.last_comparison = comparison.detach()
        return losses

    def _is_speed_open(self, iteration: int, device: torch.device) -> bool:
        """Whether this step has to find the teacher's settings; takes those of a checkpoint."""
        compute = self.frozen_teacher.compute
        if not (compute.is_open and self.training and torch.is_grad_enabled()):
            return False
        state = getattr(self.distiller, STATE)
        choice = state_to_choice(state)
        # A training that begins with the weights of another one (load_from) is a new one.
        is_new = iteration == 0 and training_length(iteration) is not None
        if choice is None or is_new:
            return True
        warn_of_another_device(state, device)
        given = zip(self._given_speed, choice)
        choice = SpeedSettings(*(found if own is None else own for own, found in given))
        compute.apply(choice)
        compute.is_open = False
        print_log(f'teacher_speed: {choice.text}, as before this training was resumed', 'current')
        return False

    def _find_speed(
        self,
        batch_inputs: Tensor,
        data_samples: list[BaseDataElement] | None,
        student: dict[FeatureSource, Tensor],
        iteration: int,
    ) -> None:
        """Put the teacher into the fastest settings; those that the first process finds."""
        compute, device = self.frozen_teacher.compute, batch_inputs.device
        precision, channels_last, graphs = self._given_speed
        chosen = None
        if is_main_process():
            candidates = list_candidates(precision, channels_last, self._speed.tolerance)
            compiled = []
            if graphs is None and self._has_one_size():
                # the faster layout once passes over memory are merged
                layout = channels_last is not False
                precisions = dict.fromkeys(candidate.precision for candidate in candidates)
                compiled = [SpeedSettings(p, layout, True) for p in precisions]

            def compare(student: dict, teacher: dict) -> dict[str, Tensor]:
                return self._compare(student, teacher, data_samples).losses

            options = self._speed
            if options.iterations is None:
                options = options._replace(iterations=training_length(iteration))
            gradient = loss_gradient(
                compare, student, self._student_razor, self.distiller, device, 2 * iteration + 1
            )
            with separate_random_numbers(2 * iteration, device):
                result = search_speed(
                    self.frozen_teacher,
                    (batch_inputs, data_samples),
                    candidates,
                    gradient,
                    options,
                    compiled,
                    self._teacher_razor.clear,
                )
            report(result)
            chosen = result.chosen
        chosen, name = agree(chosen, device)
        if graphs is not None:
            chosen = chosen._replace(graphs=graphs)
        if compute.settings != chosen:
            compute.apply(chosen)
        compute.is_open = False
        getattr(self.distiller, STATE).copy_(choice_to_state(chosen, name))

    def _has_one_size(self) -> bool:
        """Whether the teacher sees images of one size only: each further one needs graphs of its own."""
        size = self.frozen_teacher.input_size.size
        fixed = getattr(self.data_preprocessor, 'size', None)
        return fixed is not None or isinstance(size, Sequence)

    def check_unlabelled(self) -> None:
        """See whether images without labels can be distilled here.

        Raises:
            ValueError: If a loss needs labels, or MMRazor's recorders or deliveries need a whole
                forward, which does; says which.
        """
        refuse_whole_forward(self._student_razor, self._teacher_razor)
        if isinstance(self.distiller, FeatureDistiller):
            self.distiller.check_unlabelled()

    def _compare_unlabelled(self, batch: UnlabelledBatch, iteration: int) -> dict[str, Tensor]:
        """Distil images without labels; draws none of the random numbers of the labelled ones."""
        inputs, data_samples, keeps_statistics = batch
        with (
            self._razor_released(),
            separate_random_numbers(_UNLABELLED + iteration, inputs.device),
            kept_statistics(self.student) if keeps_statistics else nullcontext(),
        ):
            teacher = self.frozen_teacher.extract_features(inputs, data_samples)
            student = self._student_features(inputs, data_samples)
            return self._compare(student, teacher, data_samples).losses

    def _student_features(
        self, batch_inputs: Tensor, data_samples: list[BaseDataElement] | None
    ) -> dict[FeatureSource, Tensor]:
        """Run the student to its last compared feature, with gradient."""
        with (
            torch.set_grad_enabled(torch.is_grad_enabled() and self.student_trainable),
            self._student_razor.record(self.student),
        ):
            return run_to_last_feature(
                self.student,
                batch_inputs,
                data_samples,
                self._student_capture,
                self._student_razor,
                'student',
            )

    @torch.no_grad()
    def extract_features(
        self, batch_inputs: Tensor, data_samples: list[BaseDataElement] | None = None
    ) -> dict[str, PairFeatures]:
        """Run both models for the features that a ``FeatureDistiller`` compares, and no further.

        Args:
            batch_inputs (Tensor): As for :meth:`loss`.
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
        batch_inputs, data_samples = single_images(batch_inputs, data_samples)
        with self._razor_released():
            teacher = self.frozen_teacher.extract_features(batch_inputs, data_samples)
            with self._recorded_student() as recording:
                run_for_features(
                    self.student, batch_inputs, data_samples, self._student_capture.modules
                )
            student = self._student_capture.features(recording, 'student')
        return {
            pair.name: distiller.align(pair, student[pair.student], teacher[pair.teacher])
            for pair in distiller.pairs
        }

    def _compare(
        self,
        student: dict[FeatureSource, Tensor],
        teacher: dict[FeatureSource, Tensor],
        data_samples: list[BaseDataElement] | None,
    ) -> Comparison:
        if isinstance(self.distiller, FeatureDistiller):
            return self.distiller.compare(student, teacher, data_samples, self.student_trainable)
        return Comparison(self.distiller.compute_distill_losses(), {})  # one of MMRazor's

    @contextmanager
    def _recorded_student(self) -> Iterator[Recording]:
        """Record the student's features, and what MMRazor's recorders are for."""
        with (
            self._student_razor.record(self.student),
            self._student_capture.record(self.student) as recording,
        ):
            yield recording

    @contextmanager
    def _razor_released(self) -> Iterator[None]:
        """Empty MMRazor's recorders at the end: backward needs the graph alone."""
        try:
            yield
        finally:
            self._teacher_razor.clear()
            self._student_razor.clear()

    def _student_losses(
        self, batch_inputs: Tensor, data_samples: list[BaseDataElement] | None
    ) -> dict[str, Tensor]:
        check_labels(data_samples, type(self.student).__name__)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.student_trainable):
            losses = self.student(batch_inputs, data_samples, mode='loss')
        return add_prefix(losses, 'student') if self.calculate_student_loss else {}

    def _keep_connectors(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add a loss of 0 for idle connectors: DDP expects a gradient of every parameter."""
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
        if not mode:
            self.distiller.last_comparison = None  # a validation needs the memory
        # MMRazor's train() would also change the teacher's mode, and returns None.
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
        to_algorithm_names(state_dict, prefix)
        self._keep_absent_connectors(state_dict, prefix)
        speed = f'{prefix}distiller.{STATE}'
        if self._speed is None:
            state_dict.pop(speed, None)
        else:
            state_dict.setdefault(speed, getattr(self.distiller, STATE))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _keep_absent_connectors(self, state_dict: dict, prefix: str) -> None:
        """Report no missing connectors when a plain student's checkpoint is loaded."""
        own_prefix = f'{prefix}distiller.'
        speed = own_prefix + STATE
        if any(key.startswith(own_prefix) and key != speed for key in state_dict):
            return
        kept = self.distiller.state_dict(prefix=own_prefix)
        kept.pop(speed, None)
        state_dict.update(kept)
        if kept:
            print_log(
                "The checkpoint is a student's without connectors: the distillation's "
                f'{len(kept)} parameters and buffers stay as they are.',
                'current',
            )


def _weighted(losses: dict[str, Tensor], weight: float) -> dict[str, Tensor]:
    return {name: weight * loss for name, loss in losses.items()}


def _dry_runs(
    distiller: nn.Module,
    student: BaseModel,
    teacher: BaseModel,
    teacher_size: Callable[[int, int], tuple[int, int]],
) -> tuple[DryRun, DryRun]:
    """Run each model once; let the distiller build what depends on the shapes of features."""
    if isinstance(distiller, FeatureDistiller):
        return distiller.prepare(student, teacher, teacher_size)
    # one of MMRazor's
    distiller.prepare_from_student(student)
    distiller.prepare_from_teacher(teacher)
    shape = (image_channels(teacher), *teacher_size(64, 64))
    return DryRun(), dry_run(teacher, shape, [], 'teacher', RazorSide(distiller, 'teacher'))
