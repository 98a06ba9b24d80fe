"""The programs in benchmarks/ run: on a tiny pair, and without looking at how fast."""

import csv
import importlib.util
import os
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / 'benchmarks'


def test_precision(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location('precision', BENCHMARKS / 'precision.py')
    precision = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(precision)
    tiny = 'quickstart/lad_bottleneck_pspnet-r18-w12_pspnet-r18-w4_1xb16-4k_digit-scenes-48x48.py'
    monkeypatch.setattr(precision, 'CONFIGS', (tiny,))
    out = tmp_path / 'precision.csv'
    command = ['precision.py', str(out), '--device', 'cpu', '--size', '32', '48']
    monkeypatch.setattr(sys, 'argv', command)
    precision.main()
    with out.open(newline='') as file:
        rows = list(csv.DictReader(file))
    assert [row['loss'] for row in rows] == ['LADLoss', 'CADLoss']
    for row in rows:
        assert (row['size'], row['weights'], row['precision']) == ('32x48', 'random', 'bf16')
        assert row['config'] == Path(tiny).name and 'cores' in row['device']
        assert 0 < float(row['angle_channel']) < 3
        assert 0 < float(row['loss_value']) < 6
        assert 0 < float(row['gradient_change']) < 0.3


def test_few_labels_detector(tmp_path, monkeypatch, capsys):
    # few_labels.py sets these where they are not set, which is not for the tests that follow
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', os.environ.get('CUDA_VISIBLE_DEVICES', '0'))
    monkeypatch.syspath_prepend(BENCHMARKS)
    detector = importlib.import_module('few_labels_detector')
    tasks = [detector.Task(200, *way, 800, 1) for way in (('alone', 0), ('lad', 0), ('lad', 4000))]
    alone, lad, more = (detector.config(task, 'teacher.pth', str(tmp_path)) for task in tasks)
    labelled = [cfg.train_dataloader.dataset.indices for cfg in (alone, lad, more)]
    assert labelled[0] == labelled[1] == labelled[2] and len(set(labelled[0])) == 200
    assert alone.model.type == 'RetinaNet' and lad.model.type == 'FrozenTeacherDistill'
    assert not alone.custom_hooks and not lad.custom_hooks
    unlabelled = more.custom_hooks[0].dataset.indices
    assert len(unlabelled) == 4000 and min(unlabelled) > max(labelled[0])

    out = tmp_path / 'few.csv'
    values = zip(tasks, (30.0, 31.5, 40.0))
    rows = [','.join(map(str, (*task, value, 1))) for task, value in values]
    out.write_text('\n'.join([','.join((*detector.Task._fields, 'mAP', 'seconds')), *rows]) + '\n')
    monkeypatch.setattr(sys, 'argv', ['few_labels_detector.py', '--summary', '--out', str(out)])
    detector.main()
    assert '| 200 | LAD | 4000 | 1 | 40.0 | +10.0 |' in capsys.readouterr().out
    assert '| 200 | student alone |  | 1 | 30.0 |  |' in (tmp_path / 'few_summary.md').read_text()
