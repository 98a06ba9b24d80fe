"""What is said about a distillation: its features, its cost and what to mind."""

import contextlib
import io

import torch
from mmengine.analysis import get_model_complexity_info
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

from ..teachers import ExternalTeacher, make_renormalize
from ..training import class_names, made_up_images, main_head_classes, training_images


def print_tables(
    console: Console,
    algorithm: nn.Module,
    pairs: list,
    counts: list,
    size: tuple[int, int],
    notes: list[str],
    warnings: list[str],
) -> None:
    """Print what learns from what, what it costs and what to mind."""

    def cell(feature) -> tuple[str, str, str]:
        # '[run=0]' is no markup
        return (
            escape(feature.source.text),
            'x'.join(map(str, feature.shape)),
            f'{feature.stride:.3g}',
        )

    table = Table(title=f'Features, of an image of {size[0]}x{size[1]}', title_justify='left')
    for name in ('student', 'shape', 'stride', 'teacher', 'shape', 'stride', 'aligned by'):
        table.add_column(name, overflow='fold')
    for pair, (student, teacher) in zip(algorithm.distiller.pairs, pairs):
        steps = []
        if student.shape[0] != teacher.shape[0]:
            steps.append(f'1x1 convolution {student.shape[0]} -> {teacher.shape[0]}')
        if student.shape[1:] != teacher.shape[1:]:
            steps.append(
                f'bilinear resizing {"x".join(map(str, student.shape[1:]))} -> '
                f'{"x".join(map(str, teacher.shape[1:]))}'
            )
        for role in ('student', 'teacher'):
            config = getattr(pair, f'{role}_connector')
            if config is not None:
                steps.append(f'{config["type"]} ({role})')
        table.add_row(*cell(student), *cell(teacher), ', '.join(steps) or 'nothing needed')
    console.print(table)
    table = Table(title=f'Cost, of an image of {size[0]}x{size[1]}', title_justify='left')
    for name in ('', 'parameters', 'FLOPs'):
        table.add_column(name, justify='right' if name else 'left')
    for name, parameters, flops in counts:
        table.add_row(name, short(parameters), short(flops))
    console.print(table)
    for note in notes:
        console.print(note, markup=False, highlight=False)
    for warning in warnings:
        console.print(f'WARNING: {warning}', markup=False, highlight=False)


def count_all(
    algorithm: nn.Module, pairs: list, size: tuple[int, int]
) -> list[tuple[str, int, int | None]]:
    """Give name, parameters and FLOPs of teacher, student and connectors."""
    rows = []
    for role in ('teacher', 'student'):
        model = getattr(algorithm, role)
        images, samples = made_up_images(model, size, 1)
        images = torch.stack(images).float()
        rows.append((f'{role}, {type(model).__name__}', *complexity(model, images, samples)))
    connectors = algorithm.distiller.connectors
    parameters = sum(p.numel() for p in connectors.parameters())
    flops = 0
    for pair, (student, teacher) in zip(algorithm.distiller.pairs, pairs):
        aligned = (teacher.shape[0], *teacher.shape[1:])
        for key, shape in (
            (pair.key, student.shape),
            (pair.connector_key('student'), aligned),
            (pair.connector_key('teacher'), aligned),
        ):
            if key in connectors and flops is not None:
                more = complexity(connectors[key], torch.zeros(1, *shape))[1]
                flops = None if more is None else flops + more
    rows.append(('connectors', parameters, flops))
    return rows


def complexity(
    model: nn.Module, inputs: torch.Tensor, samples: list | None = None
) -> tuple[int, int | None]:
    """Count parameters and, where MMEngine's counter can, FLOPs of a forward."""

    class Forward(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, inputs):
            if samples is None:
                return self.model(inputs)
            result = self.model(inputs, samples, mode='tensor')
            return tuple(
                x for x in torch.utils._pytree.tree_flatten(result)[0] if torch.is_tensor(x)
            )

    parameters = sum(p.numel() for p in model.parameters())
    training = model.training
    model.eval()
    try:
        # it prints which modules did not run
        with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
            info = get_model_complexity_info(
                Forward(), inputs=(inputs,), show_table=False, show_arch=False
            )
        return parameters, info['flops']
    except Exception:
        # a head that cannot be traced (PointRend's tensor mode, say)
        return parameters, None
    finally:
        model.train(training)


def find_warnings(cfgs: tuple, algorithm: nn.Module, pairs: list, counts: list) -> list[str]:
    """Say what may be wrong with a pair of models."""
    student, teacher = algorithm.student, algorithm.teacher
    result = []
    numbers = main_head_classes(student), main_head_classes(teacher)
    names = tuple(map(class_names, cfgs))
    if isinstance(teacher, ExternalTeacher):
        pass  # it is there for its features
    elif numbers[0] != numbers[1]:
        result.append(
            f'Other classes: the student has {numbers[0]}, the teacher {numbers[1]}. Features can '
            'still be compared, if the teacher has learnt about such images.'
        )
    elif None not in names and names[0] != names[1]:
        other = next((a, b) for a, b in zip(*names) if a != b)
        result.append(
            f'Other classes: of {numbers[0]} each, but the student has {other[0]!r} where the '
            f'teacher has {other[1]!r}.'
        )
    if make_renormalize(algorithm.data_preprocessor, teacher.data_preprocessor) is not None:
        result.append(
            "Other normalisation: the teacher's images are made from the student's in each "
            'iteration (mean, std, order of the channels).'
        )
    for of_student, of_teacher in pairs:
        low, high = sorted((of_student.stride, of_teacher.stride))
        ratio = high / low
        if ratio > 2.01:
            larger = (
                f', or let the teacher see larger images: model.teacher_input=dict(scale={ratio:g})'
            )
            result.append(
                f'Strides that differ by a factor of {ratio:.1f}: {of_student.source.text} has '
                f'{of_student.stride:g}, {of_teacher.source.text} {of_teacher.stride:g}. What the '
                'finer map knows about positions is lost, or made up, by resizing. '
                'tools/inspect_features.py lists '
                f'others{larger if of_teacher.stride > of_student.stride else ""}.'
            )
    if counts[0][1] <= counts[1][1]:
        result.append(
            f'The teacher is not larger than the student: {short(counts[0][1])} parameters, the '
            f'student has {short(counts[1][1])}. Are the two the wrong way round?'
        )
    of_student, of_teacher = map(training_images, cfgs)
    if None not in (of_student, of_teacher) and of_student[:2] != of_teacher[:2]:
        result.append(
            f"Images of another size: the student trains on {of_student}, the teacher's config on "
            f'{of_teacher}. '
            "The teacher's features are best at the size that it was trained with."
        )
    return result


def short(number: int | None) -> str:
    """Write a number with two decimals and k, M or G."""
    if number is None:
        return 'not countable'
    for unit, name in ((1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
        if number >= unit:
            return f'{number / unit:.2f} {name}'
    return str(number)
