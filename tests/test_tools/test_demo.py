"""The demo, with a few iterations: everything it promises but the numbers."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from rawkd_mm.analysis.demo import Overall, options
from rawkd_mm.analysis.demo_tasks import Demo, Run
from rawkd_mm.analysis.progress import make_progress

ROOT = Path(__file__).resolve().parents[2]
METRIC = 'coco/bbox_mAP'


def run_demo(python, folder, *args, **environment):
    command = [python, ROOT / 'tools/demo.py', '--work-dir', folder / 'demo']
    command += ['--data-root', folder / 'data', '--iters', 4, '--train', 60, '--val', 8, *args]
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
        'student alone, as long as CAD',
        'LAD',
        'CAD',
    ]
    assert all(line in (folder / 'stdout').read_text() for line in table)


def test_numbers_are_those_of_the_logs(folder):
    results = json.loads((folder / 'demo/results.json').read_text())
    for method, runs in results.items():
        if method == 'teacher':
            continue
        entries = logged(folder / f'demo/{method.lower()}-seed0')
        assert runs['0']['mIoU'] == [e['mIoU'] for e in entries if 'mIoU' in e][-1]
        assert Path(runs['0']['checkpoint']).is_file()
        distilled = any('/cos_theta' in key for entry in entries for key in entry)
        unlabelled = any(key.startswith('distill_unlabelled.') for e in entries for key in e)
        assert distilled == unlabelled == (method in ('LAD', 'CAD'))


def logged(folder):
    (log,) = folder.glob('*/vis_data/scalars.json')
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_the_teacher_is_the_shipped_one(folder, fast_python):
    (teacher,) = json.loads((folder / 'demo/results.json').read_text())['teacher'].values()
    shipped = ROOT / 'configs/quickstart/weights/pspnet_r18-w12_1xb16-4k_digit-scenes-48x48.pth'
    assert Path(teacher['checkpoint']) == shipped
    # as tools/test.py evaluates it on the same images
    config = shipped.parents[1] / f'{shipped.stem}.py'
    options = [f'test_dataloader.dataset.data_root={folder / "data"}']
    command = [fast_python, ROOT / 'tools/test.py', config, shipped, '--work-dir', folder / 'test']
    subprocess.run([*command, '--cfg-options', *options], check=True, capture_output=True)
    tested = json.loads((folder / 'test/test_metrics.json').read_text())['metrics']
    assert teacher['mIoU'] == pytest.approx(tested['mIoU'], abs=0.006)


def test_a_student_trains_as_long_as_cad(folder):
    """Its iterations follow from the seconds that CAD and the student alone logged."""

    def median(name):
        return np.median([e['time'] for e in logged(folder / f'demo/{name}-seed0') if 'loss' in e])

    results = json.loads((folder / 'demo/results.json').read_text())
    ratio = max(1, median('cad') / median('student'))
    assert results['longer']['0']['iters'] == round(4 * ratio)
    assert logged(folder / 'demo/longer-seed0')[-1]['step'] == round(4 * ratio)


def dataset(folder):
    (config,) = folder.glob('*.py')
    return Config.fromfile(config).train_dataloader.dataset


def test_all_students_of_a_seed_have_the_same_labels(folder, tmp_path):
    chosen = [
        dataset(folder / f'demo/{m}-seed0').indices for m in ('student', 'longer', 'lad', 'cad')
    ]
    assert chosen == [list(range(50))] * 4
    demo = Demo('seg', tmp_path, tmp_path, [0, 1, 2], None, 4000, 300, 1)

    def indices(seed):
        found = [o for o in options(Run('CAD', seed), demo, 4, 50, Path('t')) if 'indices=' in o]
        return json.loads(found[0].partition('=')[2])

    assert indices(2) == list(range(100, 150)) and indices(79) == list(range(3950, 4000))
    assert indices(80) == list(range(50))


def test_progress_is_shown_at_once_and_every_half_minute(folder):
    first, *_ = (folder / 'stdout').read_text().splitlines()
    assert first.startswith('Data, 4 trainings, figures and report: about ')
    *_, last = (folder / 'stdout').read_text().splitlines()
    times = re.findall(r'([a-z ]+) (\d+) \((\d+)\)', last.partition(': ')[2])
    assert last.startswith('Seconds, and in brackets those of the processor: ')
    names, *columns = zip(*times)
    assert [name.strip() for name in names] == ['data', 'trainings', 'figures', 'report', 'in all']
    for column in columns:
        *steps, total = map(int, column)
        assert sum(steps) == pytest.approx(total, abs=3) and total > 0


def test_time_that_is_left():
    progress = make_progress()
    overall = Overall(progress, dict(a=60.0, b=180.0), jobs=2)
    assert progress.tasks[0].fields['note'] == '0%, 2 min left'
    task = progress.add_task('a', total=10, completed=10, note='')
    overall.show()
    assert progress.tasks[0].completed == 1
    assert progress.tasks[0].fields['note'].startswith('25%')
    progress.update(progress.add_task('b', total=100, note=''), completed=100)
    overall.show()
    assert progress.tasks[0].fields['note'] == '100%, 0 s left' and task is not None


@pytest.mark.parametrize('name', ['predictions.png', 'curves.png'])
def test_pictures_show_something(folder, name):
    picture = np.asarray(Image.open(folder / 'demo' / name).convert('RGB'))
    assert min(picture.shape[:2]) > 300
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50


def test_it_ends_with_the_report(folder):
    path = folder / 'demo/report.html'
    assert str(path) in (folder / 'stdout').read_text().splitlines()
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
        (['--train', '61'], '--overwrite'),
        (['--from-scratch'], "teacher: 'shipped' there, 'from scratch' asked for"),
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
def test_from_scratch(tmp_path, demo):
    process = demo(tmp_path, '--from-scratch', '--seeds', '0', '1')
    assert process.returncode == 0, process.stderr + process.stdout
    results = json.loads((tmp_path / 'demo/results.json').read_text())
    assert {method: list(runs) for method, runs in results.items()} == {
        'teacher': ['0'],
        **{method: ['0', '1'] for method in ('student', 'longer', 'LAD', 'CAD')},
    }
    checkpoint = results['teacher']['0']['checkpoint']
    assert checkpoint == str(tmp_path / 'demo/teacher-seed0/iter_4.pth')
    (config,) = (tmp_path / 'demo/lad-seed1').glob('*.py')
    assert Config.fromfile(config).model.teacher_ckpt == checkpoint
    assert results['teacher']['0']['seconds'] > 0


@pytest.mark.slow
@pytest.mark.usefixtures('mmdet')
def test_detection(tmp_path, demo):
    process = demo(tmp_path, '--task', 'det', '--train', '210')
    assert process.returncode == 0, process.stderr + process.stdout
    results = json.loads((tmp_path / 'demo/results.json').read_text())
    assert list(results) == ['teacher', 'student', 'longer', 'LAD', 'CAD']
    assert 0 < results['teacher']['0']['AP'] == 100 * results['teacher']['0']['metrics'][METRIC]
    for method, runs in results.items():
        if method == 'teacher':
            continue
        entries = logged(tmp_path / f'demo/{method.lower()}-seed0')
        validations = [e[METRIC] for e in entries if METRIC in e]
        assert len(validations) >= 4
        assert runs['0']['AP'] == 100 * validations[-1]
        pairs = {key.split('/')[1] for e in entries for key in e if key.endswith('/cos_theta')}
        assert len(pairs) == (3 if method in ('LAD', 'CAD') else 0)
        assert dataset(tmp_path / f'demo/{method.lower()}-seed0').indices == list(range(200))
    header, _, *rows = (tmp_path / 'demo/table.md').read_text().splitlines()
    assert header.startswith('| | AP |')
    assert len(rows) == 5 and all(row in process.stdout for row in rows)
    assert (tmp_path / 'demo/report.html').read_text().count('src="data:image/') == 4 * (5 + 3 * 3)
    for name in ('predictions.png', 'curves.png'):
        picture = np.asarray(Image.open(tmp_path / 'demo' / name).convert('RGB'))
        assert min(picture.shape[:2]) > 300
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50
