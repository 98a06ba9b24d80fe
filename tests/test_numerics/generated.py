"""What hypothesis generates: pairs of features of any shape, with numbers and zeros of any kind."""

import numpy as np
import torch
from fgd_reference import fgd_samples
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rawkd_mm.registry import MODELS

ANGULAR = ('LADLoss', 'CADLoss', 'PADLoss')
RAW = (*ANGULAR, 'NaiveFeatureLoss', 'MagnitudeLoss', 'NFDLoss')

# (B, C), (B, C, P) and (B, C, H, W), each size from 1
SHAPES = st.lists(st.integers(1, 4), min_size=2, max_size=4).map(tuple)
MAPS = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))


def values(smallest=1e-2, largest=1e2):
    """0, or a number of either sign."""
    positive = st.floats(smallest, largest)
    return st.one_of(st.just(0.0), positive, positive.map(lambda x: -x))


@st.composite
def features(draw, count=2, shapes=SHAPES, elements=None):
    """``count`` float64 tensors of one shape, (B, C, ...)."""
    shape = draw(shapes)
    arrays = hnp.arrays(np.float64, shape, elements=values() if elements is None else elements)
    return tuple(torch.from_numpy(draw(arrays)) for _ in range(count))


def shapes_of(name):
    """NFD has to have positions."""
    return SHAPES.filter(lambda shape: len(shape) > 2) if name == 'NFDLoss' else SHAPES


def raw_loss(name, weight=1.0):
    # these ask which dimension of three is that of the channels
    layout = dict(layout='BCN') if name in ('CADLoss', 'PADLoss', 'NFDLoss') else {}
    return MODELS.build(dict(type=name, loss_weight=weight, **layout))


def value_and_gradient(function, student):
    student = student.detach().clone().requires_grad_()
    out = function(student)
    (gradient,) = torch.autograd.grad(out, student)
    return out.detach(), gradient


def dims_of(name, feature):
    """The dimensions that one vector of an angular loss spans."""
    if name == 'PADLoss':
        return (1,)
    if name == 'CADLoss':
        return tuple(range(2, feature.dim()))
    return tuple(range(1, feature.dim()))


def norms(name, feature):
    """The norm of each vector, which may be one value; the dimensions stay, with size 1."""
    dims = dims_of(name, feature)
    return feature.square().sum(dims, keepdim=True).sqrt() if dims else feature.abs()


# FGD: cells of 8 pixels, maps as large as the boxes reach

STRIDE = 8


@st.composite
def detections(draw):
    """Features and contexts of student and teacher, and the boxes of each image in pixels."""
    student, teacher, student_context, teacher_context = draw(features(4, MAPS, values(1e-2, 4.0)))
    height, width = (STRIDE * size for size in student.shape[2:])

    def edges(length):
        return st.tuples(st.integers(-4, length + 4), st.integers(-4, length + 4)).map(sorted)

    box = st.tuples(edges(width), edges(height)).map(
        lambda xy: [float(xy[i][j]) for j in (0, 1) for i in (0, 1)]
    )
    boxes = [draw(st.lists(box, max_size=3)) for _ in range(len(student))]
    return (student, student_context), (teacher, teacher_context), boxes


def samples_of(feature, boxes):
    """Data samples for boxes on a feature map."""
    size = tuple(STRIDE * length for length in feature.shape[2:])
    return fgd_samples(boxes, [size] * len(boxes), size)
