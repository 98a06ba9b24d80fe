"""What hooks and tools look up or set on the model of a distillation reaches the student.

Public reports: open-mmlab/mmrazor#184 and #130 (YOLOX's hook sets ``model.bbox_head.use_l1``).
"""

import copy
import pickle

import pytest
import torch
from helpers import build, distill, pspnet
from torch import nn

from rawkd_mm.algorithms import FrozenTeacherDistill


@pytest.fixture
def algorithm():
    return distill()


def test_attributes_are_those_of_the_student(algorithm):
    student = algorithm.student
    assert algorithm.decode_head is student.decode_head
    assert algorithm.backbone is student.backbone
    assert algorithm.with_auxiliary_head is True
    assert algorithm.encode_decode.__self__ is student


def test_own_attributes_come_first(algorithm):
    assert algorithm.data_preprocessor is algorithm._modules['data_preprocessor']
    assert algorithm.loss.__func__ is FrozenTeacherDistill.loss
    assert algorithm.student_trainable is True


def test_what_is_set_reaches_the_student(algorithm):
    algorithm.decode_head.use_l1 = True
    assert algorithm.student.decode_head.use_l1 is True
    algorithm.align_corners = 'set'  # the student has it
    assert algorithm.student.align_corners == 'set'
    algorithm.epoch_of_a_hook = 3  # nobody has it yet
    assert algorithm.student.epoch_of_a_hook == 3 == algorithm.epoch_of_a_hook
    assert 'epoch_of_a_hook' not in vars(algorithm)
    del algorithm.epoch_of_a_hook
    assert not hasattr(algorithm.student, 'epoch_of_a_hook')


def test_what_is_the_algorithms_own_stays_there(algorithm):
    algorithm.distillation_stopped = True
    algorithm.calculate_student_loss = False
    assert not hasattr(algorithm.student, 'distillation_stopped')
    assert not hasattr(algorithm.student, 'calculate_student_loss')
    algorithm.extra = nn.Linear(1, 1)  # a module of somebody's subclass
    assert 'extra' in algorithm._modules and not hasattr(algorithm.student, 'extra')


@pytest.mark.parametrize('look_up', [getattr, delattr])
def test_unknown_names_are_an_error_that_names_both(algorithm, look_up):
    with pytest.raises(AttributeError, match='no_such_thing'):
        look_up(algorithm, 'no_such_thing')
    with pytest.raises(AttributeError, match='FrozenTeacherDistill.*EncoderDecoder.*no_such_thing'):
        _ = algorithm.no_such_thing


def test_copies_and_pickles(algorithm):
    twin = copy.deepcopy(algorithm)
    twin.note = 1
    assert twin.student.note == 1 and not hasattr(algorithm.student, 'note')
    assert twin.decode_head is twin.student.decode_head is not algorithm.decode_head
    fresh = FrozenTeacherDistill.__new__(FrozenTeacherDistill)
    with pytest.raises(AttributeError):
        _ = fresh.anything  # nothing is built yet: no endless recursion
    assert pickle.loads(pickle.dumps(torch.nn.Module.state_dict(algorithm))).keys()


def test_a_subclass_may_have_attributes_of_its_own():
    class Mine(FrozenTeacherDistill):
        counted = 0

        def loss(self, *args, **kwargs):
            self.counted += 1
            return super().loss(*args, **kwargs)

    model = build(pspnet())
    mine = Mine(
        distiller=dict(
            type='FeatureDistiller',
            loss=dict(type='CADLoss'),
            pairs=[dict(student='backbone[3]', teacher='backbone[3]')],
        ),
        teacher=build(pspnet()),
        architecture=model,
        allow_random_teacher=True,
    )
    mine.counted += 1
    assert vars(mine)['counted'] == 1 and not hasattr(model, 'counted')


def test_names_of_parameters_and_weights_stay_what_they_were(algorithm):
    names = [name for name, _ in algorithm.named_parameters()]
    assert names[0].startswith('architecture.') and 'teacher' not in ' '.join(names)
    assert next(iter(algorithm.state_dict())).startswith('backbone.')
