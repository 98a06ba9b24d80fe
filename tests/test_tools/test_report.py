"""The report of a training, also in a browser."""

import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from chromium import find_chromium, open_page
from mmengine.config import Config
from mmengine.registry import DefaultScope
from test_detector import make_detector
from tool_project import TOOLS

from rawkd_mm.analysis import feature_angles
from rawkd_mm.analysis.report import ReportError, write_report
from rawkd_mm.analysis.work_dir import WorkDir

REPORT = TOOLS / 'analysis_tools/report.py'
SECTIONS = ['metrics', 'curves', 'pictures', 'angles', 'training']


def parse_args():
    """Read sys.argv as the tool does."""
    spec = importlib.util.spec_from_file_location('report', REPORT)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return vars(tool.parse_args())


@pytest.fixture(scope='module')
def folder(project, one_process_log):
    """The project's folder, with the report of a distillation and a student alone."""
    project.run(
        TOOLS / 'train.py', 'distillation.py', '--student-alone', '--work-dir', 'runs/alone'
    )
    printed = project.run(
        REPORT, 'runs/one', '--baseline', 'runs/alone', '--images', '2', '-o', 'report/index.html',
        fresh=True,
    )  # fmt: skip
    assert printed.splitlines()[-1] == 'report/index.html'
    return project.folder


@pytest.fixture(scope='module')
def text(folder):
    return (folder / 'report/index.html').read_text()


def write(monkeypatch, *args):
    """Run the tool here; gives the report."""
    monkeypatch.setattr(sys, 'argv', ['report.py', *map(str, args)])
    with DefaultScope.overwrite_default_scope('mmseg'):
        return write_report(**parse_args()).read_text()


def cells(text, heading):
    """Rows of the first table below a heading, without tags."""
    rows = re.findall(r'<tr>(.*?)</tr>', text[text.index(heading) :].split('</table>')[0], re.S)
    return [re.findall(r'<t[hd][^>]*>(.*?)</t[hd]>', row) for row in rows]


def test_metrics_are_those_of_the_logs(project, folder, text):
    header, *rows = cells(text, '<h2>Metrics')
    assert header[1:] == ['teacher', 'student alone', 'distilled', 'vs alone', 'vs teacher']
    for column, run in enumerate(('runs/teacher', 'runs/alone', 'runs/one'), 1):
        (logged,) = [entry for entry in project.scalars(run) if 'mIoU' in entry]
        assert {row[0] for row in rows} == {'aAcc', 'mIoU', 'mAcc'}
        # the teacher was trained, and validated, with mixed precision
        tolerance = 0.5 if run == 'runs/teacher' else 0.06
        for row in rows:
            assert float(row[column]) == pytest.approx(logged[row[0]], abs=tolerance)


def test_classes_average_to_the_metric_and_are_sorted_by_change(text):
    (mean,) = [row for row in cells(text, '<h2>Metrics') if row[0] == 'mIoU']
    _, *rows = cells(text, '<h3>IoU of each class')
    assert sorted(row[0] for row in rows) == ['background', *(f'digit {i}' for i in range(10))]
    for column in (1, 2, 3):
        values = [float(row[column]) for row in rows if row[column] != '–']
        assert np.mean(values) == pytest.approx(float(mean[column]), abs=0.1)
    changes = [float(row[4].replace('−', '-')) for row in rows if row[4]]
    assert changes == sorted(changes, reverse=True)
    assert changes == pytest.approx(
        [float(row[3]) - float(row[2]) for row in rows if row[4]], abs=0.11
    )


def test_it_tells_command_and_environment(text):
    assert 'train.py distillation.py --work-dir runs/one' in text
    assert 'System environment:' in text and 'FrozenTeacherDistill' in text
    assert '--baseline runs/alone' in text


def test_a_second_call_evaluates_nothing(folder, monkeypatch):
    monkeypatch.chdir(folder)
    cache = Path('runs/one/report_cache.json')
    before = cache.read_bytes()
    cache.write_bytes(before.replace(b'"IoU"', b'"cached"'))
    second = write(monkeypatch, 'runs/one', '--baseline', 'runs/alone', '--images', '0')
    cache.write_bytes(before)
    assert 'cached of each class' in second and '<img' not in second


@pytest.fixture(scope='session')
def page(tmp_path_factory):
    if find_chromium() is None:
        pytest.skip('no Chromium: on Debian and Ubuntu, apt-get install chromium')
    with open_page(tmp_path_factory.mktemp('chromium') / 'profile') as page:
        yield page


def check_in_browser(page, file, pictures):
    """Open a report as file: no complaint, nothing fetched, pictures and charts, no scrolling."""
    page.problems.clear()
    page.requests.clear()
    shots = {}
    for width, mobile in ((1200, False), (360, True)):
        for scheme in ('light', 'dark'):
            page.show_as(width, 800, mobile, scheme)
            page.open(file.as_uri())
            shots[width, scheme] = page.screenshot()
            sizes = page.evaluate('[...document.images].map(i => i.complete ? i.naturalWidth : 0)')
            assert len(sizes) == pictures and min(sizes) > 100
            assert page.evaluate('document.documentElement.scrollWidth <= window.innerWidth')
            charts = page.evaluate(
                '[...document.querySelectorAll("svg")].map(s => [s.clientWidth, s.clientHeight])'
            )
            assert charts and all(w > 200 and h > 20 for w, h in charts)
            assert page.evaluate('new Set([...document.querySelectorAll("[id]")].map(e => e.id)).size'
                                 ' == document.querySelectorAll("[id]").length')  # fmt: skip
    assert page.problems == []
    fetched = [url for url in page.requests if not url.startswith('data:')]
    assert set(fetched) == {file.as_uri()}
    assert page.evaluate('[...document.querySelectorAll("section")].map(s => s.id)') == SECTIONS
    return shots


def test_it_works_in_a_browser(page, folder):
    shots = check_in_browser(page, folder / 'report/index.html', pictures=2 * (5 + 3))
    assert len(set(shots.values())) == 4
    for scheme, is_dark in (('light', False), ('dark', True)):
        page.show_as(1200, 800, scheme=scheme)
        colours = page.evaluate(
            '[getComputedStyle(document.body).backgroundColor,'
            ' getComputedStyle(document.querySelector("svg text")).fill]'
        )
        paper, ink = (np.mean([int(x) for x in re.findall(r'\d+', c)[:3]]) for c in colours)
        assert (paper < 60 and ink > 200) if is_dark else (paper > 200 and ink < 60)
    assert page.print().startswith(b'%PDF-')


def test_names_are_no_markup(folder, page, monkeypatch, tmp_path):
    """What comes from configs and logs is text, in charts too."""
    shutil.copytree(folder / 'runs/one', tmp_path / '<b>run')
    (log,) = (tmp_path / '<b>run').glob('*/vis_data/scalars.json')
    log.write_text(log.read_text().replace('loss_lad_', 'loss_<img src=x onerror=alert(1)>$x_'))
    write(monkeypatch, tmp_path / '<b>run', '--logs-only')
    page.open((tmp_path / '<b>run/report.html').as_uri())
    assert page.evaluate('document.querySelectorAll("img, b").length') == 0
    assert page.evaluate('document.querySelector("h1").textContent') == '<b>run'
    assert page.evaluate('document.querySelector("#curves").textContent.includes("loss_<img")')


def fail(monkeypatch, *args):
    """Run the tool here; gives its message."""
    monkeypatch.setattr(sys, 'argv', ['report.py', *map(str, args)])
    with DefaultScope.overwrite_default_scope('mmseg'), pytest.raises(ReportError) as error:
        write_report(**parse_args())
    return str(error.value)


def test_errors_say_what_to_do(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(folder)
    assert "'nowhere' is not a folder" in fail(monkeypatch, 'nowhere')
    assert 'is not the work dir of a training' in fail(monkeypatch, 'data')
    run = tmp_path / 'run'
    shutil.copytree('runs/one', run)
    message = fail(monkeypatch, run, '--teacher-ckpt', 'gone.pth')
    assert "'gone.pth' is no file" in message and '--teacher-ckpt PATH' in message
    message = fail(monkeypatch, run, '--cfg-options', 'val_dataloader.dataset.data_root=gone')
    assert "no folder 'gone'" in message and '--logs-only' in message
    assert '--teacher-ckpt: runs/alone is no distillation' in fail(
        monkeypatch, 'runs/alone', '--teacher-ckpt', 'x.pth'
    )
    assert 'runs/one is a distillation' in fail(monkeypatch, run, '--baseline', 'runs/one')
    for path in run.glob('*.pth'):
        path.write_bytes(path.read_bytes()[:1000])
    message = fail(monkeypatch, run)
    assert 'no whole checkpoint' in message and 'iter_4.pth: it was cut off' in message


class RunsCode:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, 'w')


def test_a_checkpoint_runs_no_code(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(folder)
    run, trace = tmp_path / 'run', tmp_path / 'it_ran'
    shutil.copytree('runs/one', run)
    for path in run.glob('*.pth'):
        torch.save(dict(state_dict=RunsCode(trace)), path)
    message = fail(monkeypatch, run)
    assert 'is not loaded' in message and 'io.open' in message
    assert not trace.exists()


def test_unfinished_training_from_its_logs_alone(folder, monkeypatch, tmp_path):
    run = tmp_path / 'run'
    shutil.copytree(folder / 'runs/one', run, ignore=shutil.ignore_patterns('*.pth'))
    (log,) = run.glob('*/vis_data/scalars.json')
    lines = [line for line in log.read_text().splitlines() if 'geometry/' not in line]
    log.write_text('\n'.join(lines[:3]))  # iterations 1 to 3
    text = write(monkeypatch, run, '--logs-only')
    assert 'is not finished: iteration 3 of 4' in text
    assert 'No validation was logged.' in text
    assert 'FeatureGeometryHook' in text.split('id="training"')[0]
    assert '--baseline WORK_DIR' in text


def test_teacher_without_its_head_is_left_out(folder, monkeypatch, tmp_path):
    """The distillation did without it."""
    weights = torch.load(folder / 'runs/teacher/iter_4.pth', weights_only=False)['state_dict']
    weights = {name: v for name, v in weights.items() if 'conv_seg' not in name}
    torch.save(dict(state_dict=weights), tmp_path / 'teacher.pth')
    shutil.copytree(folder / 'runs/one', tmp_path / 'run')
    monkeypatch.chdir(folder)
    teacher = ('--teacher-ckpt', tmp_path / 'teacher.pth')
    text = write(monkeypatch, tmp_path / 'run', *teacher, '--images', '1')
    assert 'The teacher is not evaluated:' in text and 'decode_head.conv_seg.weight' in text
    assert cells(text, '<h2>Metrics')[0][1:] == ['distilled']
    assert text.count('<img') == 3 + 2  # without a student alone


def test_a_training_without_teacher(folder, monkeypatch):
    monkeypatch.chdir(folder)
    text = write(monkeypatch, 'runs/alone', '--images', '1')
    assert 'This training has no teacher.' in text and 'Distillation losses' not in text
    assert text.count('<img') == 3


BY_EPOCH = """
_base_ = './student.py'
train_cfg = dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=3, val_interval=1)
train_dataloader = dict(sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True))
default_hooks = dict(
    logger=dict(log_metric_by_epoch=True), checkpoint=dict(by_epoch=True, interval=1))
log_processor = dict(by_epoch=True)
"""


def test_epochs_become_iterations(project):
    (project.folder / 'by_epoch.py').write_text(BY_EPOCH)
    project.run(TOOLS / 'train.py', 'by_epoch.py', '--work-dir', 'runs/by_epoch')
    work_dir = WorkDir.find(project.folder / 'runs/by_epoch')
    # 32 images in batches of 8
    assert list(work_dir.curve('loss')) == list(range(1, 13))
    assert list(work_dir.curve('mIoU')) == [4, 8, 12]
    logged = [entry['mIoU'] for entry in project.scalars('runs/by_epoch') if 'mIoU' in entry]
    assert list(work_dir.curve('mIoU').values()) == logged
    assert work_dir.progress(Config.fromfile(work_dir.config_file)) == (3, 3, 'epoch')
    assert work_dir.find_checkpoint().name == 'epoch_3.pth'


def test_validations_that_are_logged_by_an_epoch_that_never_ends(folder, tmp_path):
    """LoggerHook's default is to log the epoch, and loops of iterations stay in epoch 0."""
    run = tmp_path / 'run'
    shutil.copytree(folder / 'runs/one', run, ignore=shutil.ignore_patterns('*.pth'))
    expected = WorkDir.find(run).curve('mIoU')
    assert list(expected) == [4]
    (log,) = run.glob('*/vis_data/scalars.json')
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    for entry in entries:
        if 'mIoU' in entry:
            entry['step'] = 0
    log.write_text('\n'.join(map(json.dumps, entries)))
    assert WorkDir.find(run).curve('mIoU') == expected


def test_angles_against_numpy():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 1, 6, 4, 5, generator=generator, dtype=torch.float64)
    s, t = student[0].numpy(), teacher[0].numpy()
    cosine = (s * t).sum(0) / np.linalg.norm(s, axis=0) / np.linalg.norm(t, axis=0)
    np.testing.assert_allclose(
        feature_angles.angle_map(student, teacher), np.degrees(np.arccos(cosine)), atol=1e-9
    )
    assert feature_angles.angle_map(student, 3 * student).max() < 1e-5

    targets = torch.randn(3, 1, 7, 4, 5, generator=generator, dtype=torch.float64)
    inputs = torch.randn(3, 1, 6, 4, 5, generator=generator, dtype=torch.float64)
    solution = feature_angles.LeastSquaresMap()
    for x, y in zip(inputs, targets):
        solution.add(x, y)
    solution.fit()
    rows = inputs.permute(0, 1, 3, 4, 2).reshape(-1, 6).numpy()
    rows = np.c_[rows, np.ones(len(rows))]
    wanted = targets.permute(0, 1, 3, 4, 2).reshape(-1, 7).numpy()
    weight, *_ = np.linalg.lstsq(rows, wanted, rcond=None)
    mapped = solution(inputs[1])[0].permute(1, 2, 0).reshape(-1, 7).numpy()
    np.testing.assert_allclose(mapped, rows[20:40] @ weight, atol=1e-9)


def test_images_to_fit_are_not_shown():
    choose = feature_angles._images_to_fit
    chosen = choose(300, [0, 75, 150, 225])
    assert len(set(chosen)) == 16 and not set(chosen) & {0, 75, 150, 225}
    assert max(chosen) < 300 and max(np.diff(chosen)) < 21
    assert choose(2, [0, 1]) == [0, 1]


@pytest.mark.usefixtures('mmdet')
def test_detection(project, page, once):
    """With the detector of test_detector.py, and one trained alone, more briefly."""
    once('detector', lambda: make_detector(project.folder))
    train = (TOOLS / 'train.py', 'detector_lad.py', '--work-dir')
    shorter = ['--cfg-options', 'train_cfg.max_iters=20', 'train_cfg.val_interval=20']
    shorter += ['default_hooks.checkpoint.interval=20']
    project.run(*train, 'runs/report_det')
    project.run(*train, 'runs/report_det_alone', '--student-alone', *shorter)
    project.run(REPORT, 'runs/report_det', '--baseline', 'runs/report_det_alone', '--images', '2')
    file = project.folder / 'runs/report_det/report.html'
    text = file.read_text()
    (row,) = [row for row in cells(text, '<h2>Metrics') if row[0] == 'bbox mAP']
    (logged,) = [e for e in project.scalars('runs/report_det') if 'coco/bbox_mAP' in e]
    assert float(row[3]) == pytest.approx(100 * logged['coco/bbox_mAP'], abs=0.06)
    change = float(row[4].replace('−', '-'))
    assert change == pytest.approx(float(row[3]) - float(row[2]), abs=0.11)
    _, *classes = cells(text, '<h3>AP of each class')
    values = [float(row[3]) for row in classes if row[3] != '–']
    assert np.mean(values) == pytest.approx(float(row[3]), abs=0.1)
    check_in_browser(page, file, pictures=2 * (5 + 3 * 3))
