"""What holds for every pair of features, of the losses on raw features; in float64."""

import pytest
import torch
from generated import (
    ANGULAR,
    RAW,
    dims_of,
    features,
    norms,
    raw_loss,
    shapes_of,
    value_and_gradient,
)
from hypothesis import given
from hypothesis import strategies as st

BATCHED = st.lists(st.integers(1, 4), min_size=2, max_size=4).map(tuple)
SEEDS = st.integers(0, 2**16)
TOLERANCE = dict(rtol=1e-9, atol=1e-12)


def close(given, expected, **tolerance):
    expected = torch.as_tensor(expected, dtype=given.dtype)
    torch.testing.assert_close(given, expected, **{**TOLERANCE, **tolerance})


def factors(feature, name, seed):
    """A positive number from 1e-3 to 1e3 for each vector of an angular loss."""
    generator = torch.Generator().manual_seed(seed)
    shape = norms(name, feature).shape
    return 10 ** (6 * torch.rand(shape, generator=generator, dtype=torch.float64) - 3)


def permutation(length, seed):
    return torch.randperm(length, generator=torch.Generator().manual_seed(seed))


# The angle alone


@pytest.mark.parametrize('name', ANGULAR)
@given(pair=features(), seed=SEEDS)
def test_angular_ignores_the_length_of_every_vector(name, pair, seed):
    """Of each image, channel or position by a factor of its own, in both arguments."""
    student, teacher = pair
    loss = raw_loss(name)
    scale = factors(student, name, seed)
    expected, gradient = value_and_gradient(lambda s: loss(s, teacher), student)
    close(loss(student, teacher * scale), expected)
    value, scaled = value_and_gradient(lambda s: loss(s, teacher), student * scale)
    close(value, expected)
    # the longer a vector, the less a step turns it; below 1 / n there is only rounding
    close(scaled * scale, gradient, atol=1e-11)


@pytest.mark.parametrize('name', ANGULAR)
@given(pair=features())
def test_angular_of_the_opposite(name, pair):
    """1 - cos becomes 1 + cos; a vector without direction stays at 1."""
    student, teacher = pair
    loss = raw_loss(name)
    close(loss(-student, teacher) + loss(student, teacher), 2.0, rtol=0, atol=1e-12)
    close(loss(student, -teacher), loss(-student, teacher))
    close(loss(student, teacher), loss(teacher, student))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize('name', ANGULAR)
@given(pair=features(), tilt=st.sampled_from([0.0, 1e-7, 1e-3, 1.0]))
def test_angular_lies_between_0_and_2(name, dtype, pair, tilt):
    """Nearly parallel and opposite vectors as well, where rounding would go beyond."""
    student, other = pair
    turned = student * (1 + tilt * other)  # up to 1e4, float16 has a place for it
    for teacher in (turned, -turned, other):
        assert 0 <= raw_loss(name)(student.to(dtype), teacher.to(dtype)) <= 2


@pytest.mark.parametrize('name', RAW)
@given(data=st.data())
def test_identical_features(name, data):
    """No loss and no gradient; a vector without direction counts 1."""
    student, teacher = data.draw(features(2, shapes_of(name)))
    teacher = student.clone()
    value, gradient = value_and_gradient(lambda s: raw_loss(name)(s, teacher), student)
    undirected = (norms(name, student) == 0).double().mean() if name in ANGULAR else 0.0
    close(value, undirected)
    close(gradient, torch.zeros_like(gradient), atol=1e-12)


@pytest.mark.parametrize('name', RAW)
@given(data=st.data())
def test_no_loss_is_negative(name, data):
    student, teacher = data.draw(features(2, shapes_of(name)))
    assert raw_loss(name)(student, teacher) >= 0


# Order does not matter


@pytest.mark.parametrize('what', ['images', 'channels', 'pixels'])
@pytest.mark.parametrize('name', RAW)
@given(data=st.data(), seed=SEEDS)
def test_order_does_not_matter(name, what, data, seed):
    """Images, channels or pixels in another order give the gradient in that order."""
    student, teacher = (
        x.flatten(2) if x.dim() > 2 else x for x in data.draw(features(2, shapes_of(name)))
    )
    dim = ['images', 'channels', 'pixels'].index(what)
    if dim == student.dim():
        return
    order = permutation(student.shape[dim], seed)
    loss = raw_loss(name)
    value, gradient = value_and_gradient(lambda s: loss(s, teacher), student)
    shuffled = value_and_gradient(
        lambda s: loss(s, teacher.index_select(dim, order)), student.index_select(dim, order)
    )
    close(shuffled[0], value)
    close(shuffled[1], gradient.index_select(dim, order), atol=1e-11)


@pytest.mark.parametrize('name', RAW)
@given(data=st.data())
def test_batch_is_the_mean_of_its_images(name, data):
    """Value and gradient: what lets processes share a batch, and gradients accumulate."""
    student, teacher = data.draw(features(2, shapes_of(name)))
    loss = raw_loss(name)
    value, gradient = value_and_gradient(lambda s: loss(s, teacher), student)
    single = [
        value_and_gradient(lambda s, i=i: loss(s, teacher[i : i + 1]), student[i : i + 1])
        for i in range(len(student))
    ]
    close(value, torch.stack([v for v, _ in single]).mean())
    close(gradient, torch.cat([g for _, g in single]) / len(student), atol=1e-11)


# Gradients


@pytest.mark.parametrize('name', ANGULAR)
@given(pair=features())
def test_angular_gradient_turns_and_does_not_stretch(name, pair):
    """Orthogonal to the student's vector: of each image, each channel, each position."""
    student, teacher = pair
    _, gradient = value_and_gradient(lambda s: raw_loss(name)(s, teacher), student)
    dims = dims_of(name, student)
    product = gradient * student
    if dims:
        product = product.sum(dims)
    # gradient times norm is at most 1 over the number of vectors
    assert product.abs().max() < 1e-12


@given(pair=features())
def test_magnitude_gradient_stretches_and_does_not_turn(pair):
    student, teacher = pair
    _, gradient = value_and_gradient(lambda s: raw_loss('MagnitudeLoss')(s, teacher), student)
    for s, t, g in zip(student.flatten(1), teacher.flatten(1), gradient.flatten(1)):
        close((g * s).sum().abs(), g.norm() * s.norm())
        assert (g * s).sum() * (s.norm() - t.norm()) >= 0


@given(pair=features(2, shapes_of('NFDLoss')))
def test_nfd_gradient_moves_no_mean(pair):
    student, teacher = pair
    _, gradient = value_and_gradient(lambda s: raw_loss('NFDLoss')(s, teacher), student)
    size = gradient.abs().sum().clamp(min=1)
    assert (gradient.flatten(2).sum(2).abs() / size).max() < 1e-9


@pytest.mark.parametrize('name', RAW)
@given(data=st.data(), weights=st.tuples(st.floats(0, 10), st.floats(-10, 10)))
def test_gradient_of_a_sum_is_the_sum_of_the_gradients(name, data, weights):
    """A student with two teachers, and with another loss on the same feature."""
    student, first, second = data.draw(features(3, shapes_of(name)))
    terms = [
        lambda s: raw_loss(name, weights[0])(s, first),
        lambda s: weights[1] * raw_loss(name)(s, second),
        lambda s: raw_loss('NaiveFeatureLoss')(s, first),
    ]
    value, gradient = value_and_gradient(lambda s: sum(term(s) for term in terms), student)
    single = [value_and_gradient(term, student) for term in terms]
    close(value, sum(v for v, _ in single))
    scale = max(1.0, *(g.abs().max().item() for _, g in single))
    close(gradient, sum(g for _, g in single), atol=1e-12 * scale)


# How the losses hang together


@given(pair=features())
def test_naive_is_magnitude_plus_angular(pair):
    """Eq. (10), each image by itself: the angle is LAD, its factor 2mn/N."""
    student, teacher = pair
    for s, t in zip(student.split(1), teacher.split(1)):
        angular = 2 * s.norm() * t.norm() / s.numel() * raw_loss('LADLoss')(s, t)
        # 1 - cos loses digits where the angle is small
        atol = 1e-13 * (s.norm() * t.norm()).item()
        naive = raw_loss('NaiveFeatureLoss')(s, t)
        close(raw_loss('MagnitudeLoss')(s, t) + angular, naive, atol=atol)


@given(pair=features(), shift=st.floats(-10, 10))
def test_naive_sees_the_difference_only(pair, shift):
    student, teacher = pair
    loss = raw_loss('NaiveFeatureLoss')
    close(loss(student + shift, teacher + shift), loss(student, teacher), atol=1e-9)
    close(loss(teacher, student), loss(student, teacher))


@given(pair=features(), seeds=st.tuples(SEEDS, SEEDS))
def test_magnitude_does_not_see_where_the_values_are(pair, seeds):
    """Neither their order nor their signs, in each feature by itself."""
    student, teacher = pair
    moved = [
        -x.flatten(1)[:, permutation(x[0].numel(), seed)].view_as(x) for x, seed in zip(pair, seeds)
    ]
    loss = raw_loss('MagnitudeLoss')
    close(loss(*moved), loss(student, teacher), atol=1e-9)
    assert loss(student, teacher) <= raw_loss('NaiveFeatureLoss')(student, teacher) * (1 + 1e-12)


@given(pair=features(2, shapes_of('NFDLoss')), seed=SEEDS)
def test_nfd_ignores_mean_and_spread_of_every_channel(pair, seed):
    """A channel without spread excepted, which has nothing to standardise."""
    loss = raw_loss('NFDLoss')
    expected = loss(*pair)
    if any((x.flatten(2).std(2, correction=0) < 1e-2).any() for x in pair):
        return
    generator = torch.Generator().manual_seed(seed)
    for side in (0, 1):
        shape = (*pair[side].shape[:2], *[1] * (pair[side].dim() - 2))
        scale = 2 ** (6 * torch.rand(shape, generator=generator, dtype=torch.float64))
        shift = 100 * torch.randn(shape, generator=generator, dtype=torch.float64)
        moved = list(pair)
        moved[side] = pair[side] * scale + shift
        # eps, 1e-8, beside a variance of at least 1e-4
        close(loss(*moved), expected, rtol=0, atol=1e-3)
    assert expected <= 4


# The smallest shapes


@given(pair=features(shapes=BATCHED.filter(lambda s: len(s) > 2).map(lambda s: (*s[:2], 1, 1))))
def test_single_pixels(pair):
    """LAD is PAD, CAD compares signs, NFD has nothing left."""
    student, teacher = pair
    value, gradient = value_and_gradient(lambda s: raw_loss('LADLoss')(s, teacher), student)
    other = value_and_gradient(lambda s: raw_loss('PADLoss')(s, teacher), student)
    close(value, other[0])
    close(gradient, other[1])
    value, gradient = value_and_gradient(lambda s: raw_loss('CADLoss')(s, teacher), student)
    close(value, 1 - (student.sign() * teacher.sign()).mean())
    close(gradient * student, torch.zeros_like(gradient))
    value, gradient = value_and_gradient(lambda s: raw_loss('NFDLoss')(s, teacher), student)
    assert value == 0 and (gradient == 0).all()


@given(pair=features(shapes=BATCHED.map(lambda s: (s[0], 1, *s[2:]))))
def test_single_channels(pair):
    """LAD is CAD, PAD compares signs."""
    student, teacher = pair
    value, gradient = value_and_gradient(lambda s: raw_loss('LADLoss')(s, teacher), student)
    other = value_and_gradient(lambda s: raw_loss('CADLoss')(s, teacher), student)
    close(value, other[0])
    close(gradient, other[1])
    close(raw_loss('PADLoss')(student, teacher), 1 - (student.sign() * teacher.sign()).mean())


@pytest.mark.parametrize('name', RAW)
def test_empty_features_are_refused(name):
    for shape in [(0, 4, 3, 3), (2, 0, 3, 3), (2, 4, 0, 3)]:
        empty = torch.ones(shape, requires_grad=True)
        with pytest.raises(ValueError) as error:
            raw_loss(name)(empty, empty)
        assert 'must not be empty' in str(error.value) and str(shape) in str(error.value)
