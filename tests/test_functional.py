"""Every function of `rawkd_mm.functional` against float64 formulas written out in numpy.

The references work on the rounded inputs, so a tolerance is about the computation alone: the value
is reduced in float32 (1e-5) or float64 (1e-12) whatever the inputs are, and the gradient is rounded
once to the student's dtype.
"""

import math

import numpy as np
import pytest
import torch

from rawkd_mm import functional, reductions

ANGULAR = ('layer', 'channel', 'pixel')
NAMES = (*ANGULAR, 'naive', 'magnitude', 'normalized', 'kl')
SHAPES = ((1, 1, 1, 1), (2, 3), (2, 3, 5), (1, 7, 1, 9), (3, 1, 4, 4), (2, 3, 2, 2, 2))
HALF, BRAIN, SINGLE, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64
DTYPES = (
    (HALF, HALF),
    (BRAIN, BRAIN),
    (SINGLE, SINGLE),
    (DOUBLE, DOUBLE),
    (HALF, SINGLE),
    (SINGLE, HALF),
    (BRAIN, HALF),
    (SINGLE, DOUBLE),
    (DOUBLE, HALF),
)
# unit in the last place of the dtype that the gradient is rounded to, and some float32 arithmetic
GRADIENT_RTOL = {HALF: 1e-3, BRAIN: 8e-3, SINGLE: 1e-5, DOUBLE: 1e-12}

EPS = 1e-8


def call(name, student, teacher):
    if name in ANGULAR:
        return functional.angular_distance(student, teacher, name)
    if name == 'kl':
        return functional.kl_divergence(student, teacher)
    return getattr(functional, f'{name}_distance')(student, teacher)


def to_numpy(tensor):
    return tensor.detach().double().numpy()


def rows(array, granularity):
    """Give the vectors of a granularity as the rows of a matrix."""
    batch, channels = array.shape[:2]
    if granularity == 'layer':
        return array.reshape(batch, -1)
    if granularity == 'channel':
        return array.reshape(batch * channels, -1)
    return np.swapaxes(array.reshape(batch, channels, -1), 1, 2).reshape(-1, channels)


def from_rows(matrix, granularity, shape):
    """Undo `rows`."""
    if granularity != 'pixel':
        return matrix.reshape(shape)
    batch, channels = shape[:2]
    return np.swapaxes(matrix.reshape(batch, -1, channels), 1, 2).reshape(shape)


def reference_angular(student, teacher, granularity, eps=EPS):
    """Mean of 1 - cos, and its gradient (c / n^2 s - t / (nm)) / V, one vector after the other."""
    pairs = list(zip(rows(student, granularity), rows(teacher, granularity), strict=True))
    value, gradient = 0.0, []
    for s, t in pairs:
        n, m = math.sqrt(s @ s), math.sqrt(t @ t)
        if n < eps or m < eps:
            value += 1
            gradient.append(np.zeros_like(s))
            continue
        cosine = (s @ t) / (n * m)
        value += 1 - cosine
        gradient.append((cosine * s / n**2 - t / (n * m)) / len(pairs))
    return value / len(pairs), from_rows(np.stack(gradient), granularity, student.shape)


def reference_naive(student, teacher):
    return np.mean((teacher - student) ** 2), 2 * (student - teacher) / student.size


def reference_magnitude(student, teacher):
    value, gradient = 0.0, np.zeros_like(student)
    batch, size = len(student), student[0].size
    for i in range(batch):
        n, m = math.sqrt((student[i] ** 2).sum()), math.sqrt((teacher[i] ** 2).sum())
        value += (m - n) ** 2 / size / batch
        if n > 0:
            gradient[i] = 2 * (n - m) / n * student[i] / size / batch
    return value, gradient


def reference_normalized(student, teacher, eps=EPS):
    value, gradient = 0.0, []
    for s, t in zip(rows(student, 'channel'), rows(teacher, 'channel'), strict=True):
        deviation = math.sqrt(s.var() + eps)
        x, y = (s - s.mean()) / deviation, (t - t.mean()) / math.sqrt(t.var() + eps)
        value += ((x - y) ** 2).sum() / student.size
        g = 2 * (x - y) / student.size
        gradient.append((g - g.mean() - x * (g * x).mean()) / deviation)
    return value, np.stack(gradient).reshape(student.shape)


def log_softmax(array, tau):
    """Over the channels; a single one is the score of the second of two classes."""
    if array.shape[1] == 1:
        array = np.concatenate([np.zeros_like(array), array], axis=1)
    scaled = array / tau - (array / tau).max(1, keepdims=True)
    return scaled - np.log(np.exp(scaled).sum(1, keepdims=True))


def reference_kl(student, teacher, tau=1.0):
    log_s, log_t = (log_softmax(x, tau) for x in (student, teacher))
    positions = student.size / student.shape[1]
    value = tau**2 * (np.exp(log_t) * (log_t - log_s)).sum() / positions
    gradient = tau * (np.exp(log_s) - np.exp(log_t)) / positions
    return value, gradient[:, -student.shape[1] :]


def reference(name, student, teacher):
    """Value and gradient with respect to the student, in float64."""
    student, teacher = to_numpy(student), to_numpy(teacher)
    if name in ANGULAR:
        return reference_angular(student, teacher, name)
    return globals()[f'reference_{name}'](student, teacher)


def features(shape, dtype=SINGLE, teacher_dtype=None, seed=0):
    """A pair with values in +-[0.5, 2], where no norm is small; the student requires gradient."""
    generator = torch.Generator().manual_seed(seed)

    def draw():
        size = torch.rand(shape, generator=generator, dtype=DOUBLE) * 1.5 + 0.5
        return size * (torch.randint(0, 2, shape, generator=generator) * 2 - 1)

    student, teacher = draw().to(dtype), draw().to(teacher_dtype or dtype)
    return student.requires_grad_(), teacher


def tolerance(dtype):
    return 1e-12 if dtype == DOUBLE else 1e-5


def assert_same(name, student, teacher, upstream=1.0):
    """Compare value and gradient of a function with the reference."""
    out = call(name, student, teacher)
    value, gradient = reference(name, student, teacher)
    expected = DOUBLE if DOUBLE in (student.dtype, teacher.dtype) else SINGLE
    assert out.dtype == expected and out.shape == ()
    assert out.item() == pytest.approx(value, rel=tolerance(expected), abs=tolerance(expected))

    (grad,) = torch.autograd.grad(out * upstream, student)
    assert grad.dtype == student.dtype and grad.shape == student.shape
    # Where terms cancel, what is left is their rounding: relative to the terms, not the difference.
    atol = tolerance(expected) * abs(upstream) * max(1, value) / len(rows(gradient, 'pixel'))
    rtol = max(GRADIENT_RTOL[student.dtype], tolerance(expected))
    np.testing.assert_allclose(to_numpy(grad), upstream * gradient, rtol=rtol, atol=atol)


def has_positions(name, shape):
    return name != 'normalized' or len(shape) > 2


@pytest.mark.parametrize('dtypes', DTYPES, ids=str)
@pytest.mark.parametrize(
    ('name', 'shape'), [(n, s) for n in NAMES for s in SHAPES if has_positions(n, s)], ids=str
)
def test_value_and_gradient(name, shape, dtypes):
    student, teacher = features(shape, *dtypes)
    assert_same(name, student, teacher, upstream=-4.5)


@pytest.fixture
def plain_rows(monkeypatch):
    """Let the CPU reduce as a GPU does; count how often."""
    calls = []

    def reduce(*args):
        calls.append(args)
        return reductions.reduce_rows(*args)

    monkeypatch.setattr(reductions, 'reduce_rows_in_blocks', reduce)
    return calls


@pytest.mark.parametrize('dtypes', DTYPES, ids=str)
@pytest.mark.parametrize('name', ('layer', 'channel'))
@pytest.mark.parametrize('shape', [s for s in SHAPES if len(s) > 2], ids=str)
def test_the_way_of_a_gpu(name, shape, dtypes, plain_rows):
    student, teacher = features(shape, *dtypes)
    assert_same(name, student, teacher, upstream=-4.5)
    assert plain_rows


@pytest.mark.parametrize('name', ANGULAR)
@pytest.mark.parametrize('special', [0.0, math.inf, math.nan])
def test_the_way_of_a_gpu_with_special_values(name, special, plain_rows):
    student, teacher = features((2, 3, 4, 4))
    teacher[0, 1] = special
    value = call(name, student, teacher)
    (grad,) = torch.autograd.grad(value, student)
    if special == 0.0:
        expected, gradient = reference(name, student, teacher)
        assert value.item() == pytest.approx(expected, rel=1e-5)
        np.testing.assert_allclose(to_numpy(grad), gradient, rtol=1e-5, atol=1e-7)
    else:
        assert value.isnan() and grad.isnan().any()


@pytest.mark.parametrize('rows', [1, 7, 4096])
@pytest.mark.parametrize('length', [1, 33, 70_000])
def test_rows_in_blocks_are_those_at_once(rows, length):
    """Several blocks, a last one that is not full, and rows longer than a block's share."""
    if rows * length > 5_000_000:
        rows = 71
    generator = torch.Generator().manual_seed(rows + length)
    pair = [torch.randn((rows, length), generator=generator) for _ in range(2)]
    exact = reductions.reduce_rows(*(x.double() for x in pair), DOUBLE)
    for given, expected in zip(reductions.reduce_rows_in_blocks(*pair, SINGLE), exact):
        atol = 1e-5 * length**0.5
        torch.testing.assert_close(given.double(), expected, rtol=1e-5, atol=atol)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('shape', [(2, 3, 4), (2, 3, 2, 2)], ids=str)
def test_gradcheck(name, shape):
    student, teacher = features(shape, DOUBLE)
    assert torch.autograd.gradcheck(lambda s: 7 * call(name, s, teacher), student)


@pytest.mark.parametrize('name', NAMES)
def test_exponents(name):
    """Every value is its own power of ten from 1e-4 to 1e4."""
    student, teacher = features((2, 4, 3, 5))
    student = (student.detach() * torch.logspace(-4, 4, 120).view(2, 4, 3, 5)).requires_grad_()
    teacher = teacher * torch.logspace(4, -4, 120).view(2, 4, 3, 5)
    value, gradient = reference(name, student, teacher)
    out = call(name, student, teacher)
    (grad,) = torch.autograd.grad(out, student)
    assert out.item() == pytest.approx(value, rel=1e-5)
    np.testing.assert_allclose(to_numpy(grad), gradient, rtol=1e-3, atol=1e-5 * abs(gradient).max())


@pytest.mark.parametrize('name', ANGULAR)
@pytest.mark.parametrize('scale', [1e-4, 1.0, 1e4])
def test_angular_ignores_scale(name, scale):
    student, teacher = features((2, 4, 3, 5))
    expected = reference(name, student, teacher)[0]
    for s, t in ((student * scale, teacher), (student, teacher * scale)):
        assert call(name, s, t).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('dtype', [HALF, BRAIN, SINGLE, DOUBLE], ids=str)
@pytest.mark.parametrize('name', ANGULAR)
def test_identical_and_opposite(name, dtype):
    student, _ = features((2, 4, 3, 5), dtype)
    same, opposite = call(name, student, student), call(name, student, -student)
    assert 0 <= same <= 1e-6 and 2 - 1e-6 <= opposite <= 2
    for out in (same, opposite):
        (grad,) = torch.autograd.grad(out, student)
        assert grad.abs().max() < 1e-6


@pytest.mark.parametrize('name', ('naive', 'magnitude', 'normalized', 'kl'))
def test_identical(name):
    student, _ = features((2, 4, 3, 5))
    assert call(name, student, student) == 0


def test_normalized_is_twice_the_angle_of_centred_channels():
    student, teacher = features((2, 4, 3, 5), DOUBLE)
    centred = [x - x.mean((2, 3), keepdim=True) for x in (student, teacher)]
    angle = reference('channel', *centred)[0]
    assert call('normalized', student, teacher).item() == pytest.approx(2 * angle, rel=1e-6)


# Memory layout, precision and compilation


LAYOUTS = {
    'channels_last': lambda x: x.contiguous(memory_format=torch.channels_last),
    'transposed': lambda x: x.transpose(1, 3).contiguous().transpose(1, 3),
    'strided': lambda x: torch.stack([x, x], dim=-1)[..., 0],
    'expanded': lambda x: x[:, :1].expand(x.shape),
}


@pytest.mark.parametrize('dtype', [HALF, SINGLE], ids=str)
@pytest.mark.parametrize('side', ['student', 'teacher', 'both'])
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('name', NAMES)
def test_layout(name, layout, side, dtype):
    student, teacher = features((2, 6, 4, 5), dtype)
    change = LAYOUTS[layout]
    if side != 'teacher':
        student = change(student.detach()).requires_grad_()
        assert not student.is_contiguous()
    if side != 'student':
        teacher = change(teacher)
    assert_same(name, student, teacher, upstream=3.0)


@pytest.mark.parametrize('dtype', [HALF, SINGLE], ids=str)
@pytest.mark.parametrize('teacher_format', [torch.channels_last, torch.contiguous_format], ids=str)
@pytest.mark.parametrize('name', ANGULAR)
def test_gradient_keeps_memory_format(name, teacher_format, dtype):
    student, teacher = features((2, 6, 4, 5), dtype)
    student = student.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    teacher = teacher.contiguous(memory_format=teacher_format)
    (grad,) = torch.autograd.grad(call(name, student, teacher), student)
    assert grad.stride() == student.stride() and grad.dtype == dtype


@pytest.mark.parametrize('name', NAMES)
def test_teacher_gets_no_gradient(name):
    student, teacher = features((2, 3, 4, 5))
    teacher.requires_grad_()
    call(name, student, teacher).backward()
    assert teacher.grad is None and student.grad is not None
    assert not call(name, student.detach(), teacher).requires_grad


@pytest.mark.parametrize('name', NAMES)
def test_autocast(name):
    """A bfloat16 feature from a layer under autocast; the loss itself stays in float32."""
    torch.manual_seed(0)
    layer, images = torch.nn.Conv2d(3, 4, 1), torch.randn(2, 3, 4, 5)
    teacher = torch.randn(2, 4, 4, 5)
    with torch.autocast('cpu', dtype=BRAIN):
        student = layer(images)
        student.retain_grad()
        assert student.dtype == BRAIN
        out = call(name, student, teacher)
        out.backward()
    value, gradient = reference(name, student, teacher)
    assert out.dtype == SINGLE and out.item() == pytest.approx(value, rel=1e-5)
    atol = GRADIENT_RTOL[BRAIN] * abs(gradient).max()
    np.testing.assert_allclose(to_numpy(student.grad), gradient, rtol=8e-3, atol=atol)
    assert layer.weight.grad.dtype == SINGLE and layer.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ('name', 'dtype', 'backend'),
    [
        ('channel', SINGLE, 'inductor'),
        ('layer', HALF, 'aot_eager'),
        ('pixel', BRAIN, 'aot_eager'),
        ('naive', SINGLE, 'aot_eager'),
        ('magnitude', SINGLE, 'aot_eager'),
        ('normalized', SINGLE, 'aot_eager'),
        ('kl', HALF, 'aot_eager'),
    ],
    ids=str,
)
def test_compile(name, dtype, backend):
    student, teacher = features((2, 6, 4, 5), dtype)
    # torch 2.1 runs an autograd.Function whose arguments are not all tensors outside the graph.
    whole = name not in ('channel', 'layer', 'pixel') or not torch.__version__.startswith('2.1.')
    compiled = torch.compile(
        lambda s, t: 3.0 * call(name, s, t), fullgraph=whole, backend=backend, dynamic=False
    )
    out, eager = compiled(student, teacher), 3.0 * call(name, student, teacher)
    assert out.item() == pytest.approx(eager.item(), rel=1e-5)
    (grad,) = torch.autograd.grad(out * -2.5, student)
    (expected,) = torch.autograd.grad(eager * -2.5, student)
    assert grad.dtype == dtype
    torch.testing.assert_close(grad, expected, rtol=GRADIENT_RTOL[dtype], atol=1e-6)


# What is kept and what is waited for


def saved_for_backward(function):
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        out = function()
    return out, saved


@pytest.mark.parametrize('dtype', [HALF, SINGLE], ids=str)
@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
@pytest.mark.parametrize('name', ANGULAR)
def test_angular_saves_only_inputs_and_scalars(name, layout, dtype):
    shape = (2, 6, 4, 5)
    student, teacher = features(shape, dtype)
    if layout == 'channels_last':
        student = LAYOUTS[layout](student.detach()).requires_grad_()
    out, saved = saved_for_backward(lambda: call(name, student, teacher))
    assert out.requires_grad
    maps = [x for x in saved if x.numel() == student.numel()]
    assert sorted(x.data_ptr() for x in maps) == sorted([student.data_ptr(), teacher.data_ptr()])
    assert all(x.dtype == dtype for x in maps)
    vectors = len(rows(to_numpy(student), name))
    assert {x.numel() for x in saved if x.numel() != student.numel()} == {vectors}


def test_angular_saves_no_copy_without_positions():
    """(B, C) features get a dimension for the granularity 'channel': a view, not a copy."""
    student, teacher = features((4, 6))
    _, saved = saved_for_backward(lambda: call('layer', student, teacher))
    assert sorted(x.numel() for x in saved if x.numel() > 4) == [24, 24]
    _, saved = saved_for_backward(lambda: call('channel', student, teacher))
    pointers = [x.data_ptr() for x in saved]
    assert pointers.count(student.data_ptr()) == 1 and pointers.count(teacher.data_ptr()) == 1


# A meta tensor has no values: whatever waits for one (`.item()`, `bool()`, `.cpu()`) raises.


@pytest.mark.parametrize(
    'read',
    [torch.Tensor.item, torch.Tensor.cpu, torch.Tensor.tolist, lambda x: bool(x > 0)],
    ids=['item', 'cpu', 'tolist', 'bool'],
)
def test_meta_tensors_find_synchronisation(read):
    with pytest.raises((RuntimeError, NotImplementedError)):
        read(torch.ones((), device='meta'))


@pytest.mark.parametrize('dtype', [HALF, SINGLE], ids=str)
@pytest.mark.parametrize('name', NAMES)
def test_no_synchronisation(name, dtype):
    student = torch.ones(2, 3, 4, 5, device='meta', dtype=dtype, requires_grad=True)
    out = call(name, student, torch.ones_like(student))
    (grad,) = torch.autograd.grad(out * 3, student)
    assert grad.shape == student.shape and grad.dtype == dtype


def test_decompose_does_not_synchronise():
    student = torch.ones(2, 3, 4, 5, device='meta', requires_grad=True)
    geometry = functional.decompose(student, torch.ones_like(student))
    assert all(value.shape == (2,) for value in geometry)
    sum(value.sum() for value in geometry).backward()
    assert student.grad.shape == student.shape


@pytest.mark.parametrize('name', ANGULAR)
def test_double_backward_raises(name):
    student, teacher = features((2, 3, 4, 5), DOUBLE)
    # beside a term that is twice differentiable, so that the whole has a graph
    loss = call(name, student, teacher) + student.square().sum()
    with pytest.raises(RuntimeError, match='differentia'):
        (grad,) = torch.autograd.grad(loss, student, create_graph=True)
        grad.square().sum().backward()


# Extremes


def test_large_half_precision_maps_do_not_overflow():
    """512x128x256 values around 10: their squares sum up to 1.7e9, far above float16's 65504."""
    generator = torch.Generator().manual_seed(0)
    maps = [
        torch.empty(1, 512, 128, 256).normal_(10, 3, generator=generator).half() for _ in range(2)
    ]
    student, teacher = maps[0].requires_grad_(), maps[1]
    arrays = [to_numpy(x) for x in maps]
    s, t = (x.reshape(512, -1) for x in arrays)
    for name in NAMES:
        out = call(name, student, teacher)
        # the loop over the pixels in `reference` is slow here
        if name == 'pixel':
            dot, n, m = (np.einsum('cp,cp->p', a, b) for a, b in ((s, t), (s, s), (t, t)))
            value = (1 - dot / np.sqrt(n * m)).mean()
        elif name in ANGULAR:
            value = reference_angular(*arrays, name)[0]
        else:
            value = globals()[f'reference_{name}'](*arrays)[0]
        # MD is a small difference of norms of 4e4, so the rounding of these shows
        rel = 1e-2 if name == 'magnitude' else 1e-4
        assert out.item() == pytest.approx(value, rel=rel, abs=0), name
    # The gradient needs loss scaling to be seen in float16 at all: 1 / (V n) is 1e-5 and less.
    del s, t
    (grad,) = torch.autograd.grad(call('layer', student, teacher) * 65536, student)
    expected = reference_angular(*arrays, 'layer')[1] * 65536
    assert abs(to_numpy(grad) - expected).max() < 1e-3 * abs(expected).max()


@pytest.mark.parametrize('dtype', [HALF, BRAIN, SINGLE, DOUBLE], ids=str)
@pytest.mark.parametrize('zero', ['student', 'teacher', 'both'])
@pytest.mark.parametrize('name', NAMES)
def test_zero_features(name, zero, dtype):
    student, teacher = features((2, 3, 4, 5), dtype)
    if zero != 'teacher':
        student = torch.zeros_like(student).requires_grad_()
    if zero != 'student':
        teacher = torch.zeros_like(teacher)
    out = call(name, student, teacher)
    (grad,) = torch.autograd.grad(out, student)
    assert grad.isfinite().all()
    if name in ANGULAR:
        assert out == 1 and (grad == 0).all()
    elif name != 'normalized':  # whose gradient is large, 1 / sqrt(eps), at a constant channel
        assert_same(name, student, teacher)


@pytest.mark.parametrize('name', ANGULAR)
def test_zero_vectors_among_others(name):
    student, teacher = features((2, 3, 4, 5))
    student = student.detach().clone()
    student[0, 1] = 0
    student[1, :, 2, 3] = 0
    teacher[1, 2] = 0
    assert_same(name, student.requires_grad_(), teacher, upstream=2.0)


@pytest.mark.parametrize('side', ['student', 'teacher'])
@pytest.mark.parametrize(('norm', 'directed'), [(0.9e-8, False), (1.1e-8, True), (1e-6, True)])
def test_norm_around_eps(norm, directed, side):
    short = torch.tensor([[[0.6, 0.8]]]) * norm
    other = torch.tensor([[[1.0, 0.0]]])
    student, teacher = (short, other) if side == 'student' else (other, short)
    student = student.clone().requires_grad_()
    out = functional.angular_distance(student, teacher, 'layer')
    (grad,) = torch.autograd.grad(out, student)
    assert out.item() == pytest.approx(0.4 if directed else 1.0, rel=1e-5)
    assert grad.isfinite().all() and (grad != 0).any() == directed
    value, gradient = reference('layer', student, teacher)
    np.testing.assert_allclose(to_numpy(grad), gradient, rtol=1e-4, atol=1e-6 / norm * directed)


def test_eps_is_a_norm():
    student, teacher = features((2, 3, 4, 5))
    small, smaller, large = (
        functional.angular_distance(student, teacher, 'channel', eps) for eps in (1e-3, 1e-8, 1e3)
    )
    assert small == smaller and large == 1


BAD = {'nan': math.nan, 'inf': math.inf, '-inf': -math.inf}


def bad_pair(bad, side, other):
    """A feature with one bad value beside another that may not hide it."""
    spoilt, clean = features((2, 3, 4, 5), seed=1)
    spoilt = spoilt.detach().clone()
    spoilt[1, 2, 3, 1] = BAD[bad]
    clean = {
        'random': clean,
        'zero': torch.zeros_like(clean),
        'zero there': clean.clone().index_fill_(2, torch.tensor([3]), 0),
        'itself': spoilt.clone(),
    }[other]
    return (spoilt, clean) if side == 'student' else (clean, spoilt)


@pytest.mark.parametrize('other', ['random', 'zero', 'zero there', 'itself'])
@pytest.mark.parametrize('side', ['student', 'teacher'])
@pytest.mark.parametrize('bad', BAD)
@pytest.mark.parametrize('dtype', [HALF, SINGLE], ids=str)
@pytest.mark.parametrize('name', NAMES)
def test_bad_values_are_not_hidden(name, dtype, bad, side, other):
    student, teacher = (x.to(dtype) for x in bad_pair(bad, side, other))
    assert not call(name, student, teacher).isfinite()


@pytest.mark.parametrize('other', ['random', 'zero', 'zero there', 'itself'])
@pytest.mark.parametrize('side', ['student', 'teacher'])
@pytest.mark.parametrize('bad', BAD)
def test_decompose_does_not_hide_bad_values(bad, side, other):
    geometry = functional.decompose(*bad_pair(bad, side, other))
    spoilt, clean = ('student_norm', 'teacher_norm')[:: 1 if side == 'student' else -1]
    for name in (spoilt, 'cosine', 'coupling', 'magnitude_term', 'angular_term'):
        entry = getattr(geometry, name)
        assert not entry[1].isfinite(), name
        # the other image has nothing to do with it
        assert entry[0].isfinite(), name
    if other != 'itself':
        assert getattr(geometry, clean).isfinite().all()


@pytest.mark.parametrize(
    ('name', 'compiled'), [*((name, False) for name in ANGULAR), ('layer', True)]
)
def test_a_norm_that_overflows_is_no_angle(name, compiled):
    """Generated code leaves out what is multiplied by 0, infinite or not."""

    def compute(student, teacher):
        return call(name, student, teacher)

    if compiled:
        compute = torch.compile(compute, dynamic=False)
    student, teacher = features((2, 6, 4, 5))
    assert compute(student, teacher).isfinite()
    for factors in ((1e25, 1), (1, 1e25)):
        s, t = (x.detach() * factor for x, factor in zip((student, teacher), factors))
        assert s.isfinite().all() and t.isfinite().all()
        assert not compute(s.requires_grad_(), t).isfinite()


# decompose


def reference_decompose(student, teacher):
    result = []
    for s, t in zip(rows(student, 'layer'), rows(teacher, 'layer'), strict=True):
        n, m = math.sqrt(s @ s), math.sqrt(t @ t)
        cosine = (s @ t) / (n * m) if n * m > 0 else 0.0
        # |t - s|^2 - (m - n)^2 in a form that does not cancel
        angular = 2 * m * n * (((s / n - t / m) ** 2).sum() / 2) / s.size if n * m > 0 else 0.0
        result.append((n, m, cosine, m * n / s.size, (m - n) ** 2 / s.size, angular))
    return np.array(result).T


@pytest.mark.parametrize('dtypes', DTYPES, ids=str)
@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_decompose(shape, dtypes):
    student, teacher = features(shape, *dtypes)
    geometry = functional.decompose(student, teacher)
    expected = reference_decompose(to_numpy(student), to_numpy(teacher))
    rtol = tolerance(DOUBLE if DOUBLE in dtypes else SINGLE)
    for entry, values in zip(geometry, expected, strict=True):
        assert entry.shape == shape[:1]
        assert entry.dtype == (DOUBLE if DOUBLE in dtypes else SINGLE)
        np.testing.assert_allclose(to_numpy(entry), values, rtol=rtol, atol=rtol)


def test_decompose_names():
    geometry = functional.decompose(torch.tensor([[3.0, 4.0]]), torch.tensor([[8.0, 6.0]]))
    expected = dict(
        student_norm=5.0,
        teacher_norm=10.0,
        cosine=48 / 50,
        coupling=25.0,
        magnitude_term=12.5,
        angular_term=2.0,
    )
    assert {k: v.item() for k, v in geometry._asdict().items()} == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('dtype', [HALF, SINGLE, DOUBLE], ids=str)
def test_decompose_adds_up_to_naive(dtype):
    student, teacher = features((3, 4, 5, 6), dtype)
    student = student * torch.tensor([0.01, 1, 100], dtype=dtype).view(3, 1, 1, 1)
    geometry = functional.decompose(student, teacher)
    total = (geometry.magnitude_term + geometry.angular_term).mean()
    naive = functional.naive_distance(student, teacher)
    assert total.item() == pytest.approx(naive.item(), rel=tolerance(dtype))


@pytest.mark.parametrize('scale', [1e-4, 1.0, 1e4])
def test_decompose_of_nearly_parallel_features(scale):
    """1 - cos is 5e-9 here, a tenth of float32's last digit of 1."""
    student, noise = features((2, 8, 16, 16), seed=3)
    student = student.detach() * scale
    teacher = student * (1 + 1e-4 * noise)
    expected = reference_decompose(to_numpy(student), to_numpy(teacher))
    angular = functional.decompose(student, teacher).angular_term
    np.testing.assert_allclose(to_numpy(angular), expected[-1], rtol=1e-3)


def test_decompose_gradient():
    student, teacher = features((2, 3, 2, 2), DOUBLE)
    assert torch.autograd.gradcheck(lambda s: tuple(functional.decompose(s, teacher)), student)
    teacher.requires_grad_()
    geometry = functional.decompose(student, teacher)
    sum(x.sum() for x in geometry).backward()
    assert student.grad is not None and teacher.grad is None
    assert not geometry.teacher_norm.requires_grad


@pytest.mark.parametrize('zero', ['student', 'teacher', 'both'])
def test_decompose_of_zero_features(zero):
    student, teacher = features((2, 3, 4, 5))
    if zero != 'teacher':
        student = torch.zeros_like(student).requires_grad_()
    if zero != 'student':
        teacher = torch.zeros_like(teacher)
    geometry = functional.decompose(student, teacher)
    assert (geometry.cosine == 0).all() and (geometry.angular_term == 0).all()
    naive = functional.naive_distance(student, teacher).item()
    assert geometry.magnitude_term.mean().item() == pytest.approx(naive, rel=1e-5)
    sum(x.sum() for x in geometry).backward()
    assert student.grad.isfinite().all()


# KL divergence


@pytest.mark.parametrize('tau', [0.25, 1, 4.0, 30.0])
@pytest.mark.parametrize('shape', [(3, 5), (2, 7, 3, 5), (2, 1, 3, 5)], ids=str)
@pytest.mark.parametrize('dtype', [HALF, BRAIN, SINGLE, DOUBLE], ids=str)
def test_kl_temperature(dtype, shape, tau):
    student, teacher = features(shape, dtype)
    out = functional.kl_divergence(student, teacher, tau)
    (grad,) = torch.autograd.grad(out * -3, student)
    value, gradient = reference_kl(to_numpy(student), to_numpy(teacher), tau)
    # at a high temperature what is left of the differences is multiplied by the square of it
    rel = tolerance(dtype) * max(1, tau)
    assert out.item() == pytest.approx(value, rel=rel)
    rtol = max(GRADIENT_RTOL[dtype], rel)
    np.testing.assert_allclose(to_numpy(grad), -3 * gradient, rtol=rtol, atol=rtol * 0.1)


@pytest.mark.parametrize('tau', [0.5, 2.0])
@pytest.mark.parametrize('shape', [(3, 5), (2, 7, 3, 5)], ids=str)
def test_kl_is_mmrazors_over_the_positions(shape, tau):
    from mmrazor.models.losses import KLDivergence

    student, teacher = features(shape, DOUBLE)
    theirs = KLDivergence(tau=tau)(student, teacher)
    ours = functional.kl_divergence(student, teacher, tau)
    positions = student[0, 0].numel()
    assert theirs.item() == pytest.approx(positions * ours.item(), rel=1e-12)
    pair = [torch.autograd.grad(out, student)[0] for out in (theirs, positions * ours)]
    torch.testing.assert_close(*pair, rtol=1e-10, atol=1e-14)


def test_kl_of_one_channel_is_that_of_two_bernoulli_distributions():
    student, teacher = features((2, 1, 4, 5), DOUBLE)
    p_s, p_t = (torch.sigmoid(x.detach()) for x in (student, teacher))
    two = [torch.distributions.Bernoulli(p) for p in (p_t, p_s)]
    expected = torch.distributions.kl_divergence(*two).mean().item()
    assert functional.kl_divergence(student, teacher).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(('dtype', 'large'), [(HALF, 65504.0), (BRAIN, 1e38), (SINGLE, 1e38)])
def test_kl_of_extreme_scores(dtype, large):
    student = torch.tensor([[large, -large], [large, -large], [0, 0]], dtype=dtype)
    teacher = torch.tensor([[large, -large], [-large, large], [large, 0]], dtype=dtype)
    student.requires_grad_()
    out = functional.kl_divergence(student, teacher)
    (grad,) = torch.autograd.grad(out, student)
    exact = 2 * to_numpy(student)[0, 0]
    assert out.item() == pytest.approx((exact + math.log(2)) / 3, rel=1e-5)
    expected = torch.tensor([[0, 0], [1, -1], [-0.5, 0.5]]) / 3
    torch.testing.assert_close(grad.float(), expected, rtol=1e-2, atol=0)


def test_kl_of_nearly_the_same_scores():
    """It is 5e-9, while the logarithms are rounded by 2e-7."""
    student, noise = features((2, 19, 16, 16), seed=3)
    student = student.detach()
    teacher = student + 1e-4 * noise
    expected = reference_kl(to_numpy(student), to_numpy(teacher))[0]
    out = functional.kl_divergence(student, teacher).item()
    assert out == pytest.approx(expected, rel=2e-2) and out > 0


@pytest.mark.parametrize('tau', [0, -1.0, math.nan, math.inf])
def test_bad_tau(tau):
    with pytest.raises(ValueError, match=f'tau must be positive and finite, got {tau}'):
        functional.kl_divergence(torch.ones(1, 2, 3), torch.ones(1, 2, 3), tau)


# What is refused

FUNCTIONS = (
    functional.angular_distance,
    functional.naive_distance,
    functional.magnitude_distance,
    functional.normalized_distance,
    functional.kl_divergence,
    functional.decompose,
)


@pytest.mark.parametrize('function', FUNCTIONS)
@pytest.mark.parametrize(
    ('student', 'teacher', 'error', 'words'),
    [
        ((2, 3, 4, 4), (2, 3, 4, 5), ValueError, ['(2, 3, 4, 4)', '(2, 3, 4, 5)']),
        # broadcasting would take these
        ((2, 3, 4, 4), (1, 3, 4, 4), ValueError, ['(2, 3, 4, 4)', '(1, 3, 4, 4)']),
        ((2, 3, 4, 4), (3, 4, 4), ValueError, ['(2, 3, 4, 4)', '(3, 4, 4)']),
        ((3,), (3,), ValueError, ['(3,)', 'batch']),
        ((), (), ValueError, ['()', 'batch']),
        ((0, 3, 4), (0, 3, 4), ValueError, ['(0, 3, 4)', 'empty']),
        ((2, 0, 4), (2, 0, 4), ValueError, ['(2, 0, 4)', 'empty']),
        ((2, 3, 0), (2, 3, 0), ValueError, ['(2, 3, 0)', 'empty']),
    ],
    ids=str,
)
def test_bad_shapes(function, student, teacher, error, words):
    with pytest.raises(error) as info:
        function(torch.ones(student), torch.ones(teacher))
    assert all(word in str(info.value) for word in words)


@pytest.mark.parametrize('function', FUNCTIONS)
@pytest.mark.parametrize('dtype', [torch.int64, torch.uint8, torch.bool, torch.complex64], ids=str)
@pytest.mark.parametrize('side', ['student', 'teacher'])
def test_bad_dtypes(function, dtype, side):
    pair = [torch.ones(1, 2, 3), torch.ones(1, 2, 3)]
    index = ['student', 'teacher'].index(side)
    pair[index] = pair[index].to(dtype)
    with pytest.raises(TypeError, match=f'{side}.*{dtype}'):
        function(*pair)


@pytest.mark.parametrize('granularity', ['image', '', None])
def test_unknown_granularity(granularity):
    with pytest.raises(ValueError) as info:
        functional.angular_distance(torch.ones(1, 2), torch.ones(1, 2), granularity)
    assert all(g in str(info.value) for g in (*ANGULAR, repr(granularity)))


@pytest.mark.parametrize('eps', [0, 0.0, -1e-8, math.nan])
@pytest.mark.parametrize('function', [functional.angular_distance, functional.normalized_distance])
def test_bad_eps(function, eps):
    with pytest.raises(ValueError, match=f'eps.*{eps}'):
        function(torch.ones(1, 2, 3), torch.ones(1, 2, 3), eps=eps)


def test_normalized_needs_positions():
    with pytest.raises(ValueError, match=r'positions.*\(2, 3\)'):
        functional.normalized_distance(torch.ones(2, 3), torch.ones(2, 3))
