"""A distillation: its config composed, built and tried for one iteration."""

import argparse
import contextlib
import copy
import io
from typing import NamedTuple

from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from ..features import AutoFeatureError
from ..training import TrialError, UsageError, run_one_iteration, training_images
from ..training.model_config import remove_pretrained, resolve_model, use_torch_sync_batchnorm
from .methods import choose_method
from .models import DEFAULT_SIZE, build_alone, check_trainable, read_config, scope_of, trial_size
from .pairs import choose_pairs, dry_run_shape, find_inherited
from .unlabelled import unlabelled_hook
from .writing import compose, read_back


class Result(NamedTuple):
    """A distillation that can be written, and what is said about it.

    Attributes:
        text: The config.
        cfg: The same, read.
        algorithm: Built from it.
        pairs: The student's and the teacher's features.
        size: Height and width of the image that the shapes are about.
        notes: What was left out.
        left: Absolute paths in the config, by their keys.
        cfgs: The student's and the teacher's configs.
    """

    text: str
    cfg: Config
    algorithm: nn.Module
    pairs: list
    size: tuple[int, int]
    notes: list[str]
    left: dict
    cfgs: tuple[Config, Config]


def make(args: argparse.Namespace, size: tuple[int, int] | None = None) -> Result:
    """Compose the config that the arguments ask for and build it; on images of a size or the crop's."""
    cfgs = (
        read_config(args.student, 'student'),
        read_config(args.teacher, 'teacher', args.teacher_options),
    )
    check_trainable(args.student, cfgs[0])
    student, teacher = build_alone(cfgs[0], 'student'), build_alone(cfgs[1], 'teacher')
    method = choose_method(args.method, student)
    images = training_images(cfgs[0])
    crop = images and images[:2]
    size = size or trial_size(cfgs[0])
    try:
        pairs, notes = choose_pairs(args, student, teacher, size)
    except (AutoFeatureError, RuntimeError):
        # some heads pool over more positions than a small image has
        if crop is None or crop == size:
            raise
        size = crop
        pairs, notes = choose_pairs(args, student, teacher, size)
    shape = dry_run_shape(student, teacher, pairs, size)
    inherited, more = find_inherited(args, method, student, teacher)
    notes += more
    hook = None
    if getattr(args, 'unlabelled', None):
        hook, more = unlabelled_hook(args, cfgs[0])
        notes += more
    text, left = compose(args, *cfgs, method, pairs, shape, inherited, hook)
    cfg = read_back(text)
    algorithm = build_algorithm(cfg, with_weights=not args.no_check)
    if hook is not None:
        algorithm.check_unlabelled()
    return Result(text, cfg, algorithm, pairs, size, notes, left, cfgs)


def build_algorithm(cfg: Config, with_weights: bool) -> nn.Module:
    """Build the distillation that a config describes, initialised as a training begins.

    Nothing is downloaded to begin with: the student is random. Without the teacher's weights for
    --no-check.
    """
    model = copy.deepcopy(cfg.model)
    if 'data_preprocessor' in cfg:  # as the Runner does
        model.setdefault('data_preprocessor', copy.deepcopy(cfg.data_preprocessor))
    remove_pretrained(model.architecture)
    if 'cfg_path' in model.teacher:
        model.teacher = resolve_model(model.teacher)
        remove_pretrained(model.teacher)  # its checkpoint has all of it
    use_torch_sync_batchnorm(model)
    model.update(teacher_speed=None)  # one iteration on small images tells nothing about it
    if not with_weights:
        model.update(teacher_ckpt=None, allow_random_teacher=True, init_student=None)
    try:
        # the loading of a checkpoint prints its path
        with scope_of(cfg), contextlib.redirect_stdout(io.StringIO()):
            algorithm = MODELS.build(model)
    except Exception as error:
        raise UsageError(f'the distillation cannot be built: {error}') from error
    # As PyTorch leaves them, the weights of large models give losses that are not finite. Some models
    # (SAN) can only begin with pretrained weights: these stay as PyTorch leaves them.
    with scope_of(cfg), contextlib.suppress(AttributeError, OSError):
        algorithm.init_weights()
    return algorithm


def try_out(result: Result) -> tuple[dict[str, float], tuple[int, int]]:
    """Train for one iteration; gives the losses, and height and width of the images.

    Where small images fail, larger ones are tried, and those of the training: a query detector
    chooses from more positions than a small image has, and a deformable convolution wants maps of
    3x3.
    """
    images = training_images(result.cfgs[0])
    whole = images[:2] if images else (4 * DEFAULT_SIZE[0],) * 2
    middle = [DEFAULT_SIZE] if min(result.size) < min(DEFAULT_SIZE) <= min(whole) else []
    errors = []
    for size in (result.size, *middle, whole):
        try:
            with scope_of(result.cfg):
                wrapper = result.cfg.optim_wrapper
                return run_one_iteration(result.algorithm, wrapper, size), size
        except TrialError as error:
            errors.append(str(error))  # the error itself would keep the iteration's memory
        if min(size) >= min(whole):
            break
    # small images may be too small, and large ones may need too much memory
    causes = [text.partition('failed: ')[2] for text in errors]
    raise TrialError(errors[-1] if causes[0] == causes[-1] else f'{errors[0]}; and {errors[-1]}')
