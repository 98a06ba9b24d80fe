"""The teacher of a distillation: its weights, its inputs, and how far it runs."""

import copy
import functools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from mmengine.logging import print_log
from mmengine.model import BaseDataPreprocessor, BaseModel, revert_sync_batchnorm
from mmengine.structures import BaseDataElement
from mmrazor.models import ConfigurableDistiller
from mmrazor.models.task_modules.recorder import ModuleOutputsRecorder, ParameterRecorder
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map_only

from ..compat import autocast_dtype, channel_swap_and_padding, is_autocast_enabled
from ..features import FeatureRecorder, run_for_features
from ..registry import MODELS
from ..training.checkpoint import CheckpointError, find_weights, load_as_modules_do
from ..training.checkpoint_loading import load_checkpoint
from ..training.config import resolve_model


def build_teacher(config: dict | BaseModel) -> BaseModel:
    """Build a teacher as :func:`build_model` does, with BN in place of SyncBN.

    In eval mode the two are the same, and BN runs on every device and without processes.
    """
    return revert_sync_batchnorm(build_model(config))


def build_model(config: dict | BaseModel) -> BaseModel:
    """Build a model from its config, from a config file, or take it as it is.

    Args:
        config (dict | BaseModel): A model's config; or ``dict(cfg_path=...)`` with the path of a
            config file or a name such as ``'mmseg::pspnet/pspnet_r18-d8_...py'``; or a model.

    Returns:
        BaseModel: The model; its pretrained weights, if any, are not loaded yet.

    Raises:
        UsageError: If the config file does not exist or has no model.
        TypeError: If it is none of these.
    """
    if isinstance(config, BaseModel):
        return config
    if not isinstance(config, dict):
        raise TypeError(f'a model must be a config dict or a BaseModel, got {type(config)}')
    return MODELS.build(resolve_model(config))


class _Renormalize:
    """Turns the student's images into what the teacher's data_preprocessor would make."""

    def __init__(self, student: '_Normalization', teacher: '_Normalization') -> None:
        self.swap = student.swap != teacher.swap
        mean, std = student.mean, student.std
        if self.swap:  # in the teacher's channel order
            mean, std = mean.flip(0), std.flip(0)
        self.scale = std / teacher.std
        self.shift = (mean - teacher.mean) / teacher.std
        self.pad_value = teacher.pad_value

    def __call__(self, inputs: Tensor, data_samples: Sequence[BaseDataElement] | None) -> Tensor:
        self.scale = self.scale.to(inputs.device)
        self.shift = self.shift.to(inputs.device)
        if self.swap:
            inputs = inputs.flip(1)
        outputs = (inputs * self.scale + self.shift).to(inputs.dtype)
        # The student's preprocessor pads after it has normalised, and so would the teacher's.
        for image, sample in zip(outputs, data_samples or ()):
            height, width = sample.metainfo.get('img_shape', image.shape[1:])[:2]
            image[:, height:] = self.pad_value
            image[:, :, width:] = self.pad_value
        return outputs


class _Normalization(NamedTuple):
    """What a data_preprocessor does to the values of images."""

    mean: Tensor  # (C, 1, 1)
    std: Tensor  # (C, 1, 1)
    swap: bool  # whether the order of the channels is reversed
    pad_value: float

    def same_values(self, other: '_Normalization') -> bool:
        return all(
            torch.equal(*torch.broadcast_tensors(a, b))
            for a, b in ((self.mean, other.mean), (self.std, other.std))
        )


_RAW = _Normalization(torch.zeros(1, 1, 1), torch.ones(1, 1, 1), False, 0.0)


def _normalization(preprocessor: nn.Module, role: str) -> _Normalization | None:
    """Read a data_preprocessor; None if it only moves images to the device."""
    if type(preprocessor) is BaseDataPreprocessor:
        return None
    enabled = getattr(preprocessor, '_enable_normalize', None)
    swap, pad_value = channel_swap_and_padding(preprocessor)
    if enabled is None or swap is None:
        raise ValueError(
            f"the {role}'s data_preprocessor {type(preprocessor).__name__} does not tell its mean, "
            'std and channel order, so that the images of the two models cannot be compared. Use '
            "one that derives from MMEngine's ImgDataPreprocessor."
        )
    result = _RAW._replace(swap=swap, pad_value=float(pad_value))
    if enabled:
        result = result._replace(mean=preprocessor.mean.float(), std=preprocessor.std.float())
    return result


def make_renormalize(student: nn.Module, teacher: nn.Module) -> _Renormalize | None:
    """Compare the images that two models expect.

    Args:
        student (nn.Module): The data_preprocessor that makes the images.
        teacher (nn.Module): The data_preprocessor of the teacher's config.

    Returns:
        A callable ``(inputs, data_samples) -> inputs`` from the student's images, shape
        (B, C, H, W), to the teacher's; None if they are the same or the teacher's config does not
        tell.

    Raises:
        ValueError: If the one cannot be computed from the other.
    """
    expected = _normalization(teacher, 'teacher')
    if expected is None:
        return None
    given = _normalization(student, 'student') or _RAW
    channels = {len(x) for x in (given.mean, given.std, expected.mean, expected.std)} - {1}
    if len(channels) > 1:
        raise ValueError(
            f"the student's images have {len(given.mean)} channels (mean "
            f"{given.mean.flatten().tolist()}), the teacher's {len(expected.mean)} (mean "
            f'{expected.mean.flatten().tolist()}): they cannot be converted into each other. Give '
            'both models the same kind of image.'
        )
    if (
        given.swap == expected.swap
        and given.pad_value == expected.pad_value
        and given.same_values(expected)
    ):
        return None
    if not (expected.std != 0).all():
        raise ValueError(f"the teacher's std {expected.std.flatten().tolist()} must not contain 0")
    swap = given.swap != expected.swap
    print_log(
        "The teacher's images are made otherwise than the student's; they are converted: "
        f'mean {given.mean.flatten().tolist()} -> {expected.mean.flatten().tolist()}, '
        f'std {given.std.flatten().tolist()} -> {expected.std.flatten().tolist()}, '
        f'padding {given.pad_value} -> {expected.pad_value}, '
        f'channels {"reversed" if swap else "in the same order"}.',
        'current',
    )
    return _Renormalize(given, expected)


class _FeaturesComplete(Exception):
    """Ends the teacher's forward; all its features are recorded."""


class _UsedTensors(TorchFunctionMode):
    """Remembers which tensors any function was given, for as long as it is entered."""

    _ASK_ONLY = {
        getattr(Tensor, name).__get__
        for name in ('shape', 'device', 'dtype', 'ndim', 'layout', 'requires_grad', 'is_cuda')
    }

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[int] = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func not in self._ASK_ONLY:
            leaves = tree_flatten((args, kwargs))[0]
            self.ids.update(id(leaf) for leaf in leaves if isinstance(leaf, Tensor))
        return func(*args, **kwargs)


# What teacher_precision may be, and the type that convolutions and linear layers then compute in.
PRECISIONS = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}

# Modules whose weights autocast would convert in every forward. Subclasses with a forward of their
# own may do anything with their weights and keep them.
_LOW_PRECISION_FORWARDS = tuple(
    kind.forward
    for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
)


def _keep_operators(model: nn.Module) -> set[nn.Module]:
    """Let MMCV's own operators run whatever the layout and the precision around them are.

    They take contiguous maps only, and no bfloat16: under its autocast they run in float32.

    Returns:
        set[nn.Module]: They and all below them.
    """
    found = [m for m in model.modules() if type(m).__module__.startswith('mmcv.ops')]
    for module in found:
        module.forward = functools.partial(_run_operator, type(module).forward, module)
    return {below for module in found for below in module.modules()}


def _run_operator(forward: Callable, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    leaves, _ = tree_flatten((args, kwargs))
    device_type = next(x for x in leaves if isinstance(x, Tensor)).device.type
    without = autocast_dtype(device_type) == torch.bfloat16

    def convert(value: Tensor) -> Tensor:
        return (value.float() if value.dtype == torch.bfloat16 else value).contiguous()

    args, kwargs = tree_map_only(Tensor, convert, (args, kwargs))
    with torch.autocast(device_type, enabled=False) if without else nullcontext():
        return forward(module, *args, **kwargs)


@contextmanager
def _hooks_removed(model: nn.Module) -> Iterator[None]:
    """Remove the forward hooks that modules get within the context."""
    tables = [t for m in model.modules() for t in (m._forward_hooks, m._forward_pre_hooks)]
    before = [set(table) for table in tables]
    try:
        yield
    finally:
        for table, keys in zip(tables, before):
            for key in set(table) - keys:
                del table[key]


class FrozenTeacher:
    """A model that gives features and never changes.

    It is no ``nn.Module``, so that it has no part in what a runner does with the modules of a
    model: optimizer, DDP, train(), checkpoints, EMA copies, initialisation.

    Args:
        model (BaseModel): The teacher, already hooked by the distiller.
        preprocessor (nn.Module): The data_preprocessor that makes the inputs.
        distiller (ConfigurableDistiller): Tells which features are needed.

    Attributes:
        model (BaseModel): The teacher in eval mode, without gradient.
        is_borrowed (bool): Whether the model belongs to the object that this is a copy of.
        random (list[str] | None): Names of the parameters and buffers that did not come from a
            checkpoint; None as long as none was loaded.
        classes (Sequence[str] | None): Names of the classes that the checkpoint says it knows.
    """

    def __init__(
        self, model: BaseModel, preprocessor: nn.Module, distiller: ConfigurableDistiller
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.renormalize = make_renormalize(preprocessor, model.data_preprocessor)
        self.is_borrowed = False
        self._precision: str | None = None
        self._channels_last = False
        self.random: list[str] | None = None
        self.classes: Sequence[str] | None = None
        self._distiller = distiller
        self._stopping = False
        self._hook()

    def set_speed(
        self, precision: str | None, channels_last: bool, graphs: bool | dict = False
    ) -> None:
        """Decide what the teacher computes in; to be called once its weights are loaded.

        In low precision it runs under autocast, so that each operation has the type that PyTorch
        deems safe for it, and the weights that autocast would convert in every forward are stored
        converted: the model takes less memory, and the features are the same.

        Args:
            precision (str | None): A key of ``PRECISIONS``; None for what the student computes in.
            channels_last (bool): Whether the channels of maps and weights are their last dimension
                in memory.
            graphs (bool | dict): Whether ``torch.compile`` makes graphs of the modules that run; a
                dict holds its arguments.

        Raises:
            ValueError: If there is no such precision; if a graph would hide what is recorded.
            TypeError: If ``graphs`` is none of these.
        """
        if precision is not None and precision not in PRECISIONS:
            raise ValueError(
                f'teacher_precision must be one of {list(PRECISIONS)}, or None for what the student '
                f'computes in, got {precision!r}'
            )
        if not isinstance(graphs, (bool, dict)):
            raise TypeError(
                'teacher_compile must be True, False or a dict of arguments of torch.compile, such '
                f"as dict(mode='max-autotune'), got {graphs!r}"
            )
        self._precision, self._channels_last = precision, channels_last
        kept = _keep_operators(self.model)
        if precision in ('bf16', 'fp16'):
            recorders = self._distiller.teacher_recorders.recorders.values()
            recorded = {r.source for r in recorders if isinstance(r, ParameterRecorder)}
            for name, module in self.model.named_modules():
                if type(module).forward in _LOW_PRECISION_FORWARDS and module not in kept:
                    for key, value in module.named_parameters(prefix=name, recurse=False):
                        if key not in recorded:
                            value.data = value.data.to(PRECISIONS[precision])
        if channels_last:
            self.model.to(memory_format=torch.channels_last)
            for module in kept:
                module.to(memory_format=torch.contiguous_format)
        if graphs is not False:
            self._compile(**({} if graphs is True else graphs))

    def _compile(self, **kwargs: Any) -> None:
        """Compile the largest modules that no feature is taken from within.

        Features are recorded by hooks, and these stay outside of the graphs. Each size of images has
        graphs of its own unless ``dynamic`` is given: to make those of a Swin for all sizes takes
        PyTorch 2.10 longer than anyone waits.
        """
        kwargs.setdefault('dynamic', False)
        if not self.stops_early:
            raise ValueError(
                'teacher_compile needs recorders of the outputs or inputs of modules: what methods '
                'and functions return cannot be recorded from within a graph. Record modules, or '
                'set teacher_compile=False.'
            )
        sources = {recorder.source for recorder in self._recorders()}

        def walk(module: nn.Module, name: str) -> None:
            has_forward = type(module).forward is not nn.Module.forward
            if has_forward and not any(source.startswith(f'{name}.') for source in sources):
                # not module.compile(), which would take the hooks of the module into the graph
                module.forward = self._choose(
                    module.forward, torch.compile(module.forward, **kwargs)
                )
                return
            for key, child in module.named_children():
                walk(child, f'{name}.{key}')

        for name, child in self.model.named_children():
            if child is not self.model.data_preprocessor:
                walk(child, name)

    def _choose(self, plain: Callable, compiled: Callable) -> Callable:
        """Use graphs for features alone: the images to predict have any size."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            return (compiled if self._stopping else plain)(*args, **kwargs)

        return forward

    def _autocast(self, device_type: str) -> AbstractContextManager:
        if self._precision is None:
            return nullcontext()
        low = self._precision != 'fp32'
        dtype = PRECISIONS[self._precision] if low else None
        return torch.autocast(device_type, dtype=dtype, enabled=low)

    def _hand_over(self, device_type: str, given: torch.dtype) -> None:
        """Bring the features into a form that every loss and connector can take.

        Args:
            device_type (str): 'cpu' or 'cuda'.
            given (torch.dtype): The type of the student's images.
        """
        student_is_low = is_autocast_enabled(device_type)

        def convert(feature: Tensor) -> Tensor:
            if not feature.is_floating_point():
                return feature
            if not student_is_low and feature.dtype in (torch.bfloat16, torch.float16):
                feature = feature.float()
            if given != self.dtype:
                feature = feature.to(given)
            return feature.contiguous()

        for recorder in self._recorders():
            if isinstance(recorder, FeatureRecorder):
                recorder.replace(convert)
            else:
                records = [tree_map_only(Tensor, convert, x) for x in recorder.data_buffer]
                recorder.data_buffer[:] = records

    def _hook(self) -> None:
        if self.stops_early:
            for name in {recorder.source for recorder in self._recorders()}:
                self.model.get_submodule(name).register_forward_hook(self._stop_if_complete)

    def __deepcopy__(self, memo: dict) -> 'FrozenTeacher':
        # A copy of the algorithm (EMA) has its own distiller, but the model never changes.
        copied = copy.copy(self)
        memo[id(self)] = copied
        copied.is_borrowed = True
        copied._distiller = copy.deepcopy(self._distiller, memo)
        return copied

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the teacher's features for as long as the context lasts.

        The recorders of a copy hook the shared model for that time alone: else each copy would
        leave hooks behind, and these would keep the copy alive.
        """
        recorders, deliveries = self._distiller.teacher_recorders, self._distiller.deliveries
        with _hooks_removed(self.model) if self.is_borrowed else nullcontext():
            if self.is_borrowed:
                recorders.initialize(self.model)
                self._hook()
            with recorders, deliveries:
                yield

    def follow(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Go to the device that a function moves tensors to.

        The weights keep their values: a cast of the student to a narrower type (``half()``) is not
        meant for them, and neither are ``to_empty()`` and the meta device. A wider type loses nothing.

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
        if self._precision in ('bf16', 'fp16'):  # autocast converts them
            return torch.float32
        return next(self.model.parameters()).dtype

    def _recorders(self) -> list[ModuleOutputsRecorder]:
        recorders = self._distiller.teacher_recorders.recorders.values()
        return [r for r in recorders if not isinstance(r, ParameterRecorder)]

    @property
    def stops_early(self) -> bool:
        """Whether only outputs or inputs of modules are recorded, so that the end is known."""
        return not self._distiller.deliveries.deliveries and all(
            isinstance(r, ModuleOutputsRecorder) for r in self._recorders()
        )

    def _records_needed(self, name: str) -> int:
        """How often a recorder has to record: more than once if a mapping asks for a later one."""
        indices = [
            record.get('record_idx', 0)
            for mapping in self._distiller.loss_forward_mappings.values()
            for record in mapping.values()
            if not record.get('from_student', True) and record.get('recorder') == name
        ]
        return 1 + max(indices, default=0)

    def _is_complete(self) -> bool:
        return all(
            len(recorder.data_buffer) >= self._records_needed(name)
            for name, recorder in self._distiller.teacher_recorders.recorders.items()
        )

    def _stop_if_complete(self, module: nn.Module, inputs: tuple, outputs: object) -> None:
        if self._stopping and self._is_complete():
            raise _FeaturesComplete

    def _run_to_last_feature(self, inputs: Tensor, data_samples: list | None) -> None:
        self._stopping = True
        try:
            sources = {recorder.source for recorder in self._recorders()}
            run_for_features(self.model, inputs, data_samples, sources)
        except _FeaturesComplete:
            pass
        finally:
            self._stopping = False

    @torch.no_grad()
    def extract(self, inputs: Tensor, data_samples: list | None = None) -> None:
        """Run the teacher until the distiller has the last feature it needs.

        To be called within :meth:`recording`.

        Args:
            inputs (Tensor): The student's images, shape (B, C, H, W).
            data_samples (list, optional): What belongs to them.

        The features that it leaves in the recorders are contiguous. Outside of autocast they are
        float32 whatever the teacher computed in, because MMRazor's connectors and losses do not mix
        types; under autocast they are what the teacher computed.
        """
        if self.model.training:
            self.model.eval()
        if self.renormalize is not None:
            inputs = self.renormalize(inputs, data_samples)
        if self._channels_last:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        given = inputs.dtype  # of a student that was cast, where it is not the teacher's
        inputs = inputs.to(self.dtype)
        with self._autocast(inputs.device.type):
            if self.stops_early:
                self._run_to_last_feature(inputs, data_samples)
            else:
                self.model(inputs, data_samples, mode='loss')
        if self._precision is not None or self._channels_last or given != inputs.dtype:
            self._hand_over(inputs.device.type, given)

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
        with self._autocast(inputs.device.type):
            return self.model(inputs, data_samples, mode='predict')

    def names_in_use(self, shape: Sequence[int]) -> list[str]:
        """Find the parameters and buffers of the part that runs.

        Args:
            shape (Sequence[int]): Channels, height and width of an empty image to run it with.

        Returns:
            list[str]: Names in ``model.state_dict()``: those of every module that ran, all below a
            module that ran to its end, and whatever else a function was given.
        """
        tensors = self.model.state_dict(keep_vars=True)
        names = [name for name in tensors if not name.endswith('num_batches_tracked')]
        if not self.stops_early:
            return names
        begun, ended, handles = set(), set(), []
        for name, module in self.model.named_modules():
            handles.append(module.register_forward_pre_hook(lambda *_, name=name: begun.add(name)))
            handles.append(module.register_forward_hook(lambda *_, name=name: ended.add(name)))
        inputs = next(self.model.parameters()).new_zeros((1, *shape))
        try:
            with self.recording(), torch.no_grad(), _UsedTensors() as used:
                self._run_to_last_feature(inputs, None)
        finally:
            for handle in handles:
                handle.remove()
            for recorder in self._recorders():
                recorder.reset_data_buffer()
        # The hook that stops the forward runs before ours, so that the last module has only begun.
        ended |= {recorder.source for recorder in self._recorders()}

        def is_in_use(name: str) -> bool:
            parts = name.split('.')[:-1]
            above = {'.'.join(parts[:i]) for i in range(len(parts) + 1)}
            return '.'.join(parts) in begun or bool(above & ended) or id(tensors[name]) in used.ids

        return [name for name in names if is_in_use(name)]

    def load(self, filename: str, shape: Sequence[int], inherited: Sequence[str] = ()) -> None:
        """Load the teacher's weights; what runs must all be there.

        Args:
            filename (str): Path or URL of a checkpoint of mmseg or mmdet, of MMRazor or of this
                package.
            shape (Sequence[int]): As in :meth:`names_in_use`.
            inherited (Sequence[str]): Names in ``model.state_dict()`` that must be there although
                that part may not run, because the student gets them.

        Raises:
            FileNotFoundError: If there is no such file.
            CheckpointError: If it is no checkpoint, or would run code when it is loaded; if a
                parameter or buffer that is needed is missing or has another shape, lists all of
                them.
        """
        checkpoint = load_checkpoint(filename)
        given, where = find_weights(checkpoint, filename)
        expected = self.model.state_dict()
        needed = list(dict.fromkeys([*self.names_in_use(shape), *inherited]))
        prefix, weights = _strip_prefix(given, {name: expected[name].shape for name in needed})
        # Only loading tells what is there: modules rename what older versions of them have saved.
        found, lacking, errors = load_as_modules_do(self.model, weights)
        missing = [name for name in needed if name in lacking]
        mismatched = [
            name for name in needed if name in found and found[name].shape != expected[name].shape
        ]
        shapes = [
            f'{name}: {tuple(found[name].shape)}, the model has {tuple(expected[name].shape)}'
            for name in mismatched
        ]
        self.classes = _class_names(checkpoint)
        if missing or mismatched:
            raise CheckpointError(
                f'teacher_ckpt={filename!r} does not fit {type(self.model).__name__}: of the '
                f'{len(needed)} parameters and buffers that the distillation needs, '
                f'{len(missing)} are missing{listing(missing)} and {len(mismatched)} have another '
                f'shape{listing(shapes)}. ' + self._guess(weights, found, missing, mismatched)
            )
        if errors:
            raise CheckpointError(
                f'teacher_ckpt={filename!r} cannot be loaded into {type(self.model).__name__}: '
                + '; '.join(errors)
            )
        self.random = [
            name
            for name, value in expected.items()
            if 'num_batches_tracked' not in name
            and (name in lacking or (name in found and found[name].shape != value.shape))
        ]
        left = len(self.random)
        print_log(
            f'Loaded the teacher from {filename}'
            + (f', {where}' if where else '')
            + (f', keys below {prefix!r}' if prefix else '')
            + f': {len(needed)} of {len(expected)} parameters and buffers are in use, all loaded'
            + (f'; {left} that are not in use were not in it or did not fit' if left else ''),
            'current',
        )

    def _guess(
        self,
        weights: dict[str, Tensor],
        found: dict[str, Tensor],
        missing: Sequence[str],
        mismatched: Sequence[str],
    ) -> str:
        """Say what is most likely wrong with a checkpoint that does not fit."""
        expected = self.model.state_dict()
        # a classifier of other classes has another number of outputs, and nothing else is different
        of_classes = not missing and all(
            _knows_classes(self.model, name) and found[name].shape[1:] == expected[name].shape[1:]
            for name in mismatched
        )
        count = number_of_classes(self.model)
        if of_classes and count is not None:
            theirs = f'{len(self.classes)} classes' if self.classes else 'another number of classes'
            return (
                f"The rest fits: it was trained with {theirs}, and the teacher's config has "
                f'{count}. Set num_classes in the config of the teacher to those of the checkpoint, '
                'or distil a feature before the classifier.'
            )
        if missing or len(mismatched) > len(weights) // 2:
            return (
                "Check that the checkpoint belongs to the teacher's config; it begins with "
                f'{", ".join(list(weights)[:3])}.'
            )
        return "Check that the checkpoint belongs to the teacher's config."


def number_of_classes(model: nn.Module) -> int | None:
    """Find out how many classes a model tells apart; None if none of its heads says so.

    That is the largest ``num_classes`` of its heads: an RPN, for example, has 1.
    """
    counts = [
        module.num_classes
        for name, module in model.named_modules()
        if isinstance(getattr(module, 'num_classes', None), int)
        and not f'{name}.'.startswith('backbone.')
    ]
    return max(counts, default=None)


def _knows_classes(model: nn.Module, name: str) -> bool:
    """Whether a parameter belongs to a head that tells classes apart, by its name in the model."""
    parts = name.split('.')[:-1]
    above = [model.get_submodule('.'.join(parts[: i + 1])) for i in range(len(parts))]
    return any(isinstance(getattr(module, 'num_classes', None), int) for module in above)


def _class_names(checkpoint: dict) -> Sequence[str] | None:
    """Names of the classes as MMEngine's checkpoints have them, or those before it."""
    meta = checkpoint.get('meta')
    if not isinstance(meta, dict):
        return None
    dataset = meta.get('dataset_meta')
    names = (dataset if isinstance(dataset, dict) else {}).get('classes') or meta.get('CLASSES')
    return list(names) if isinstance(names, (list, tuple)) else None


# In which order the weights of a model are looked for in a checkpoint: as they are; saved from a
# wrapper; trained as a student by MMRazor; used as a teacher by MMRazor; EMA.
_PREFIXES = (
    '',
    'module.',
    'architecture.',
    'module.architecture.',
    'teacher.',
    'student.',
    'model.',
)


def _strip_prefix(
    given: dict[str, Tensor], needed: dict[str, torch.Size]
) -> tuple[str, dict[str, Tensor]]:
    """Find the prefix below which most of the needed parameters are; gives it and what is there."""

    def below(prefix: str) -> dict[str, Tensor]:
        found = OrderedDict(
            (name[len(prefix) :], value)
            for name, value in given.items()
            if name.startswith(prefix) and isinstance(value, Tensor)
        )
        # the versions of the modules, of which one may have saved other names
        versions = getattr(given, '_metadata', None) or {}
        found._metadata = {
            name[len(prefix) :]: value
            for name, value in versions.items()
            if name.startswith(prefix)
        }
        return found

    def fit(prefix: str) -> int:
        found = below(prefix)
        return sum(name in found and found[name].shape == size for name, size in needed.items())

    best = max(_PREFIXES, key=fit)  # the first of equals
    return best, below(best)


def listing(names: Iterable[str], most: int = 20) -> str:
    """Write names in brackets, for an error; nothing if there are none."""
    names = list(names)
    if not names:
        return ''
    more = f', and {len(names) - most} more' if len(names) > most else ''
    return ' (' + '; '.join(names[:most]) + more + ')'
