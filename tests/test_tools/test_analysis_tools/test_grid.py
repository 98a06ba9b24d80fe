"""How a grid is written, and that MMEngine reads the same of it."""

import pytest

from rawkd_mm.analysis.grid import (
    GridError,
    cell_label,
    grid_points,
    parse_grid,
    point_options,
    slug,
)
from rawkd_mm.analysis.weight_sweep import parse_options


def test_values_are_separated_outside_of_brackets_and_quotes():
    grid = parse_grid(
        ['a.lr=0.01,1e-3', 'b=[1,2],[3]', "c.loss={'type': 'X', 'w': [1, 2]},{'type':'YZ'}", 'd=x']
    )
    assert grid == {
        'a.lr': ['0.01', '1e-3'],
        'b': ['[1,2]', '[3]'],
        'c.loss': ["{'type': 'X', 'w': [1, 2]}", "{'type':'YZ'}"],
        'd': ['x'],
    }


def test_points_are_the_product_and_the_last_key_varies_first():
    points = grid_points({'a': ['1', '2'], 'b': ['x', 'y']})
    assert points == [
        {'a': '1', 'b': 'x'}, {'a': '1', 'b': 'y'}, {'a': '2', 'b': 'x'}, {'a': '2', 'b': 'y'},
    ]  # fmt: skip
    assert grid_points({}) == [{}]


@pytest.mark.parametrize(
    ('text', 'value'),
    [('3', 3), ('0.5', 0.5), ('true', True), ('None', None), ('abc', 'abc'),
     ('[1,(2,x)]', [1, (2, 'x')])],
)  # fmt: skip
def test_values_are_what_mmengine_makes_of_them(text, value):
    (option,) = point_options('a.b', text, replaces=True)
    assert parse_options([option]) == {'a.b': value}


def test_a_dict_becomes_its_entries():
    text = "{'type': 'CADLoss', 'w': 3.0, 'deep': {'list': [1, ('a', None)], 'flag': False}}"
    options = point_options('m.loss', text, replaces=True)
    assert parse_options(options) == {
        'm.loss._delete_': True,
        'm.loss.type': 'CADLoss',
        'm.loss.w': 3.0,
        'm.loss.deep.list': [1, ('a', None)],
        'm.loss.deep.flag': False,
    }
    # MMEngine would keep _delete_ where there is nothing to delete
    assert point_options('m.loss', text, replaces=False) == options[1:]


@pytest.mark.parametrize(
    ('texts', 'message'),
    [
        (['a'], "'a' is not KEY=V1,V2"),
        (['=1'], 'is not KEY=V1,V2'),
        (['a..b=1'], 'is not KEY=V1,V2'),
        (['a=1,,2'], 'has an empty value'),
        (['a='], 'has an empty value'),
        (['a=1,2,1'], "the values of a must differ, got ['1', '2', '1']"),
        (['a=1', 'a=2'], 'a is there twice'),
        (['a=[1,2'], "']' is missing"),
        (['a=1],2'], "']' closes no bracket"),
        (["a='x"], '"\'" is missing'),
        (['a={1: 2}'], 'must be text, got 1'),
        (['a={}'], 'with at least one key'),
        (['a={x}'], 'is no dict as Python writes it'),
        (["a={'b': 'x y'}"], "'x y' in a dict cannot be told"),
        (["a={'b': '12'}"], "'12' in a dict cannot be told"),
        (["a={'b': [{'c': 1}]}"], "{'c': 1} in a dict cannot be told"),
    ],
)
def test_what_is_no_grid_is_said(texts, message):
    with pytest.raises(GridError) as error:
        parse_grid(texts)
    assert message in str(error.value)


def test_labels_are_plain_and_differ():
    assert cell_label('naive', '10', {}) == 'naive-w10'
    assert cell_label('student-as-long-as-cad_kl', '', {}) == 'student-as-long-as-cad_kl'
    assert cell_label('cad', '', {'a.lr': '0.01'}) == 'cad-a.lr=0.01'
    one, two = (slug(f'work_dirs/{folder}/teacher-0.1.pth') for folder in 'ab')
    assert one != two and one.startswith('teacher-0.1.pth~')
    for text in (one, slug("{'type': 'X'}"), slug('x' * 99)):
        assert len(text) <= 31 and not set(text) & set('/ {}[]\'"*?')
