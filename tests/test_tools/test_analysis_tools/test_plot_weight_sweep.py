"""Fig. 7: from hand-made CSVs, for numbers and errors, and from a real sweep's."""

import csv
import importlib
import statistics

import numpy as np
import pytest
from PIL import Image

HEADER = 'pair,method,weight,seed,metric,value,iters,seconds,config,work_dir\n'
ROWS = [
    'a,student,,0,mIoU,60.0,30,1,c,w',
    'a,student,,1,mIoU,61.5,30,1,c,w',
    'a,student,,2,mIoU,62.1,30,1,c,w',
    'a,naive,100,0,mIoU,66.0,30,1,c,w',
    'a,naive,1,0,mIoU,61.0,30,1,c,w',
    'a,naive,1,1,mIoU,64.0,30,1,c,w',
    'a,md,1,0,mIoU,50.0,30,1,c,w',
    'b,student,,0,mIoU,70.0,90,1,c,w',
    'b,lad,0.3,0,mIoU,71.0,90,1,c,w',
]


def write(path, rows, header=HEADER):
    path.write_text(header + ''.join(f'{row}\n' for row in rows))
    return path


@pytest.fixture
def tool():
    from rawkd_mm.analysis import plot_weight_sweep

    return plot_weight_sweep


def test_curves_are_means_and_sample_deviations(tool, tmp_path):
    panels = tool.make_panels(tool.read_rows([write(tmp_path / 'a.csv', ROWS)]))
    assert list(panels) == ['a', 'b']
    student = panels['a'].student
    mean = (60.0 + 61.5 + 62.1) / 3
    std = (((60.0 - mean) ** 2 + (61.5 - mean) ** 2 + (62.1 - mean) ** 2) / 2) ** 0.5
    assert student == pytest.approx((mean, std, 3))
    naive = panels['a'].methods['naive']
    assert list(naive) == [1, 100]
    assert naive[1] == pytest.approx((62.5, 4.5**0.5, 2))
    assert naive[100] == (66.0, None, 1)
    assert panels['a'].methods['md'] == {1: (50.0, None, 1)}
    assert panels['b'].methods == {'lad': {0.3: (71.0, None, 1)}}


def test_what_is_drawn_are_these_curves(tool, tmp_path):
    panels = tool.make_panels(tool.read_rows([write(tmp_path / 'a.csv', ROWS)]))
    figure = tool.draw(panels, ['first', 'second'])
    first, second = figure.axes
    assert first.get_xscale() == 'log'
    lines = {c.get_label(): c.lines[0].get_xydata().tolist() for c in first.containers}
    assert lines == {'Naive': [[1, 62.5], [100, 66]], 'MD': [[1, 50]]}
    (dashed,) = [line for line in first.lines if line.get_label() == 'student alone']
    assert dashed.get_linestyle() == '--'
    assert list(dashed.get_ydata()) == pytest.approx([61.2, 61.2])
    assert first.get_title() == 'first\nmean ± standard deviation, 1 to 3 seeds'
    assert second.get_title() == 'second\none seed'
    assert [tick.get_text() for tick in first.get_xticklabels()] == ['1', '100']
    assert first.get_ylabel() == 'mIoU on val (%)'


def test_the_axis_may_be_cut(tool, tmp_path, monkeypatch, capsys):
    panels = tool.make_panels(tool.read_rows([write(tmp_path / 'a.csv', ROWS)]))
    assert tool.draw(panels, ['a', 'b'], (60, 70)).axes[0].get_ylim() == (60, 70)
    assert tool.draw(panels, ['a', 'b']).axes[0].get_ylim()[0] < 50
    args = [str(tmp_path / 'a.csv'), '-o', str(tmp_path / 'fig'), '--ylim', '70', '60']
    monkeypatch.setattr('sys.argv', ['plot_weight_sweep.py', *args])
    with pytest.raises(SystemExit):
        importlib.import_module('plot_weight_sweep').main()
    assert 'LOW must be below HIGH, got [70.0, 60.0]' in capsys.readouterr().err


def test_figure_of_a_real_sweep(sweep, tmp_path):
    assert sweep('sweep.py', '--method', 'student', '--seeds', 0, 1, '--jobs', 2)[0] == 0
    source = sweep.folder / 'work_dirs/weight_sweep/sweep/results.csv'
    code, out, err = sweep(source, '-o', tmp_path / 'new/fig7', tool='plot_weight_sweep')
    assert code == 0, err
    assert out.splitlines() == [str(tmp_path / f'new/fig7.{suffix}') for suffix in ('png', 'svg')]
    svg = (tmp_path / 'new/fig7.svg').read_text()
    for text in ('student alone', 'Naive', '>100<', 'weight w of the loss (log scale)', '>sweep<'):
        assert text in svg
    picture = np.asarray(Image.open(tmp_path / 'new/fig7.png').convert('RGB'))
    assert min(picture.shape[:2]) > 500
    colors = {tuple(color) for color in picture.reshape(-1, 3)}
    assert {(0xD5, 0x5E, 0x00), (0x66, 0x66, 0x66)} <= colors  # Naive, and the dashed line

    from rawkd_mm.analysis import plot_weight_sweep

    with source.open(newline='') as file:
        values = [float(r['value']) for r in csv.DictReader(file) if r['method'] == 'student']
    student = plot_weight_sweep.make_panels(plot_weight_sweep.read_rows([source]))['sweep'].student
    assert student == pytest.approx((statistics.mean(values), statistics.stdev(values), 2))


def test_same_data_same_file(tool, tmp_path):
    panels = tool.make_panels(tool.read_rows([write(tmp_path / 'a.csv', ROWS)]))
    for name in ('one', 'two'):
        tool.save(tool.draw(panels, ['first', 'second']), str(tmp_path / name))
    assert (tmp_path / 'one.svg').read_bytes() == (tmp_path / 'two.svg').read_bytes()


@pytest.mark.parametrize(
    ('rows', 'message'),
    [
        ([], 'there are no rows to draw'),
        (ROWS[3:4], 'a lacks the student alone'),
        (ROWS[:1], 'a has nothing but the student alone'),
        (ROWS[:4] + ROWS[3:4], "method 'naive', weight 100.0, seed 0 more than once"),
        ([*ROWS[:3], 'a,naive,1,0,aAcc,90,30,1,c,w'], "more than one metric, ['aAcc', 'mIoU']"),
        ([*ROWS[:3], 'a,naive,1,0,mIoU,60,90,1,c,w'], "more than one iters, ['30', '90']"),
        ([*ROWS[:3], 'a,naive,1,0,mIoU,nan,30,1,c,w'], 'line 5: value is no finite number'),
        ([*ROWS[:3], 'a,naive,,0,mIoU,60,30,1,c,w'], 'line 5: weight is no finite number'),
        ([*ROWS[:3], 'a,fitnet,1,0,mIoU,60,30,1,c,w'], "line 5: method 'fitnet' is none of"),
    ],
)
def test_what_cannot_be_drawn_is_said(sweep, tmp_path, rows, message):
    source = write(tmp_path / 'a.csv', rows)
    code, _, err = sweep(source, '-o', tmp_path / 'x', tool='plot_weight_sweep')
    assert code == 1 and message in err
    assert not (tmp_path / 'x.png').exists()


def test_wrong_files_and_titles_are_said(sweep, tmp_path):
    code, _, err = sweep(tmp_path / 'gone.csv', '-o', 'x', tool='plot_weight_sweep')
    assert code == 1 and 'is not a file; give the results.csv of a sweep' in err
    other = write(tmp_path / 'other.csv', ['1,2'], 'x,y\n')
    code, _, err = sweep(other, '-o', 'x', tool='plot_weight_sweep')
    assert code == 1 and "lacks the columns ['pair', 'method'" in err
    good = write(tmp_path / 'a.csv', ROWS)
    code, _, err = sweep(good, '-o', 'x', '--titles', 'one', tool='plot_weight_sweep')
    assert code == 1 and "--titles has 1 titles, the figure 2 columns: ['a', 'b']" in err
