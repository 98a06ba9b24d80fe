"""Tables and figures of hand-made CSVs, for numbers and errors."""

import csv

import pytest

from rawkd_mm.analysis.summarise_sweep import (
    ANGULAR_WEIGHT,
    SummaryError,
    draw_over_time,
    draw_over_weight,
    make_csv,
    make_markdown,
    read_cells,
    summarise,
)

HEADER = (
    'pair,method,weight,seed,metric,value,iters,seconds,config,work_dir,processor_seconds,'
    'startup_seconds,mn_over_N,model.teacher_ckpt\n'
)
SMALL, LARGE = 'teachers/alpha-0.1.pth', 'teachers/alpha-10.pth'
ROWS = [
    'a,student,,0,mIoU,60,30,1,c,w,100,10,,',
    'a,student,,1,mIoU,62,30,1,c,w,110,10,,',
    'a,student,,2,mIoU,61,30,1,c,w,,,,',
    f'a,naive,10,0,mIoU,61,30,1,c,w,200,10,0.02,{SMALL}',
    f'a,naive,10,1,mIoU,64,30,1,c,w,220,10,0.04,{SMALL}',
    f'a,naive,100,0,mIoU,65,30,1,c,w,210,10,0.02,{SMALL}',
    f'a,naive,0.1,0,mIoU,66,30,1,c,w,210,10,200,{LARGE}',
    f'a,naive,1,0,mIoU,50,30,1,c,w,210,10,200,{LARGE}',
    'a,student-as-long-as-cad-w3,,0,mIoU,63,60,1,c,w,215,10,,',
]
OLD = 'pair,method,weight,seed,metric,value,iters,seconds,config,work_dir\n'


def write(path, rows, header=HEADER):
    path.write_text(header + ''.join(f'{row}\n' for row in rows))
    return path


@pytest.fixture
def lines(tmp_path):
    return summarise(read_cells([write(tmp_path / 'r.csv', ROWS)]), 'student')


def find(lines, method, weight):
    (line,) = [x for x in lines if (x.cell.method, x.cell.weight) == (method, weight)]
    return line


def test_cells_are_compared_seed_by_seed(lines):
    student, naive = find(lines, 'student', ''), find(lines, 'naive', '10')
    assert student.mean[:2] == (61, 1) and student.baseline is None and student.comparison is None
    assert naive.mean.mean == 62.5 and naive.baseline == 'student'
    assert naive.comparison.pairs == 2
    assert naive.comparison.difference.mean == pytest.approx(1.5)  # 61 - 60, 64 - 62
    assert naive.comparison.difference.std == pytest.approx(0.5**0.5)
    assert find(lines, 'naive', '100').comparison.difference == (5, None, None, None)
    assert student.cell.processor_seconds == 105  # that of seed 2 is unknown


def test_csv_and_markdown_have_the_numbers(lines):
    rows = list(csv.DictReader(make_csv(lines).splitlines()))
    assert [row['method'] for row in rows].count('naive') == 4
    (row,) = [row for row in rows if row['weight'] == '10']
    assert (row['seeds'], row['pairs'], row['mean'], row['difference']) == ('2', '2', '62.5', '1.5')
    assert float(row['difference_ci_low']) == pytest.approx(1.5 - 12.706 * 0.5, rel=1e-3)
    assert row['model.teacher_ckpt'] == SMALL and row['mn_over_N'] == '0.03'
    table = make_markdown(lines)
    assert '| student |  |  | 3 | 61.00 ± 1.00 |  |  |  |  | 30 | 105 |' in table
    assert '| naive | 10 | alpha-0.1 | 2 | 62.50 ± 2.12 | +1.50 ± 0.71 |' in table
    assert '| naive | 100 | alpha-0.1 | 1 | 65.00 | +5.00 |  |  |  | 30 | 210 |' in table


def test_precision_of_detectors_is_not_lost(tmp_path):
    """Their AP is from 0 to 1, and so are the differences."""
    values = [('student', '', 0, 0.049), ('student', '', 1, 0.058), ('cad', 3, 0, 0.069)]
    values.append(('cad', 3, 1, 0.081))
    rows = [f'a,{m},{w},{seed},coco/bbox_mAP,{ap},30,1,c,w,,,,' for m, w, seed, ap in values]
    table = make_markdown(summarise(read_cells([write(tmp_path / 'r.csv', rows)]), 'student'))
    # 12.706 is the 97.5 % quantile of Student's t with one degree of freedom
    low, high = (0.0215 + sign * 12.706 * 0.0015 for sign in (-1, 1))
    expected = f'| 0.0750 ± 0.0085 | +0.0215 ± 0.0021 | {low:+.4f} to {high:+.4f} |'
    assert f'| cad | 3 | 2 {expected}' in table


def test_a_baseline_with_the_same_values(tmp_path):
    cells = read_cells(
        [write(tmp_path / 'r.csv', ROWS + [f'a,cad,3,0,mIoU,70,30,1,c,w,1,1,,{SMALL}'])]
    )
    whole = next(cell.label for cell in cells if cell.weight == '10')
    assert find(summarise(cells, whole), 'student', '').comparison.difference.mean == pytest.approx(
        -1.5
    )
    # its part without the teacher names one cell alone, so that all are compared with that
    assert find(summarise(cells, 'naive-w10'), 'cad', '3').baseline == whole
    more = read_cells([write(tmp_path / 'm.csv', [
        *ROWS[3:5], f'a,naive,10,0,mIoU,40,30,1,c,w,,,,{LARGE}',
        f'a,cad,3,0,mIoU,70,30,1,c,w,,,,{SMALL}', f'a,lad,3,0,mIoU,70,30,1,c,w,,,,{LARGE}',
    ])])  # fmt: skip
    found = summarise(more, 'naive-w10')
    assert find(found, 'cad', '3').comparison.difference.mean == 9
    assert find(found, 'lad', '3').comparison.difference.mean == 30
    with pytest.raises(
        SummaryError, match='student.* could be compared with .*Give the whole name'
    ):
        summarise([*more, *read_cells([write(tmp_path / 's.csv', ROWS[:1])])], 'naive-w10')


def curves(axis):
    return {c.get_label(): c.lines[0].get_xydata().tolist() for c in axis.containers}


def test_figure_over_the_weight_has_a_curve_for_each_teacher(lines):
    (axis,) = draw_over_weight(lines, 'model.teacher_ckpt', 'weight').axes
    assert axis.get_xscale() == 'log'
    assert curves(axis) == {
        'alpha-0.1': [[10, 62.5], [100, 65]],
        'alpha-10': [[0.1, 66], [1, 50]],
    }
    (dashed,) = [line for line in axis.lines if line.get_label() == 'student']
    assert list(dashed.get_ydata()) == [61, 61]
    (axis,) = draw_over_weight(lines, 'model.teacher_ckpt', ANGULAR_WEIGHT).axes
    found = curves(axis)
    assert found['alpha-0.1'] == [[pytest.approx(0.6), 62.5], [pytest.approx(4), 65]]
    assert found['alpha-10'] == [[pytest.approx(40), 66], [pytest.approx(400), 50]]
    with pytest.raises(SummaryError, match='Tell them apart with --by KEY'):
        draw_over_weight([*lines, lines[3]], None, 'weight')


def test_figure_over_time_joins_the_students(lines):
    (axis,) = draw_over_time(lines).axes
    found = curves(axis)
    assert found['student alone'] == [[105, 61], [215, 63]]
    assert found['Naive'][-1] == [210, 62.5] or [210, 62.5] in found['Naive']


def test_files_of_the_tool(call_tool, tmp_path):
    source = write(tmp_path / 'r.csv', ROWS)
    code, out, err = call_tool(source, '-o', tmp_path / 'new/s', tool='summarise_sweep')
    assert code == 0, err
    names = ('s.csv', 's.md', 's_weight.png', 's_weight.svg', 's_time.png', 's_time.svg')
    assert all((tmp_path / 'new' / name).stat().st_size for name in names)
    assert (tmp_path / 'new/s.md').read_text() in out
    svg = (tmp_path / 'new/s_weight.svg').read_text()
    assert 'alpha-0.1' in svg and 'weight (log scale)' in svg


def test_csvs_of_before_can_be_read(tmp_path):
    old = write(
        tmp_path / 'o.csv', ['a,student,,0,mIoU,60,30,1,c,w', 'a,cad,3,0,mIoU,61,30,1,c,w'], OLD
    )
    lines = summarise(read_cells([old]), 'student')
    assert find(lines, 'cad', '3').comparison.difference.mean == 1
    assert draw_over_time(lines) is None and draw_over_weight(lines, None, 'weight') is None


@pytest.mark.parametrize(
    ('rows', 'args', 'message'),
    [
        ([], [], 'has no rows'),
        (ROWS[3:4], [], "--baseline student: a has no such trainings, only ['naive-w10-"),
        (ROWS[:1] * 2, [], 'student of a has seed 0 more than once'),
        ([*ROWS[:1], 'a,student,,1,mIoU,nan,30,1,c,w,,,,'], [], "'nan' is no finite number"),
        ([*ROWS[:1], 'a,student,,1,mIoU,60,90,1,c,w,,,,'], [], "more than one iters, ['30', '90']"),
        (
            [*ROWS[:1], 'a,cad,3,1,aAcc,60,30,1,c,w,,,,'],
            [],
            "more than one metric, ['aAcc', 'mIoU']",
        ),
        (ROWS, ['--by', 'lr'], "--by lr: the grid has the keys ['model.teacher_ckpt']"),
        (ROWS, ['--x', 'lr'], '--x lr: the grid has the keys'),
        (ROWS, ['--ylim', '2', '1'], 'LOW must be below HIGH'),
    ],
)
def test_what_cannot_be_summarised_is_said(call_tool, tmp_path, rows, args, message):
    source = write(tmp_path / 'r.csv', rows)
    code, _, err = call_tool(source, '-o', tmp_path / 'x', *args, tool='summarise_sweep')
    assert code != 0 and message in err
    assert not (tmp_path / 'x.md').exists()


def test_wrong_files_are_said(call_tool, tmp_path):
    code, _, err = call_tool(tmp_path / 'gone.csv', '-o', 'x', tool='summarise_sweep')
    assert code == 1 and 'is not a file; give the results.csv of a sweep' in err
    other = write(tmp_path / 'other.csv', ['1,2'], 'x,y\n')
    code, _, err = call_tool(other, '-o', 'x', tool='summarise_sweep')
    assert code == 1 and 'is it of weight_sweep.py' in err
