"""A sweep whose trainings share a process: groups, results, and what cannot share."""

import csv
import json
from pathlib import Path

import pytest

from rawkd_mm.analysis.one_training import Training
from rawkd_mm.analysis.sharing_groups import sharing_groups

BASE = {
    'model.teacher.type': 'A',
    'model.teacher_ckpt': 'a.pth',
    'model.distiller.loss.loss_weight': '1',
    'train_dataloader.batch_size': 8,
    'randomness.seed': 0,
    'gpus': 1,
}


def training(label, **settings):
    settings = {key.replace('__', '.'): value for key, value in settings.items()}
    return Training(label, Path('c.py'), Path(label), 4, 'mIoU', {**BASE, **settings})


def labels(groups):
    return [[t.label for t in group.trainings] for group in groups]


def test_losses_features_students_and_schedules_may_differ():
    trainings = [
        training('a'),
        training('b', model__distiller__loss__loss_weight='3'),
        training('c', model__distiller__pairs__0__teacher='backbone.layer4'),
        training('d', model__architecture__backbone__depth=50),
        training('e', optim_wrapper__optimizer__lr='0.1', train_cfg__max_iters=3),
    ]
    (group,) = sharing_groups(trainings)
    assert group.trainings == trainings and group.reason == ''
    assert group.text == 'share a teacher: a, b, c, d, e'


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('model__teacher__type', 'B'),
        ('model__teacher_ckpt', 'b.pth'),
        ('teacher_sha256', '00'),
        ('model__teacher_input__scale', '1.5'),
        ('model__teacher_precision', 'bf16'),
        ('model__architecture__data_preprocessor__mean__0', '1.0'),
        ('train_dataloader__batch_size', 4),
        ('train_dataloader__dataset__data_root', 'other'),
        ('randomness__seed', 1),
        ('gpus', 2),
    ],
)
def test_what_decides_the_features_makes_groups_of_their_own(key, value):
    other = [training('b', **{key: value}), training('c', **{key: value})]
    first, second = sharing_groups([training('a'), *other, training('d')])
    assert labels([first, second]) == [['a', 'd'], ['b', 'c']]
    assert second.reason.startswith(f'{key.replace("__", ".")} is {value}, and ')
    assert second.text == f'share a teacher: b, c ({second.reason})'


def test_the_student_alone_and_a_search_are_by_themselves():
    alone = training('student')
    for key in ('model.teacher.type', 'model.teacher_ckpt'):
        del alone.settings[key]
    speed = [training(f's{i}', model__teacher_speed='auto') for i in range(2)]
    off = training('off', model__teacher_speed='None')
    groups = sharing_groups([alone, training('a'), *speed, off])
    assert labels(groups) == [['student'], ['a', 'off'], ['s0'], ['s1']]
    assert groups[0].text == 'by itself: student (it has no teacher)'
    assert 'model.teacher_speed=None' in groups[2].reason


def test_sweep_shares_and_gives_the_same_results(interrupted, sweep):
    # of the fixture: naive-w1 and naive-w100, in processes of their own
    args = ('sweep.py', '--method', 'naive', '--method', 'student', '--weights', 1, 100)
    work_dir = sweep.folder / 'work_dirs/shared_sweep'
    code, out, err = sweep(*args, '--share-teacher', '--work-dir', work_dir)
    assert code == 0, out + err
    assert 'share a teacher: naive-w1-seed0, naive-w100-seed0' in out
    assert 'by itself: student-seed0 (it has no teacher)' in out
    for weight in (1, 100):
        name = f'naive-w{weight}-seed0'
        results = [
            json.loads((folder / name / 'result.json').read_text())
            for folder in (work_dir, sweep.folder / 'work_dirs/weight_sweep/sweep')
        ]
        assert results[0]['metrics'] == results[1]['metrics']
        assert results[0]['processor_seconds'] is None and results[0]['seconds'] > 0
    log = (work_dir / 'naive-w1-seed0/together.log').read_text()
    assert (
        'The teacher ran 30 times for 60 batches of students, and kept the features of at most 1'
        in log
    )
    with (work_dir / 'results.csv').open(newline='') as file:
        methods = sorted(row['method'] for row in csv.DictReader(file))
    assert methods == ['naive', 'naive', 'student']
    code, out, _ = sweep(*args, '--share-teacher', '--work-dir', work_dir)
    assert code == 0 and '3 of 3 trainings are finished' in out


def test_arguments_that_cannot_be(call_tool, project):
    for more, message in (
        (['--print', '--method', 'lad', '--weights', 3], 'leave out --share-teacher'),
        (['--method', 'student'], 'the student alone has no teacher'),
    ):
        code, _, err = call_tool('distillation.py', '--share-teacher', *more)
        assert code == 2 and message in err
