"""What MMRazor's deliveries do in a distillation of ours."""

import copy

import pytest
import torch
from helpers import distill, feature_distiller, images, pair, samples

# MMRazor's recorders of other tests stay on the class that they name: name the same one.
CLS_SEG = 'mmseg.models.decode_heads.psp_head.PSPHead.cls_seg'


def with_delivery():
    """The main head of the student is given the teacher's scores."""
    delivery = dict(type='MethodOutputs', method_path=CLS_SEG, max_keep_data=1)
    return distill(distiller=feature_distiller(pair(), distill_deliveries=dict(scores=delivery)))


def test_a_delivery_takes_from_the_teacher_and_gives_to_the_student():
    algorithm = with_delivery()
    plain = distill()
    with torch.no_grad():
        expected = algorithm.teacher(images(), samples(), mode='loss')
        own = plain(images(), samples(), mode='loss')
    for _ in range(2):
        losses = algorithm(images(), samples(), mode='loss')
        loss = losses['student.decode.loss_ce'].detach()
        torch.testing.assert_close(loss, expected['decode.loss_ce'])
        assert loss != own['student.decode.loss_ce']


def test_a_copy_has_deliveries_too():
    algorithm = with_delivery()
    copied = copy.deepcopy(algorithm)
    found = [
        x(images(), samples(), mode='loss')['student.decode.loss_ce'] for x in (algorithm, copied)
    ]
    torch.testing.assert_close(*found)


def test_graphs_of_a_teacher_that_delivers_are_refused():
    delivery = dict(type='MethodOutputs', method_path=CLS_SEG, max_keep_data=1)
    distiller = feature_distiller(pair(), distill_deliveries=dict(scores=delivery))
    with pytest.raises(ValueError, match='teacher_compile needs recorders of the outputs'):
        distill(distiller=distiller, teacher_compile=True)
