"""The benchmark of a distillation's step on a tiny pair: what it compares, not how fast it is."""

import json

import pytest
import torch

from rawkd_mm.analysis.benchmark import Benchmark, BenchmarkOptions
from rawkd_mm.analysis.benchmark_losses import BenchmarkError, check_losses
from rawkd_mm.analysis.benchmark_setting import schedule

NAMES = ['student', 'mmrazor', 'bf16+channels_last', 'auto']


@pytest.fixture(scope='module')
def measured(project, call_tool):
    """Output and JSON; the project's teacher may not be trained yet, so that it is random."""
    code, out, err = call_tool(
        'distillation.py', '--variants', *NAMES, '--iters', 2, '--warmup', 1, '--batch', 2,
        '--json', 'benchmark/result.json', '--random-teacher', '--memory-jobs', 2,
        tool='benchmark_distill',
    )  # fmt: skip
    assert code == 0, err
    return out, json.loads((project.folder / 'benchmark/result.json').read_text())


def test_json(measured):
    _, result = measured
    assert [row['variant'] for row in result['variants']] == NAMES
    rows = {row['variant']: row for row in result['variants']}
    assert (result['batch'], result['size'], result['iters']) == (2, [32, 32], 2)
    assert (result['schedule_iterations'], result['schedule_gpus']) == (4, 1)
    fast, theirs, student = rows['bf16+channels_last'], rows['mmrazor'], rows['student']
    floor = student['seconds'] + min(fast['teacher_seconds'], rows['auto']['teacher_seconds'])
    assert result['floor_seconds'] == pytest.approx(floor)
    for row in rows.values():
        assert len(row['all_seconds']) == 2, 'warm-up does not count'
        assert row['seconds'] == pytest.approx(sum(row['all_seconds']) / 2)
        assert row['ratio_to_mmrazor'] == pytest.approx(row['seconds'] / theirs['seconds'])
        assert row['ratio_to_floor'] == pytest.approx(row['seconds'] / floor)
        assert row['hours'] == pytest.approx(row['seconds'] * 4 / 3600)
        assert row['peak_megabytes'] > 100
    assert fast['teacher_settings'] == 'bf16, channels last'
    # of a training of 4 iterations, nothing is measured
    assert rows['auto']['teacher_settings'] == 'as it comes'
    assert student['teacher_seconds'] is None and theirs['teacher_seconds'] is None


def test_all_compute_the_same(measured):
    rows = {row['variant']: row['losses'] for row in measured[1]['variants']}
    distilled = 'distill.loss_lad_decode_head_bottleneck'
    assert set(rows['mmrazor']) == {distilled, *rows['student']}
    assert set(rows['bf16+channels_last']) == set(rows['mmrazor'])
    for key, value in rows['student'].items():
        assert rows['mmrazor'][key] == rows['bf16+channels_last'][key] == pytest.approx(value)
    expected = rows['mmrazor'][distilled]
    assert 0 < expected < 6
    assert rows['bf16+channels_last'][distilled] == pytest.approx(expected, rel=0.05)
    assert rows['bf16+channels_last'][distilled] != expected, 'it is not the same computation'


def test_table(measured):
    out, result = measured
    for row in result['variants']:
        assert f'| {row["variant"]} | {row["seconds"]:.3f} |' in out
    assert '2 x 3 x 32 x 32, student in float32' in out
    assert 'Hours: 4 iterations' in out


ALONE = """
import json, sys
name, jobs = sys.argv[2], sys.argv[4]
with open('{log}', 'a') as file:
    file.write(f'{{name}} {{jobs}}\\n')
if name == 'never' or (name == 'large' and jobs != '1'):
    sys.exit(f'OutOfMemoryError: {{name}}')
print(json.dumps(dict(megabytes=len(name))))
"""


def test_memory_that_fails_beside_others_is_measured_alone(project, tmp_path):
    script, log = tmp_path / 'memory.py', tmp_path / 'log'
    script.write_text(ALONE.format(log=log))
    options = BenchmarkOptions(str(project.folder / 'distillation.py'), memory_jobs=3)
    benchmark = Benchmark(options, torch.device('cpu'), [str(script)])
    advanced = []
    found = benchmark.memory_in_fresh_processes(['small', 'large', 'x'], lambda: advanced.append(1))
    assert found == dict(small=5, large=5, x=1) and len(advanced) == 3
    lines = log.read_text().split('\n')
    assert sorted(lines[:3]) == ['large 3', 'small 3', 'x 3'] and lines[3:] == ['large 1', '']
    with pytest.raises(BenchmarkError, match='OutOfMemoryError: never'):
        benchmark.memory_in_fresh_processes(['small', 'never'], lambda: None)


@pytest.mark.parametrize('enabled', [True, False])
def test_cudnn_measures_where_a_training_lets_it(project, monkeypatch, enabled):
    monkeypatch.setattr(torch.backends.cudnn, 'benchmark', not enabled)
    options = BenchmarkOptions(
        str(project.folder / 'distillation.py'),
        cfg_options={'env_cfg.cudnn_benchmark': enabled},
        random_teacher=True,
    )
    Benchmark(options, torch.device('cpu'))
    assert torch.backends.cudnn.benchmark is enabled


def test_losses_that_differ_stop_it():
    same = {'student': {'student.x': 1.0}, 'fp32': {'student.x': 1.0001, 'distill.y': 2.0}}
    check_losses(same, amp=False)
    for key, value in (('student.x', 1.01), ('distill.y', float('nan'))):
        wrong = {**same, 'mmrazor': {'student.x': 1.0, key: value}}
        with pytest.raises(BenchmarkError, match=f'{key} is .* of mmrazor and .* do not'):
            check_losses(wrong, amp=False)
    low = {**same, 'bf16': {'student.x': 1.0, 'distill.y': 2.05}}
    check_losses(low, amp=False)
    check_losses({'a': {'student.x': 1.0}, 'b': {'student.x': 1.01}}, amp=True)


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--variants', 'bf16+fast'], 'bf16+fast: expected student, mmrazor, configured or'),
        (['--iters', '0'], '--iters must be at least 1, got 0'),
        (['--memory-jobs', '0'], '--memory-jobs must be at least 1, got 0'),
        (['--device', 'cuda'], 'finds no GPU'),
    ],
)
def test_wrong_arguments(call_tool, args, message):
    code, _, err = call_tool('distillation.py', *args, tool='benchmark_distill')
    assert code and message in err


def test_what_is_no_distillation(call_tool):
    code, _, err = call_tool('student.py', tool='benchmark_distill')
    assert code and 'student.py is no distillation' in err


def test_length_of_the_schedule():
    from mmengine.config import ConfigDict

    coco = ConfigDict(
        train_cfg=dict(max_epochs=24),
        train_dataloader=dict(batch_size=2, dataset=dict(ann_file='instances_train2017.json')),
        auto_scale_lr=dict(base_batch_size=16),
    )
    # MMDetection's logs count 7330 iterations an epoch
    assert schedule(coco) == (24 * 7330, 8)
    coco.train_dataloader.dataset.ann_file = 'mine.json'
    assert schedule(coco) == (None, 8)
