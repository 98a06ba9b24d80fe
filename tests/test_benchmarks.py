"""The programs in benchmarks/ run: on a tiny pair, and without looking at how fast."""

import csv
import importlib.util
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
