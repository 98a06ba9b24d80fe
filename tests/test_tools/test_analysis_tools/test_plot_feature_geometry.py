"""Fig. 8: from hand-made logs, for numbers and errors, and from a real sweep's."""

import json

import numpy as np
import pytest
from PIL import Image

SWEEP = 'work_dirs/weight_sweep/sweep'
TOOL = 'plot_feature_geometry'


@pytest.fixture
def tool():
    from rawkd_mm.analysis import plot_feature_geometry

    return plot_feature_geometry


def write_run(folder, about, sessions, pairs=('loss_x_head',)):
    """A training's folder with the hook's entries {step: (n, m)} among those of others."""
    folder.mkdir(parents=True)
    (folder / 'training.json').write_text(json.dumps(dict(about=about, settings={})))
    for i, session in enumerate(sessions):
        log = folder / f'20250101_00000{i}/vis_data/scalars.json'
        log.parent.mkdir(parents=True)
        lines = [json.dumps(dict(loss=1.0, step=1))]
        for step, (n, m) in session.items():
            entry = {}
            for pair in pairs:
                values = dict(n=n, m=m, mn_over_N=m * n / 8, cos_theta=0.5)
                entry |= {f'geometry/{pair}/{name}': value for name, value in values.items()}
            lines.append(json.dumps(entry | dict(step=step)))
        log.write_text('\n'.join(lines) + '\n{"cut')


def test_average_is_over_the_trainings_where_all_have_been(tool):
    runs = [{1: 1.0, 10: 4.0, 20: 9.0}, {1: 3.0, 10: 5.0, 20: 1.0, 30: 2.0}]
    steps, mean, std = tool.average(runs)
    assert steps == [1, 10, 20]
    assert mean == [2.0, 4.5, 5.0]
    assert std == pytest.approx([2**0.5, 0.5**0.5, 32**0.5])
    assert tool.average(runs[:1]) == ([1, 10, 20], [1.0, 4.0, 9.0], None)


def test_moving_mean_is_of_the_last_records(tool):
    run = {1: 1.0, 10: 4.0, 20: 10.0, 30: 1.0}
    assert tool.average([run], 3).mean == pytest.approx([1, 2.5, 5, 5])


def test_lines_are_the_means_over_the_seeds(tool, tmp_path):
    for weight in (10.0, 1.0):
        for seed in (0, 1):
            # the second session did step 2 again
            sessions = [
                {1: (weight, 2), 2: (99, 99)},
                {2: (weight + seed, 4), 4: (3, 4 + 2 * seed)},
            ]
            about = dict(method='naive', weight=weight, seed=seed)
            write_run(tmp_path / f's/naive-w{weight}-seed{seed}', about, sessions)
    write_run(tmp_path / 's/student-seed0', dict(method='student', weight=None, seed=0), [])
    columns = tool.read_columns([tmp_path / 's'], ['naive'])
    assert [column.name for column in columns] == ['s, Naive']
    assert list(columns[0].lines) == ['w = 1', 'w = 10']
    figure = tool.draw(columns, ['title'], ['mn_over_N', 'norms', 'cos_theta'], smooth=1)
    product, norms, cosine = figure.axes
    drawn = {line.get_label(): line.get_xydata().tolist() for line in norms.lines}
    assert drawn == {
        'w = 1': [[1, 1], [2, 1.5], [4, 3]],
        'w = 10': [[1, 10], [2, 10.5], [4, 3]],
        'm (teacher)': [[1, 2], [2, 4], [4, 5]],
    }
    drawn = {line.get_label(): line.get_xydata().tolist() for line in product.lines}
    assert drawn['w = 10'] == [[1, 20 / 8], [2, (40 + 44) / 16], [4, (12 + 18) / 16]]
    assert {y for line in cosine.lines for y in line.get_ydata()} == {0.5}
    assert product.get_title() == 'title\nmean ± standard deviation, 2 seeds'


def test_every_method_and_pair_of_features_has_its_column(tool, tmp_path):
    for method in ('naive', 'md'):
        about = dict(method=method, weight=1.0, seed=0)
        write_run(tmp_path / f's/{method}', about, [{1: (1, 2)}], ['loss_a', 'loss_b'])
    names = [column.name for column in tool.read_columns([tmp_path / 's'], ['md', 'naive'])]
    assert names == ['s, MD, loss_a', 's, MD, loss_b', 's, Naive, loss_a', 's, Naive, loss_b']


def test_figure_of_a_real_sweep(sweep, tool, tmp_path):
    out = tmp_path / 'fig8'
    code, printed, err = sweep(SWEEP, '-o', out, '--cos-theta', '--smooth', 2, tool=TOOL)
    assert code == 0, err
    assert printed.splitlines() == [f'{out}.png', f'{out}.svg']
    svg = (tmp_path / 'fig8.svg').read_text()
    for text in ('mn/N', 'n (solid), m (dashed)', 'cos θ', 'w = 1<', 'w = 100<', 'm (teacher)',
                 'iteration (moving mean of 2 records)', 'sweep, Naive'):  # fmt: skip
        assert text in svg
    picture = np.asarray(Image.open(tmp_path / 'fig8.png').convert('RGB'))
    assert min(picture.shape[:2]) > 500
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50

    (column,) = tool.read_columns([sweep.folder / SWEEP], ['naive'])
    (run,) = column.lines['w = 100']
    assert sorted(run['n'])[:2] == [1, 4] and max(run['n']) == 28
    for step, product in run['mn_over_N'].items():
        # over the batch the mean of a product is not that of the factors, but near it
        numbers = 16 * 8 * 8  # channels, and 32x32 behind a stem of stride 4
        assert product == pytest.approx(run['m'][step] * run['n'][step] / numbers, rel=0.2)


def test_one_training_by_itself(sweep, tmp_path):
    run = f'{SWEEP}/naive-w1-seed0'
    code, _, err = sweep(run, '-o', tmp_path / 'one', tool=TOOL)
    assert code == 0, err
    svg = (tmp_path / 'one.svg').read_text()
    assert 'n (student)' in svg and 'naive-w1-seed0' in svg and 'one seed' in svg


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['gone'], "'gone' is not a folder"),
        (['runs/teacher'], "custom_hooks = [dict(type='FeatureGeometryHook'"),
        ([SWEEP, '--methods', 'nfd'], "has no training of method 'nfd', only of ['"),
        ([SWEEP, '--titles', 'a', 'b'], '--titles has 2 titles'),
        ([SWEEP, '--smooth', '0'], '--smooth must be at least 1, got 0'),
    ],
)
def test_what_cannot_be_drawn_is_said(sweep, tmp_path, args, message):
    code, _, err = sweep(*args, '-o', tmp_path / 'x', tool=TOOL)
    assert code != 0 and message in err
    assert not (tmp_path / 'x.png').exists()
