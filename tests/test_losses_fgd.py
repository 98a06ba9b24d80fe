"""FGDLoss, term by term, against the formulas written as loops over cells in float64."""

import math

import numpy as np
import pytest
import torch
from fgd_reference import TERMS, fgd_samples, reference, reference_masks
from mmengine.structures import BaseDataElement, InstanceData

from rawkd_mm.connectors import GlobalContextConnector
from rawkd_mm.losses import FGDLoss
from rawkd_mm.losses.fgd_loss import box_masks
from rawkd_mm.registry import MODELS

# The features of a batch are 6 x 10 cells of 8 pixels: 48 x 80 pixels with the padding.
SIZE = (48, 80)
BOXES = {
    'one box': [[9.0, 17.0, 30.0, 39.5]],
    'edges of cells': [[8.0, 16.0, 24.0, 32.0]],
    'no box': [],
    'a small box within a large one': [[12.0, 9.0, 60.0, 36.0], [20.0, 12.0, 30.0, 20.0]],
    'overlap of three': [
        [0.0, 0.0, 40.0, 30.0],
        [33.0, 5.0, 79.0, 47.0],
        [35.0, 20.0, 45.0, 28.0],
    ],
    'twice the same': [[9.0, 17.0, 30.0, 39.5], [9.0, 17.0, 30.0, 39.5]],
    'no width': [[20.0, 10.0, 20.0, 30.0]],
    'no area, within a cell and on an edge': [[20.0, 10.0, 20.0, 10.0], [40.0, 24.0, 40.0, 24.0]],
    'no area beside a box': [[50.0, 20.0, 50.0, 20.0], [1.0, 1.0, 30.0, 30.0]],
    'beyond two borders': [[-30.0, -9.0, 20.0, 12.0], [60.0, 30.0, 95.0, 77.0]],
    'at the border': [[60.0, 30.0, 80.0, 48.0]],
    'everywhere': [[0.0, 0.0, 80.0, 48.0]],
    'outside': [[90.0, 10.0, 120.0, 20.0], [-50.0, -50.0, -40.0, -40.0], [1.0, 1.0, 9.0, 9.0]],
    'wrong way round': [[40.0, 30.0, 10.0, 10.0], [1.0, 1.0, 9.0, 9.0]],
}


def sides(batch=1, channels=4, size=(6, 10), seed=0, dtype=torch.float64):
    """Feature and context of student and teacher."""
    generator = torch.Generator().manual_seed(seed)
    made = [
        torch.randn(batch, channels, *size, generator=generator, dtype=torch.float64).to(dtype)
        for _ in range(4)
    ]
    return (made[0], made[1]), (made[2], made[3])


def samples(boxes, size=SIZE, **meta):
    return fgd_samples([boxes], [size], size, **meta)


# The masks


def test_masks_by_hand():
    # 4 x 4 cells of 8 pixels; rows 1 to 2 and columns 1 to 3, then row 0 and columns 0 to 1
    boxes = torch.tensor([[9.0, 8.0, 17.0, 15.0], [0.0, 0.0, 3.0, 0.0]])
    foreground, background = box_masks([boxes], [(32, 32)], (4, 4), torch.float64)
    expected = torch.tensor(
        [
            [1 / 2, 1 / 2, 0, 0],
            [0, 1 / 6, 1 / 6, 1 / 6],
            [0, 1 / 6, 1 / 6, 1 / 6],
            [0, 0, 0, 0],
        ],
        dtype=torch.float64,
    )
    torch.testing.assert_close(foreground[0], expected)
    torch.testing.assert_close(background[0], (expected == 0).double() / 8)


@pytest.mark.parametrize('case', BOXES)
def test_masks(case):
    boxes = torch.tensor(BOXES[case]).reshape(-1, 4)
    given = box_masks([boxes], [SIZE], (6, 10), torch.float64)
    for mask, expected in zip(given, reference_masks(BOXES[case], SIZE, (6, 10))):
        np.testing.assert_allclose(mask[0].numpy(), expected, rtol=1e-12)
    assert given[1].sum() == pytest.approx(0 if case == 'everywhere' else 1)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.int64])
def test_edges_that_fall_on_a_cell_stay_there(dtype):
    # pixel 8 of 1344 is cell 1 of 168, and no rounding may make it the end of cell 0
    edges = torch.arange(0, 1344, 8)
    boxes = torch.stack([edges, edges, edges, edges], 1).to(dtype)
    for i, box in enumerate(boxes):
        foreground, _ = box_masks([box[None]], [(1344, 1344)], (168, 168), torch.float32)
        assert foreground[0].nonzero().tolist() == [[i, i]]


def test_boxes_are_scaled_by_the_padded_size():
    """An image of 24 x 40 in the corner of a batch of 48 x 80: its objects are in that corner."""
    box = [8.0, 8.0, 23.0, 15.0]  # rows 1 to 2, columns 1 to 3
    loss = FGDLoss(alpha=1, beta=0, gamma=0, lambda_=0)
    student, teacher = sides()
    within = torch.zeros(6, 10, dtype=torch.float64)
    within[1:3, 1:4] = 1
    for difference in (within, 1 - within):
        student[0].copy_(teacher[0] + difference)
        value = loss(student, teacher, samples([box], img_shape=(24, 40), pad_shape=(24, 40)))
        assert (value != 0) == bool(difference[1, 1])


# The terms


@pytest.mark.parametrize('case', BOXES)
def test_terms(case):
    student, teacher = sides()
    given = FGDLoss().terms(student, teacher, samples(BOXES[case]))
    expected = reference(student, teacher, [BOXES[case]], [SIZE])
    for name in TERMS:
        assert getattr(given, name).item() == pytest.approx(expected[name], rel=1e-12), name
    assert expected['foreground'] > 0 or case == 'no box'
    assert expected['background'] > 0 or case == 'everywhere'


def test_terms_of_a_batch():
    """Images of different sizes in one padded batch, with many, few and no boxes."""
    student, teacher = sides(batch=4)
    boxes = [BOXES[c] for c in ('overlap of three', 'no box', 'no width', 'beyond two borders')]
    shapes = [(48, 80), (24, 40), (48, 33), (40, 80)]
    given = FGDLoss().terms(student, teacher, fgd_samples(boxes, shapes, SIZE))
    expected = reference(student, teacher, boxes, [SIZE] * 4)
    for name in TERMS:
        assert getattr(given, name).item() == pytest.approx(expected[name], rel=1e-12), name


@pytest.mark.parametrize(
    ('size', 'image_size'), [((1, 1), (48, 80)), ((3, 7), (50, 99)), ((6, 10), (33, 21))]
)
def test_terms_of_other_strides(size, image_size):
    student, teacher = sides(size=size)
    boxes = [[3.0, 5.0, 20.5, 17.0], [13.0, 11.0, 19.0, 31.0]]
    given = FGDLoss().terms(student, teacher, samples(boxes, image_size))
    expected = reference(student, teacher, [boxes], [image_size])
    for name in TERMS:
        assert getattr(given, name).item() == pytest.approx(expected[name], rel=1e-12), name


@pytest.mark.parametrize('temperature', [0.1, 0.5, 3])
def test_temperature(temperature):
    student, teacher = sides()
    boxes = BOXES['one box']
    given = FGDLoss(temperature=temperature).terms(student, teacher, samples(boxes))
    expected = reference(student, teacher, [boxes], [SIZE], temperature)
    for name in TERMS:
        assert getattr(given, name).item() == pytest.approx(expected[name], rel=1e-12), name


def test_loss_is_the_weighted_sum():
    student, teacher = sides(batch=2)
    boxes = [BOXES['one box'], BOXES['overlap of three']]
    data = fgd_samples(boxes, [SIZE] * 2, SIZE)
    loss = MODELS.build(dict(type='FGDLoss', alpha=2, beta=0.3, gamma=0.05, lambda_=0.007))
    expected = reference(student, teacher, boxes, [SIZE] * 2)
    total = sum(weight * expected[n] for weight, n in zip((2, 0.3, 0.05, 0.007), TERMS))
    value = loss(preds_S=student, preds_T=teacher, data_samples=data)
    assert value.shape == ()
    assert value.item() == pytest.approx(total, rel=1e-12)
    default = sum(w * expected[n] for w, n in zip((1e-3, 5e-4, 1e-3, 5e-6), TERMS))
    assert FGDLoss()(student, teacher, data).item() == pytest.approx(default, rel=1e-12)
    assert not list(loss.parameters())
    assert 'alpha=2.0, beta=0.3, gamma=0.05, lambda_=0.007, temperature=0.5' in repr(loss)


# Gradient


def test_gradient():
    student, teacher = sides(batch=2, channels=2, size=(3, 5))
    data = fgd_samples([BOXES['one box'], []], [SIZE] * 2, SIZE)
    # weights that let every term count
    loss = FGDLoss(alpha=1, beta=2, gamma=3, lambda_=4)
    inputs = [x.requires_grad_() for x in (*student, teacher[1])]

    def value(feature, context, teacher_context):
        return loss((feature, context), (teacher[0], teacher_context), data)

    assert torch.autograd.gradcheck(value, inputs)


def test_gradient_reaches_student_and_both_contexts_only():
    student, teacher = sides()
    for x in (*student, *teacher):
        x.requires_grad_()
    FGDLoss()(student, teacher, samples(BOXES['one box'])).backward()
    assert teacher[0].grad is None
    for x in (*student, teacher[1]):
        assert x.grad.isfinite().all() and x.grad.abs().sum() > 0


def test_equal_features_give_no_loss_and_no_gradient():
    student, _ = sides()
    feature = student[0].clone().requires_grad_()
    loss = FGDLoss()((feature, feature), student[:1] * 2, samples(BOXES['one box']))
    loss.backward()
    assert loss == 0
    assert torch.equal(feature.grad, torch.zeros_like(feature))


# Types and devices


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('which', ['student', 'teacher', 'both'])
def test_half_precision_is_reduced_in_float32(dtype, which):
    student, teacher = sides(dtype=torch.float32)
    # squares of 300 do not fit float16
    student, teacher = (tuple((300 * x).to(dtype) for x in s) for s in (student, teacher))
    exact = [tuple(x.float() for x in side) for side in (student, teacher)]
    given = (
        exact[0] if which == 'teacher' else student,
        exact[1] if which == 'student' else teacher,
    )
    data = samples(BOXES['overlap of three'])
    value = FGDLoss()(*given, data)
    assert value.dtype == torch.float32 and value.isfinite()
    assert value == FGDLoss()(*exact, data)


def test_autocast_changes_nothing():
    student, teacher = sides(dtype=torch.float32)
    data = samples(BOXES['one box'])
    expected = FGDLoss()(student, teacher, data)
    with torch.autocast('cpu', torch.bfloat16):
        value = FGDLoss()(student, teacher, data)
    assert value.dtype == torch.float32
    assert torch.equal(value, expected)


def test_large_values_stay_finite():
    student, teacher = sides(dtype=torch.float32)
    student, teacher = (tuple(1e6 * x for x in s) for s in (student, teacher))
    assert all(x.isfinite() for x in FGDLoss().terms(student, teacher, samples([])))


def test_needs_no_value_on_the_host():
    # meta tensors have none: .item(), a decision, or a tensor of the host would stop this
    student, teacher = (tuple(x.to('meta') for x in s) for s in sides(batch=2))
    data = fgd_samples([BOXES['one box'], []], [SIZE] * 2, SIZE)
    for sample in data:
        sample.gt_instances.bboxes = sample.gt_instances.bboxes.to('meta')
    assert FGDLoss()(student, teacher, data).shape == ()


@pytest.mark.gpu
def test_gpu_without_synchronisation():
    if not torch.cuda.is_available():
        pytest.skip('no CUDA device')
    student, teacher = sides(batch=3, channels=8, dtype=torch.float32)
    boxes = [BOXES['one box'], [], BOXES['overlap of three']]
    data = fgd_samples(boxes, [SIZE] * 3, SIZE)
    torch.manual_seed(0)
    blocks = [GlobalContextConnector(8) for _ in range(2)]

    def step(device):
        for sample in data:
            sample.gt_instances.bboxes = sample.gt_instances.bboxes.to(device)
        s, t = (side[0].to(device) for side in (student, teacher))
        s.requires_grad_()
        for block in blocks:
            block.to(device)
        torch.cuda.set_sync_debug_mode('error' if device == 'cuda' else 'default')
        try:
            value = FGDLoss()(blocks[0](s), blocks[1](t), data)
            value.backward()
        finally:
            torch.cuda.set_sync_debug_mode('default')
        return value.cpu(), s.grad.cpu()

    torch.testing.assert_close(step('cuda'), step('cpu'), rtol=1e-4, atol=1e-6)


def test_box_types_of_mmdet(mmdet):
    from mmdet.structures.bbox import HorizontalBoxes

    student, teacher = sides()
    data = samples(BOXES['overlap of three'])
    expected = FGDLoss()(student, teacher, data)
    data[0].gt_instances.bboxes = HorizontalBoxes(data[0].gt_instances.bboxes)
    assert torch.equal(FGDLoss()(student, teacher, data), expected)


# Wrong arguments


def test_shapes_that_differ():
    student, teacher = sides()
    other, _ = sides(size=(6, 9))
    data = samples([])
    for given in ((other, teacher), ((student[0], other[1]), teacher), (student, other)):
        with pytest.raises(ValueError, match=r'one shape.*\(1, 4, 6, 9\)'):
            FGDLoss()(*given, data)
    flat = tuple(x.flatten(2) for x in student)
    with pytest.raises(ValueError, match=r'\(B, C, H, W\).*\(1, 4, 60\)'):
        FGDLoss()(flat, flat, data)


def test_empty_batch():
    empty, _ = sides(batch=0)
    with pytest.raises(ValueError, match=r'not empty.*\(0, 4, 6, 10\)'):
        FGDLoss()(empty, empty, [])


@pytest.mark.parametrize('count', [0, 1, 3])
def test_number_of_data_samples(count):
    student, teacher = sides(batch=2)
    with pytest.raises(ValueError, match=f'each of the 2 images.*got {count}'):
        FGDLoss()(student, teacher, samples([]) * count)


@pytest.mark.parametrize('instances', [None, InstanceData(labels=torch.zeros(1))])
def test_samples_without_boxes(instances):
    sample = BaseDataElement(metainfo=dict(batch_input_shape=SIZE))
    if instances is not None:
        sample.gt_instances = instances
    with pytest.raises(ValueError, match='data sample 0.*no gt_instances.bboxes.*with_bbox'):
        FGDLoss()(*sides(), [sample])


def test_samples_without_the_padded_size():
    (sample,) = samples([])
    meta = dict(img_shape=SIZE, pad_shape=SIZE)
    sample = BaseDataElement(metainfo=meta, gt_instances=sample.gt_instances)
    with pytest.raises(ValueError, match='batch_input_shape.*img_shape.*DetDataPreprocessor'):
        FGDLoss()(*sides(), [sample])


def test_boxes_of_another_shape():
    (sample,) = samples([])
    sample.gt_instances = InstanceData(bboxes=torch.zeros(3, 5))
    with pytest.raises(ValueError, match=r'boxes of shape \(n, 4\).*\(3, 5\)'):
        FGDLoss()(*sides(), [sample])


@pytest.mark.parametrize('name', ['alpha', 'beta', 'gamma', 'lambda_', 'temperature'])
@pytest.mark.parametrize('value', [-1, math.nan, math.inf, True, '1', None])
def test_bad_numbers(name, value):
    with pytest.raises((ValueError, TypeError), match=f'{name} must be .*{value!r}'):
        MODELS.build(dict(type='FGDLoss', **{name: value}))


def test_temperature_of_zero():
    with pytest.raises(ValueError, match='temperature must be positive, got 0'):
        FGDLoss(temperature=0)
    assert FGDLoss(alpha=0)(*sides(), samples([])) > 0
