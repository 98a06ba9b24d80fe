"""What holds for FGD, whatever the features and boxes; in float64.

It is not invariant to the scale of the features (their difference and the exponents of the attention
count), nor to the order of the pixels (the boxes are somewhere), nor to mirroring (the cells of a box
reach one further to the right and below).
"""

import pytest
import torch
from generated import STRIDE, detections, samples_of
from hypothesis import given
from hypothesis import strategies as st

from rawkd_mm.losses import FGDLoss
from rawkd_mm.losses.fgd_loss import FGDTerms

SEEDS = st.integers(0, 2**16)
NAMES = FGDTerms._fields
WEIGHTS = ('alpha', 'beta', 'gamma', 'lambda_')


def terms(student, teacher, boxes, **kwargs):
    return FGDLoss(**kwargs).terms(student, teacher, samples_of(student[0], boxes))


def same(given, expected):
    for name in NAMES:
        one, other = getattr(given, name), getattr(expected, name)
        torch.testing.assert_close(
            one, other, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f'{n}: {m}'
        )


def each(function, student, teacher):
    return tuple(map(function, student)), tuple(map(function, teacher))


def permutation(length, seed):
    return torch.randperm(length, generator=torch.Generator().manual_seed(seed))


@given(given=detections(), seed=SEEDS)
def test_order_of_images_does_not_matter(given, seed):
    student, teacher, boxes = given
    order = permutation(len(boxes), seed)
    moved = each(lambda x: x[order], student, teacher)
    same(terms(*moved, [boxes[i] for i in order]), terms(student, teacher, boxes))


@given(given=detections(), seed=SEEDS)
def test_order_of_channels_does_not_matter(given, seed):
    student, teacher, boxes = given
    order = permutation(student[0].shape[1], seed)
    moved = each(lambda x: x[:, order], student, teacher)
    same(terms(*moved, boxes), terms(student, teacher, boxes))


@given(given=detections())
def test_batch_is_the_mean_of_its_images(given):
    student, teacher, boxes = given
    single = [
        terms(*each(lambda x, i=i: x[i : i + 1], student, teacher), boxes[i : i + 1])
        for i in range(len(boxes))
    ]
    mean = FGDTerms(*(torch.stack(values).mean() for values in zip(*single)))
    same(terms(student, teacher, boxes), mean)


@given(given=detections(), seed=SEEDS)
def test_order_and_repetition_of_boxes_do_not_matter(given, seed):
    student, teacher, boxes = given
    shuffled = [[b[i] for i in permutation(len(b), seed)] + b[:1] for b in boxes]
    same(terms(student, teacher, shuffled), terms(student, teacher, boxes))


@given(given=detections(), seed=SEEDS)
def test_order_of_pixels_does_not_matter_without_boxes(given, seed):
    student, teacher, boxes = given
    none = [[]] * len(boxes)
    order = permutation(student[0][0, 0].numel(), seed)
    moved = each(lambda x: x.flatten(2)[:, :, order].view_as(x), student, teacher)
    plain = terms(student, teacher, none)
    same(terms(*moved, none), plain)
    assert plain.foreground == 0


@given(given=detections(), down=st.integers(0, 2), right=st.integers(0, 2))
def test_scene_may_move_by_whole_cells(given, down, right):
    """Features and boxes by the same distance, with room on all sides for every cell of a box."""
    student, teacher, boxes = given

    def place(x, top, left):
        rows, columns = x.shape[2:]
        large = x.new_zeros(*x.shape[:2], rows + 5, columns + 5)
        large[:, :, top : top + rows, left : left + columns] = x
        return large

    def move(corners, top, left):
        return [[x + STRIDE * (left, top)[i % 2] for i, x in enumerate(b)] for b in corners]

    def at(top, left):
        moved = each(lambda x: place(x, top, left), student, teacher)
        return terms(*moved, [move(b, top, left) for b in boxes])

    same(at(1 + down, 1 + right), at(1, 1))


@given(given=detections(), scale=st.floats(0.1, 10))
def test_temperature_is_the_unit_of_the_features(given, scale):
    """Features and temperature times a: the attention stays, squared differences get a^2."""
    student, teacher, boxes = given
    plain = terms(student, teacher, boxes)
    scaled = each(lambda x: scale * x, student, teacher)
    expected = FGDTerms(
        plain.foreground * scale**2,
        plain.background * scale**2,
        plain.attention,
        plain.context * scale**2,
    )
    same(terms(*scaled, boxes, temperature=0.5 * scale), expected)


@given(given=detections())
def test_sign_of_both_sides_does_not_matter(given):
    student, teacher, boxes = given
    same(terms(*each(torch.neg, student, teacher), boxes), terms(student, teacher, boxes))


@given(given=detections())
def test_no_term_is_negative_and_equal_features_give_none(given):
    student, teacher, boxes = given
    assert all(term >= 0 for term in terms(student, teacher, boxes))
    equal = terms(teacher, tuple(x.clone() for x in teacher), boxes)
    assert all(term == 0 for term in equal)


@given(given=detections())
def test_teacher_context_counts_in_its_term_only(given):
    student, teacher, boxes = given
    plain = terms(student, teacher, boxes)
    other = terms(student, (teacher[0], teacher[1] + 1), boxes)
    same(other._replace(context=plain.context), plain)


@pytest.mark.parametrize('index', range(4), ids=NAMES)
@given(given=detections())
def test_weight_of_zero_switches_a_term_off(index, given):
    """Alone, each term gives its own gradient, and without it, the others' remains."""
    student, teacher, boxes = given
    samples = samples_of(student[0], boxes)
    weights = dict(zip(WEIGHTS, (1.0, 2.0, 3.0, 4.0)))

    def gradients(**given):
        inputs = [x.clone().requires_grad_() for x in (*student, teacher[1])]
        out = FGDLoss(**given)(inputs[:2], (teacher[0], inputs[2]), samples)
        return out.detach(), *torch.autograd.grad(out, inputs)

    everything = gradients(**weights)
    without = gradients(**{**weights, WEIGHTS[index]: 0.0})
    alone = gradients(**{w: v if i == index else 0.0 for i, (w, v) in enumerate(weights.items())})
    for whole, one, rest in zip(everything, alone, without):
        torch.testing.assert_close(one + rest, whole, rtol=1e-9, atol=1e-9)
    of_context = NAMES[index] == 'context'
    # the student's feature has no part in the context, and the contexts none in the rest
    assert all((g == 0).all() for g in (alone[1:2] if of_context else alone[2:]))
    assert all((g == 0).all() for g in (without[2:] if of_context else ()))


@given(given=detections(), seed=SEEDS)
def test_gradient_of_a_sum_is_the_sum_of_the_gradients(given, seed):
    student, teacher, boxes = given
    samples = samples_of(student[0], boxes)
    second = tuple(x.flip(1) for x in teacher)
    feature = student[0].clone().requires_grad_()
    outs = [
        FGDLoss(alpha=1, beta=1, gamma=1)((feature, student[1]), t, samples)
        for t in (teacher, second)
    ]
    (whole,) = torch.autograd.grad(outs[0] - 2.5 * outs[1], feature, retain_graph=True)
    parts = [torch.autograd.grad(out, feature, retain_graph=True)[0] for out in outs]
    torch.testing.assert_close(parts[0] - 2.5 * parts[1], whole, rtol=1e-9, atol=1e-9)
