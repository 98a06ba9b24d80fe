"""One teacher for several students: when it runs, when it runs again, and who cannot join."""

import pytest
import torch
from helpers import BOTTLENECK, Watch, count_runs, distill, images, pair

from rawkd_mm.teachers import SharedTeacher

LAYER = 'backbone.layer4'


def students(*paths, **kwargs):
    """Distillations of one teacher that record other features."""
    return [distill(pair(path), **kwargs) for path in paths]


def features(algorithm, inputs, seed=0):
    torch.manual_seed(seed)
    return algorithm.frozen_teacher.extract_features(inputs)


@pytest.fixture
def pair_of_students():
    algorithms = students(BOTTLENECK, LAYER)
    shared = SharedTeacher()
    assert [shared.join(a.frozen_teacher) for a in algorithms] == [None, None]
    return algorithms, shared


def test_each_gets_its_own_features_of_one_run(pair_of_students):
    algorithms, shared = pair_of_students
    assert algorithms[0].teacher is algorithms[1].teacher
    runs = count_runs(algorithms[0].teacher.backbone)
    for algorithm, path in zip(algorithms, (BOTTLENECK, LAYER)):
        (alone,) = students(path)
        expected, found = (features(a, images()) for a in (alone, algorithm))
        assert [source.text for source in found] == [path]
        for source, feature in expected.items():
            assert torch.equal(found[source], feature)
    assert len(runs) == 1
    assert (shared.runs, shared.uses) == (1, 2)


def test_other_images_seeds_autocast_and_overwritten_features_run_again(pair_of_students):
    (one, other), shared = pair_of_students
    (feature,) = features(one, images()).values()
    features(other, images(seed=1))
    assert shared.runs == 2
    features(other, images(), seed=1)
    assert shared.runs == 3
    with torch.autocast('cpu', torch.bfloat16):
        features(other, images())
    assert shared.runs == 4
    kept = feature.clone()
    feature.zero_()
    (again,) = features(one, images()).values()
    assert shared.runs == 5 and torch.equal(again, kept)
    features(other, images())
    assert shared.runs == 5
    shared.forget()
    features(other, images())
    assert shared.runs == 6


def test_what_one_needed_that_has_left_is_not_recorded(pair_of_students):
    (one, other), shared = pair_of_students
    ran = Watch(one.teacher).ran
    features(other, images())
    assert BOTTLENECK in ran
    shared.leave(one.frozen_teacher)
    shared.forget()
    ran.clear()
    features(other, images())
    assert LAYER in ran and BOTTLENECK not in ran


@pytest.mark.parametrize(
    ('kwargs', 'reason'),
    [
        (dict(seed=1), 'the weights of the teacher differ'),
        (dict(teacher_precision='bf16'), "the teacher's speed settings are"),
        (dict(teacher_input=dict(scale=2)), "the teacher's teacher_input are"),
        (dict(teacher_speed='auto'), 'teacher_speed looks for settings on its own'),
    ],
)
def test_another_teacher_cannot_join(kwargs, reason):
    shared = SharedTeacher()
    first, other = (*students(BOTTLENECK), *students(BOTTLENECK, **kwargs))
    assert shared.join(first.frozen_teacher) is None
    assert shared.join(other.frozen_teacher).startswith(reason)
    assert other.frozen_teacher.shared is None and other.teacher is not first.teacher
