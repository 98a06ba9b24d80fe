"""Half precision against float64, and values from 1e-20 to 1e4.

What is compared is the loss of the *rounded* features with that of the exact ones, so that the bounds
are those of the rounding; the losses themselves are computed in float32, which SLACK is for. With the
unit roundoff u, rounding moves each value by at most u of itself, and so

- a vector by at most u of its norm: a norm changes by u of itself, a direction by asin(u);
- 1 - cos, of an angle that changes by a = 2 asin(u), by |sin| a + a^2 / 2, whatever the size of the map;
- (t - s)^2 by 2 |t - s| e + e^2 with e = u (|t| + |s|); the same holds of norms in their place;
- a *centred* vector, NFD's, by u of the norm before centring: its direction by asin(u k), where k is the
  ratio of the norms before and after;
- an exponent of FGD's attention, mean |F| / T, by u of itself, and so the attention by a factor of
  e^(2 u max(mean |F|) / T).
"""

import math

import pytest
import torch
from fgd_reference import TERMS, fgd_samples
from generated import ANGULAR, RAW, norms, raw_loss, value_and_gradient

from rawkd_mm import functional
from rawkd_mm.losses import FGDLoss

UNIT = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
HALVES = pytest.mark.parametrize('dtype', UNIT, ids=str)
SLACK = 1e-5
SHAPE = (2, 6, 5, 7)

# Pairs of which each has its own difficulty
KINDS = {
    'independent': lambda s, noise: noise,
    'parallel': lambda s, noise: 3 * s,
    'nearly parallel': lambda s, noise: s * (1 + 1e-3 * noise),
    'opposite': lambda s, noise: -s + 1e-2 * noise,
    'short': lambda s, noise: 1e-2 * noise,
    'with an offset': lambda s, noise: 0.1 * noise + 1,
    'half zero': lambda s, noise: noise.relu(),
}


def pair(kind, seed=0, shape=SHAPE):
    generator = torch.Generator().manual_seed(seed)
    student, noise = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    return student, KINDS[kind](student, noise)


def gradient_of(loss, student, teacher):
    return value_and_gradient(lambda s: loss(s, teacher), student)[1]


def of_squares(difference, size, unit):
    """How far rounding may move a square of a difference of two values of this size in all."""
    error = unit * size
    return 2 * difference.abs() * error + error.square()


def of_angle(sine, turn):
    return sine * turn + turn**2 / 2


def bound(name, student, teacher, unit):
    dims = tuple(range(1, student.dim()))
    if name in ANGULAR:
        # |sin| <= 1; the granularity only decides over which vectors the mean is
        return of_angle(1.0, 2 * math.asin(unit))
    if name == 'NaiveFeatureLoss':
        size = student.abs() + teacher.abs()
        return of_squares(teacher - student, size, unit).mean().item()
    if name == 'MagnitudeLoss':
        n, m = (x.square().sum(dims).sqrt() for x in (student, teacher))
        return of_squares(m - n, m + n, unit).mean().item() / student[0].numel()
    turn = 0.0
    for feature in (student, teacher):
        flat = feature.flatten(2)
        centred = flat - flat.mean(2, keepdim=True)
        ratio = flat.norm(dim=2) / centred.norm(dim=2)
        turn = turn + (unit * ratio).clamp(max=1).asin()
    return 2 * of_angle(1.0, turn).mean().item()  # NFD is 2 (1 - cos)


@HALVES
@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('name', RAW)
def test_half_precision(name, kind, dtype):
    for seed in range(4):
        student, teacher = pair(kind, seed)
        exact = raw_loss(name)(student, teacher).item()
        halves = raw_loss(name)(student.to(dtype), teacher.to(dtype)).item()
        most = bound(name, student, teacher, UNIT[dtype])
        assert abs(halves - exact) <= most + SLACK * max(1, exact), (halves, exact, most)


@HALVES
@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('name', ANGULAR)
def test_gradient_in_half_precision(name, kind, dtype):
    """In norm, per vector, within 6 u of 1 / (V n), the most that a gradient of V vectors can be.

    The gradient is sin / (V n) long, in the plane of the two directions: one u for n, two for the
    turn of that plane by the student's direction, one by the teacher's, one for the rounding of the
    result; the sixth for the squares of these.
    """
    for seed in range(4):
        student, teacher = pair(kind, seed)
        n = norms(name, student)
        scale = n.numel()  # as a loss scale does: without it, float16's gradient may underflow
        loss = raw_loss(name, scale)
        exact = gradient_of(loss, student, teacher)
        halves = gradient_of(loss, student.to(dtype), teacher.to(dtype))
        assert halves.dtype == dtype
        error = norms(name, halves.double() - exact)
        assert (error * n).max() < 6 * UNIT[dtype]


@HALVES
@pytest.mark.parametrize('kind', KINDS)
def test_fgd_in_half_precision(kind, dtype):
    unit, temperature = UNIT[dtype], 0.5
    student, teacher = pair(kind)
    context = pair(kind, seed=1)
    samples = fgd_samples([[[3.0, 5.0, 30.0, 21.0]], []], [(40, 56)] * 2, (40, 56))
    loss = FGDLoss(temperature=temperature)
    exact = loss.terms((student, context[0]), (teacher, context[1]), samples)
    halves = loss.terms(
        tuple(x.to(dtype) for x in (student, context[0])),
        tuple(x.to(dtype) for x in (teacher, context[1])),
        samples,
    )
    # the factor of one attention; a feature's weight has two
    largest = max(x.abs().mean(d).max().item() for x in (student, teacher) for d in (1, (2, 3)))
    factor = math.exp(2 * unit * largest / temperature)
    size = student.abs() + teacher.abs()
    moved = (teacher - student).square() + of_squares(teacher - student, size, unit)
    widened = loss.terms(
        # features whose squared differences are the largest that rounding allows
        (teacher - moved.sqrt(), context[0]),
        (teacher, context[1]),
        samples,
    )
    total = 2 * (student[0, 0].numel() + student.shape[1])  # of both attentions of both sides
    context_size = context[0].abs() + context[1].abs()
    most = dict(
        foreground=factor**2 * widened.foreground - exact.foreground,
        background=factor**2 * widened.background - exact.background,
        attention=(factor - 1) * total,
        context=of_squares(context[1] - context[0], context_size, unit).sum() / len(student),
    )
    for name in TERMS:
        one, other = getattr(halves, name).item(), getattr(exact, name).item()
        assert abs(one - other) <= float(most[name]) + SLACK * max(1, other), name


@pytest.mark.parametrize('name', RAW)
@pytest.mark.parametrize('kind', KINDS)
def test_float32(name, kind):
    """The same rules; u is 2^-24, and what sums of this length lose is more: 1e-5."""
    student, teacher = pair(kind)
    exact, gradient = value_and_gradient(lambda s: raw_loss(name)(s, teacher), student)
    value, single = value_and_gradient(
        lambda s: raw_loss(name)(s, teacher.float()), student.float()
    )
    assert abs(value.item() - exact.item()) <= SLACK * max(1, exact.item())
    assert (single.double() - gradient).abs().max() <= SLACK * max(1, gradient.abs().max().item())


# From 1e-20 to 1e4. A vector shorter than eps = 1e-8 has no direction.

EXPONENTS = range(-20, 5)


@pytest.mark.parametrize('other', [-20, -8, 0, 4])
@pytest.mark.parametrize('exponent', EXPONENTS)
@pytest.mark.parametrize('name', ANGULAR)
def test_angular_of_small_and_large_values(name, exponent, other):
    student, teacher = pair('independent')
    loss = raw_loss(name)
    exact, gradient = value_and_gradient(lambda s: loss(s, teacher), student)
    small, large = student * 10.0**exponent, teacher * 10.0**other
    directed = all((norms(name, x) >= 1e-8).all() for x in (small, large))
    undirected = all((norms(name, x) < 1e-8).all() for x in (small, large)[: 2 - (other >= -6)])
    value, given = value_and_gradient(lambda s: loss(s, large.float()), small.float())
    assert given.isfinite().all() and 0 <= value <= 2
    if directed:
        assert value.item() == pytest.approx(exact.item(), rel=1e-5)
        error = (given.double() * 10.0**exponent - gradient).abs().max()
        assert error < 1e-5 * gradient.abs().max()
    elif undirected:
        assert value == 1 and (given == 0).all()


@pytest.mark.parametrize('exponent', EXPONENTS)
@pytest.mark.parametrize('name', ['NaiveFeatureLoss', 'MagnitudeLoss'])
def test_squares_of_small_and_large_values(name, exponent):
    """Exact down to where squares leave float32, 1e-19; the gradient then is too small to matter.

    float32's least normal number is 1e-38. What is below it loses digits, and all of them below 1e-45.
    """
    student, teacher = (x * 10.0**exponent for x in pair('independent'))
    exact, gradient = value_and_gradient(lambda s: raw_loss(name)(s, teacher), student)
    value, given = value_and_gradient(lambda s: raw_loss(name)(s, teacher.float()), student.float())
    assert value.item() == pytest.approx(exact.item(), rel=1e-5, abs=1e-38)
    error = (given.double() - gradient).abs().max().item()
    assert error <= 1e-5 * gradient.abs().max().item() + (exponent < -17) * 1e-20


@pytest.mark.parametrize('exponent', EXPONENTS)
def test_nfd_of_small_and_large_values(exponent):
    """The variance has eps = 1e-8 added: it counts in full from 1e-2, and fades below 1e-4."""
    student, teacher = (x * 10.0**exponent for x in pair('independent'))
    exact, gradient = value_and_gradient(lambda s: raw_loss('NFDLoss')(s, teacher), student)
    value, given = value_and_gradient(
        lambda s: raw_loss('NFDLoss')(s, teacher.float()), student.float()
    )
    assert value.item() == pytest.approx(exact.item(), rel=1e-5, abs=1e-30)
    assert (given.double() - gradient).abs().max() <= 1e-5 * gradient.abs().max() + 1e-20
    plain = raw_loss('NFDLoss')(*pair('independent')).item()
    if exponent >= -2:
        assert value.item() == pytest.approx(plain, rel=1e-3)
    elif exponent <= -6:
        assert value.item() < 1e-3 * plain


@pytest.mark.parametrize('exponent', EXPONENTS)
def test_fgd_of_small_and_large_values(exponent):
    sides = [tuple(x * 10.0**exponent for x in pair('independent', seed)) for seed in (0, 1)]
    samples = fgd_samples([[[3.0, 5.0, 30.0, 21.0]], []], [(40, 56)] * 2, (40, 56))
    exact = FGDLoss().terms(*sides, samples)
    given = FGDLoss().terms(*(tuple(x.float() for x in side) for side in sides), samples)
    largest = max(x.abs().mean(d).max().item() for x, _ in sides for d in (1, (2, 3)))
    # exponents of the softmax are mean |F| / T: their rounding counts in full
    rel = 1e-5 + 2**-22 * largest / 0.5
    for name in TERMS:
        one, other = getattr(given, name).item(), getattr(exact, name).item()
        # attention differs by less than its own last digit where the features hardly do
        assert math.isfinite(one)
        assert one == pytest.approx(other, rel=rel, abs=1e-4 if name == 'attention' else 1e-38)


@pytest.mark.parametrize('exponent', EXPONENTS)
def test_geometry_of_small_and_large_values(exponent):
    """What FeatureGeometryHook logs: from 1e-17 the angle is right, below it may be anything legal."""
    student, teacher = pair('independent')
    exact = functional.decompose(student, teacher)
    scaled = (x.mul(10.0**exponent).float() for x in (student, teacher))
    given = functional.decompose(*scaled)
    assert all(entry.isfinite().all() for entry in given)
    assert given.cosine.abs().max() <= 1
    if exponent >= -17:
        torch.testing.assert_close(given.cosine.double(), exact.cosine, rtol=1e-4, atol=1e-6)
        expected = exact.student_norm * 10.0**exponent
        torch.testing.assert_close(given.student_norm.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize('name', ANGULAR)
def test_values_below_the_range_have_no_direction(name, dtype):
    """float16 rounds 1e-20 to 0, bfloat16 keeps it: without direction, both."""
    student, teacher = pair('independent')
    value, gradient = value_and_gradient(
        lambda s: raw_loss(name)(s, teacher.to(dtype)), (student * 1e-20).to(dtype)
    )
    assert value == 1 and (gradient == 0).all()


def test_gradient_beyond_float16_is_infinite_and_not_wrong():
    """A vector that is as short as float16 allows has a gradient of 1 / n: loss scaling sees an inf."""
    student = torch.zeros(1, 1, 2, 2, dtype=torch.float16)
    student[..., 0, 0] = 2.0**-24
    teacher = torch.ones(1, 1, 2, 2, dtype=torch.float16)
    loss = raw_loss('LADLoss')
    value, gradient = value_and_gradient(lambda s: loss(s, teacher), student)
    assert value.item() == pytest.approx(0.5, rel=1e-5)
    assert gradient[..., 0, 0] == 0 and torch.isinf(gradient.flatten()[1:]).all()
    _, single = value_and_gradient(lambda s: loss(s, teacher), student.float())
    expected = torch.tensor([0.0, -1, -1, -1]) * 2.0**24 / 2
    torch.testing.assert_close(single.flatten(), expected)
