"""The demo, with a few iterations: everything it promises but the numbers."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


def run_demo(python, folder, *args, **environment):
    command = [python, ROOT / 'tools/demo.py', '--work-dir', folder / 'demo']
    command += ['--data-root', folder / 'data', '--iters', 4, '--train', 32, '--val', 8, *args]
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, 'OMP_NUM_THREADS': '1', **environment},
    )


@pytest.fixture(scope='module')
def demo(fast_python):
    """Runs the demo, and all that it starts, with everything imported already."""
    return lambda *args: run_demo(fast_python, *args)


@pytest.fixture(scope='module')
def folder(tmp_path_factory, demo):
    folder = tmp_path_factory.mktemp('demo')
    process = demo(folder)
    assert process.returncode == 0, process.stderr + process.stdout
    (folder / 'stdout').write_text(process.stdout)
    return folder


def test_table_has_a_row_for_every_training(folder):
    table = (folder / 'demo/table.md').read_text().splitlines()
    assert [row.split('|')[1].strip() for row in table[2:]] == [
        'teacher',
        'student alone',
        'LAD',
        'CAD',
    ]
    assert all(line in (folder / 'stdout').read_text() for line in table)


def test_numbers_are_those_of_the_logs(folder):
    results = json.loads((folder / 'demo/results.json').read_text())
    for method, runs in results.items():
        logs = list((folder / f'demo/{method.lower()}-seed0').glob('*/vis_data/scalars.json'))
        entries = [json.loads(line) for line in logs[0].read_text().splitlines()]
        assert runs['0']['mIoU'] == [e['mIoU'] for e in entries if 'mIoU' in e][-1]
        assert Path(runs['0']['checkpoint']).is_file()
        distilled = any('/cos_theta' in key for entry in entries for key in entry)
        assert distilled == (method in ('LAD', 'CAD'))


@pytest.mark.parametrize('name', ['predictions.png', 'curves.png'])
def test_pictures_show_something(folder, name):
    picture = np.asarray(Image.open(folder / 'demo' / name).convert('RGB'))
    assert min(picture.shape[:2]) > 300
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50


def test_it_ends_with_the_report(folder):
    path = folder / 'demo/report.html'
    assert (folder / 'stdout').read_text().splitlines()[-1] == str(path)
    text = path.read_text()
    assert text.count('<svg') >= 6 and text.count('src="data:image/') == 4 * (5 + 3)


def test_second_run_trains_nothing(folder, demo):
    before = (folder / 'demo/lad-seed0/iter_4.pth').stat().st_mtime_ns
    start = time.time()
    process = demo(folder)
    assert process.returncode == 0, process.stderr
    assert (folder / 'demo/table.md').read_text().strip() in process.stdout
    assert (folder / 'demo/lad-seed0/iter_4.pth').stat().st_mtime_ns == before
    logs = list((folder / 'demo').glob('*/*/vis_data/scalars.json'))
    assert all(log.stat().st_mtime < start for log in logs)


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--iters', '8'], 'Choose another --work-dir'),
        (['--iters', '1'], '--iters must be at least 2, got 1'),
        (['--seeds', '1', '1'], '--seeds must differ'),
        (['--jobs', '0'], '--jobs must be at least 1, got 0'),
        (['--train', '33'], '--overwrite'),
    ],
)
def test_what_cannot_be_done_is_said(folder, demo, args, message):
    process = demo(folder, *args)
    assert process.returncode != 0
    assert message in process.stderr + process.stdout


def test_detection_needs_compiled_operators(tmp_path):
    (tmp_path / 'mmcv').mkdir()
    (tmp_path / 'mmcv/__init__.py').touch()
    process = run_demo(sys.executable, tmp_path, '--task', 'det', PYTHONPATH=str(tmp_path))
    assert process.returncode == 2
    assert '--task det needs MMDetection and MMCV with its compiled operators' in process.stderr


@pytest.mark.slow
@pytest.mark.usefixtures('mmdet')
def test_detection(tmp_path, demo):
    process = demo(tmp_path, '--task', 'det')
    assert process.returncode == 0, process.stderr + process.stdout
    results = json.loads((tmp_path / 'demo/results.json').read_text())
    assert list(results) == ['teacher', 'student', 'LAD', 'CAD']
    for method, runs in results.items():
        (log,) = (tmp_path / f'demo/{method.lower()}-seed0').glob('*/vis_data/scalars.json')
        entries = [json.loads(line) for line in log.read_text().splitlines()]
        validations = [e['coco/bbox_mAP'] for e in entries if 'coco/bbox_mAP' in e]
        assert len(validations) == 4
        assert runs['0']['AP'] == 100 * validations[-1]
        pairs = {key.split('/')[1] for e in entries for key in e if key.endswith('/cos_theta')}
        assert len(pairs) == (3 if method in ('LAD', 'CAD') else 0)
    header, _, *rows = (tmp_path / 'demo/table.md').read_text().splitlines()
    assert header.startswith('| | AP |')
    assert len(rows) == 4 and all(row in process.stdout for row in rows)
    assert (tmp_path / 'demo/report.html').read_text().count('src="data:image/') == 4 * (5 + 3 * 3)
    for name in ('predictions.png', 'curves.png'):
        picture = np.asarray(Image.open(tmp_path / 'demo' / name).convert('RGB'))
        assert min(picture.shape[:2]) > 300
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50
