"""A distillation of images without labels: what learns, and what cannot be done without labels."""

from collections import Counter

from mmengine.logging import print_log
from mmengine.model import BaseModel
from torch import nn

from ..features import FeatureCapture, image_channels, is_unlabelled, learning_parameters
from ..features.mmrazor_adapter import RazorSide

__all__ = ['check_labels', 'freeze_what_does_not_learn', 'refuse_whole_forward']


def freeze_what_does_not_learn(
    student: BaseModel, distiller: nn.Module, capture: FeatureCapture, razor: RazorSide
) -> bool:
    """Freeze the student's parameters that its features do not depend on; the log says which.

    DDP would wait for their gradients.

    Args:
        student (BaseModel): Without losses of its own.
        distiller (nn.Module): The distiller.
        capture (FeatureCapture): The student's features.
        razor (RazorSide): MMRazor's recorders of the student.

    Returns:
        bool: False if the features need a forward with losses; then nothing is frozen.
    """
    if razor.needs_whole_forward:
        return False
    shape = getattr(distiller, 'dry_run_shape', None) or (image_channels(student), 64, 64)
    learning = learning_parameters(student, shape, capture, razor)
    if learning is None:
        return False
    idle = {
        name: p
        for name, p in student.named_parameters()
        if p.requires_grad and name not in learning
    }
    if not idle:
        return True
    for parameter in idle.values():
        parameter.requires_grad_(False)
    modules = Counter('.'.join(name.split('.')[:2]) for name in idle)
    listed = ', '.join(f'{name} ({count})' for name, count in list(modules.items())[:8])
    more = f' and {len(modules) - 8} more modules' if len(modules) > 8 else ''
    print_log(
        f'calculate_student_loss=False: {len(idle)} parameters of the student do not learn, as no '
        f'compared feature depends on them: {listed}{more}. They are frozen.',
        'current',
    )
    return True


def check_labels(data_samples: list | None, model: str) -> None:
    """Refuse to compute a student's own losses from images without labels.

    Args:
        data_samples (list, optional): Of the batch.
        model (str): Name of the student, for the error.

    Raises:
        ValueError: If one is from ``UnlabelledImages``; says what to do.
    """
    sample = next((s for s in data_samples or () if is_unlabelled(s)), None)
    if sample is not None:
        raise ValueError(
            f'the own losses of the student {model} need labels, and train_dataloader has images '
            f'without them ({getattr(sample, "img_path", "UnlabelledImages")}). Set '
            'calculate_student_loss=False to learn from features alone, or give train_dataloader '
            'labelled images and these to the UnlabelledImagesHook'
        )


def refuse_whole_forward(*sides: RazorSide) -> None:
    """Refuse recorders and deliveries that need a whole forward, which computes losses from labels.

    Args:
        *sides (RazorSide): Of the student and the teacher.

    Raises:
        ValueError: If there are any.
    """
    if any(side.needs_whole_forward for side in sides):
        raise ValueError(
            "images without labels run to their last compared feature, but MMRazor's deliveries, "
            'and recorders of something else than the outputs of modules, need the whole forward '
            'with its losses. Record modules (ModuleOutputs), or leave out the unlabelled images'
        )
