"""Real trainings of a few iterations over a grid: what is trained, paired, resumed, and for how long."""

import json
import math
import os
import shutil
import subprocess
import sys

import pytest
import torch
from mmengine.config import Config

from rawkd_mm.analysis.equal_time import equal_time_iterations, stretch_schedule
from rawkd_mm.analysis.grid import cell_label
from rawkd_mm.analysis.one_training import Training, TrainingError, add_session, processor_seconds
from rawkd_mm.analysis.sweep_results import finished_in, label_of, read_csv, write_csv
from rawkd_mm.analysis.trainings import _end, _poll
from rawkd_mm.analysis.weight_sweep import Sweep, run_sweeps

# A learning rate of 0: what a checkpoint has are the first weights, and BatchNorm's running statistics
# of all batches. Dropout shows in the losses.
PAIRED = """
_base_ = './distillation.py'
student = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True, pad_val=0, seg_pad_val=255, size=(32, 32)),
    backbone=dict(
        type='ResNetV1c', depth=18, base_channels=4, num_stages=4, out_indices=(0, 1, 2, 3),
        strides=(1, 1, 1, 1), dilations=(1, 1, 1, 1), norm_cfg=dict(type='BN'), norm_eval=False),
    decode_head=dict(
        type='PSPHead', in_channels=32, in_index=3, channels=8, pool_scales=(1, 2),
        dropout_ratio=0.5, num_classes=11, norm_cfg=dict(type='BN'), align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'))
model = dict(architecture=dict(_delete_=True, **student))
optim_wrapper = dict(optimizer=dict(lr=0))
"""
MASKS = {
    'type': 'MGDConnector', 'student_channels': 'auto', 'teacher_channels': 'auto', 'lambda_mgd': 0.5,
}  # fmt: skip
WORK_DIR = 'work_dirs/grid'


@pytest.fixture(scope='module')
def grid(project, teacher_log, call_tool):
    """Three methods, and one that draws random numbers itself in each iteration, with two seeds."""
    (project.folder / 'paired.py').write_text(PAIRED)
    common = ('--work-dir', WORK_DIR, '--seeds', 0, 1)
    methods = ('--method', 'student', '--method', 'naive', '--method', 'cad', '--weights', 1)
    masks = f'model.distiller.student_connector={MASKS}'
    results = [
        call_tool('paired.py', *methods, *common),
        call_tool('paired.py', *common, '--name', 'masked', '--grid', masks),
    ]
    for code, out, err in results:
        assert code == 0, out + err
    return call_tool


def rows(sweep):
    return read_csv(sweep.folder / WORK_DIR / 'results.csv')


def folders(sweep, seed):
    """{method: folder}."""
    return {
        row['method']: sweep.folder / row['work_dir'] for row in rows(sweep) if row['seed'] == seed
    }


def entries(folder):
    files = sorted(folder.glob('*/vis_data/scalars.json'))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def task_losses(folder):
    names = ('decode.loss_ce', 'student.decode.loss_ce')
    found = [entry[name] for entry in entries(folder) for name in names if name in entry]
    assert len(found) == 4
    return found


def test_each_cell_is_trained_with_each_seed(grid):
    found = [(label_of(row).partition('~')[0], row['seed']) for row in rows(grid)]
    assert [label.partition('-model')[0] for label, _ in found] == [
        *(['student'] * 2), *(['naive-w1'] * 2), *(['cad-w1'] * 2), *(['masked'] * 2),
    ]  # fmt: skip
    assert [seed for _, seed in found] == ['0', '1'] * 4
    (masked, _) = [row for row in rows(grid) if row['method'] == 'masked']
    assert masked['model.distiller.student_connector'] == str(MASKS)
    config = next((grid.folder / masked['work_dir']).glob('paired.py'))
    connector = Config.fromfile(config).model.distiller.student_connector
    assert dict(connector) == MASKS


def test_trainings_of_a_seed_begin_with_the_same_student_and_see_the_same_batches(grid):
    states = {}
    for seed in '01':
        found = folders(grid, seed)
        assert set(found) == {'student', 'naive', 'cad', 'masked'}
        states[seed] = {
            method: torch.load(folder / 'iter_4.pth', weights_only=False)['state_dict']
            for method, folder in found.items()
        }
        alone = states[seed]['student']
        assert len(alone) > 100
        for method, state in states[seed].items():
            differ = [name for name in alone if not torch.equal(alone[name], state[name])]
            assert not differ, (seed, method, differ)
            # the same batches in the same order, and the same units dropped
            assert task_losses(found[method]) == task_losses(found['student']), (seed, method)
    one, other = states['0']['student'], states['1']['student']
    for name in ('backbone.layer1.0.conv1.weight', 'backbone.layer4.1.bn2.running_mean'):
        assert not torch.equal(one[name], other[name])


def test_what_is_finished_is_not_done_again_and_what_is_lost_is_the_same(grid):
    before = {row['work_dir']: row for row in rows(grid)}
    lost = folders(grid, '1')['cad']
    checkpoint = torch.load(lost / 'iter_4.pth', weights_only=False)['state_dict']
    sessions = {folder: len(list((grid.folder / folder).glob('*/vis_data'))) for folder in before}
    shutil.rmtree(lost)
    command = ('paired.py', '--method', 'cad', '--weights', 1, '--work-dir', WORK_DIR)
    code, out, err = grid(*command, '--seeds', 0, 1)
    assert code == 0 and '1 of 2 trainings are finished' in out, err
    assert {row['work_dir']: row['value'] for row in rows(grid)} == {
        folder: row['value'] for folder, row in before.items()
    }
    again = torch.load(lost / 'iter_4.pth', weights_only=False)['state_dict']
    assert all(torch.equal(checkpoint[name], again[name]) for name in checkpoint)
    assert sessions == {f: len(list((grid.folder / f).glob('*/vis_data'))) for f in before}


def test_a_grid_of_numbers_changes_the_config(grid):
    keys = ('--grid', 'optim_wrapper.optimizer.lr=0.1,0.01', '--grid', 'train_cfg.max_iters=2,3')
    command = ('paired.py', *keys, '--work-dir', 'work_dirs/numbers', '--cfg-options',
               'train_cfg.val_interval=1')  # fmt: skip
    code, out, _ = grid(*command, '--print')
    assert code == 0
    assert [line.split('--cfg-options ')[1] for line in out.splitlines()] == [
        f'train_cfg.val_interval=1 optim_wrapper.optimizer.lr={lr} train_cfg.max_iters={iters} '
        'randomness.seed=0'
        for lr in ('0.1', '0.01')
        for iters in (2, 3)
    ]
    assert '--work-dir work_dirs/numbers/paired-optim_wrapper.optimizer.lr=0.1-' in out
    code, out, err = grid(*command, '--minutes', 1e-9)
    assert code == 0 and '4 of 4 trainings would not have ended within 1e-09 minutes' in out, err


def sweep_of(folder, table, **kwargs):
    return Sweep('paired.py', 'student', [], [0, 1], 'mIoU', folder, table=table, **kwargs)


def test_a_table_elsewhere_is_kept_and_counts(grid, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(grid.folder)
    table = tmp_path / 'results/all.csv'
    folder = grid.folder / WORK_DIR
    assert run_sweeps([sweep_of(folder, table)]) == 0
    kept = read_csv(table)
    assert len(kept) == 8
    # on another machine: nothing but the table is there
    elsewhere = tmp_path / 'grid'
    assert run_sweeps([sweep_of(elsewhere, table)]) == 0
    assert '2 of 2 trainings are finished' in capsys.readouterr().out
    assert read_csv(table) == kept and not list(elsewhere.glob('*/train.log'))


def test_a_table_with_its_columns_in_another_order_than_the_grid(tmp_path):
    about = dict(method='cad', weight=None, seed=0, config='paired.py')
    points = [dict(b='1', a='2'), dict(c='3', a='2')]
    for index, point in enumerate(points):
        folder = tmp_path / 'grid' / str(index)
        folder.mkdir(parents=True)
        result = dict(about=dict(about, grid=point), metrics=dict(mIoU=5.0), iters=4, seconds=1)
        (folder / 'result.json').write_text(json.dumps(result))
    table = tmp_path / 'all.csv'
    for _ in range(3):
        write_csv(tmp_path / 'grid', 'mIoU', table)
    found = read_csv(table)
    assert len(found) == 2
    assert {label_of(row) for row in found} == {cell_label('cad', '', point) for point in points}
    assert finished_in(found) == {('grid', label_of(row), '0') for row in found}


def test_the_student_alone_as_long_as_another(grid):
    """With processor times as a real training has them: those of the tests are of forked processes."""
    for method, seconds in (('student', 10.0), ('cad', 26.0)):
        for seed in '01':
            file = folders(grid, seed)[method] / 'result.json'
            result = json.loads(file.read_text())
            file.write_text(
                json.dumps(result | dict(processor_seconds=seconds, startup_seconds=2.0))
            )
    command = ('paired.py', '--method', 'student', '--work-dir', WORK_DIR)
    code, out, err = grid(*command)  # writes the CSV again
    assert code == 0, out + err
    code, out, err = grid(*command, '--as-long-as', 'cad-w1')
    assert code == 0, out + err
    (row,) = [row for row in rows(grid) if row['method'] == 'student-as-long-as-cad-w1']
    assert row['iters'] == '12'  # (26 - 2) / (10 - 2) times as many as 4
    config = Config.fromfile(next((grid.folder / row['work_dir']).glob('paired.py')))
    assert config.train_cfg.max_iters == config.train_cfg.val_interval == 12
    assert config.param_scheduler[0].end == 24
    # what was chosen for the first seed stays, whatever is measured later
    file = folders(grid, '0')['cad'] / 'result.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | dict(processor_seconds=500.0)))
    code, out, err = grid(*command, '--as-long-as', 'cad-w1', '--seeds', 0, 1, '--print')
    assert 'train_cfg.max_iters=12' in out and out.count('\n') == 1, err
    code, _, err = grid(*command, '--as-long-as', 'pad-w3')
    assert code == 1 and '--as-long-as pad-w3: there must be a finished training of it' in err


def test_schedules_are_stretched():
    cfg = Config(
        dict(
            train_cfg=dict(type='IterBasedTrainLoop', max_iters=100, val_interval=20),
            param_scheduler=[
                dict(type='LinearLR', begin=0, end=10, by_epoch=False),
                dict(type='MultiStepLR', milestones=[50, 75], by_epoch=False),
            ],
        )
    )
    assert stretch_schedule(cfg, 150) == [
        'train_cfg.max_iters=150',
        'param_scheduler.0.end=15',
        'param_scheduler.1.milestones=[75,112]',
    ]
    del cfg.param_scheduler[0]['by_epoch']
    with pytest.raises(TrainingError, match='counts in epochs. Give it by_epoch=False'):
        stretch_schedule(cfg, 150)
    with pytest.raises(TrainingError, match='counts in epochs, and processor time'):
        stretch_schedule(Config(dict(train_cfg=dict(max_epochs=3))), 150)
    assert [equal_time_iterations(1000, 2.0, other) for other in (5.0, 1.0)] == [2500, 1000]


BUSY = """
import os, subprocess, sys, time
def burn(seconds):
    while time.process_time() < seconds:
        pass
burn(0.5)
if len(sys.argv) == 1:
    subprocess.run([sys.executable, __file__, 'child'])
else:
    burn(0.7)
"""


def test_processor_seconds_are_those_of_all_processes(tmp_path):
    script = tmp_path / 'busy.py'
    script.write_text(BUSY)
    process = subprocess.Popen([sys.executable, script], start_new_session=True)
    while (used := _poll(process)) is None:
        os.sched_yield()
    assert process.returncode == 0
    assert 1.2 <= used < 2.4
    script.write_text('import sys\nsys.exit(3)')
    process = subprocess.Popen([sys.executable, script])
    assert _poll(process, options=0) < 1 and process.returncode == 3
    script.write_text('import signal\nsignal.pause()')
    process = subprocess.Popen([sys.executable, script], start_new_session=True)
    assert _end(process, patience=10) >= 0 and process.returncode == -15


def test_a_session_that_nobody_measured_is_not_left_out(tmp_path):
    training = Training('x', 'c.py', tmp_path, 4, 'mIoU', {})
    assert processor_seconds(training) is None
    for number, start in enumerate(('20260101_000000', '20260102_000000'), 1):
        log = tmp_path / start / 'vis_data/scalars.json'
        log.parent.mkdir(parents=True)
        log.touch()
        assert processor_seconds(training) is None
        add_session(training, 1.5)
        assert math.isclose(processor_seconds(training), 1.5 * number)


def test_real_trainings_tell_their_start(grid):
    result = json.loads((folders(grid, '0')['naive'] / 'result.json').read_text())
    assert result['startup_seconds'] > 0 and result['processor_seconds'] > 0


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--grid', 'a'], "--grid: 'a' is not KEY=V1,V2"),
        (['--grid', 'randomness.seed=1,2'], 'the sweep sets randomness.seed; use --seeds'),
        (['--grid', 'trian_cfg.max_iters=1,2'], 'has no trian_cfg, so that nothing would read it'),
        (['--grid', 'model.decode_head.channels=1'], 'has no model.decode_head'),
        (
            ['--grid', 'train_cfg.max_iters=1,2', '--cfg-options', 'train_cfg.max_iters=3'],
            'train_cfg.max_iters is set too',
        ),
        (
            ['--grid', 'model.distiller.loss.tau=1,2', '--method', 'cad', '--weights', 1],
            'use --method and --weights',
        ),
        (
            ['--grid', 'model.teacher_channels_last=True,False', '--method', 'student'],
            'are the same training: the grid changes nothing of it',
        ),
        (['--grid', 'model.teacher_ckpt=gone.pth'], "teacher_ckpt 'gone.pth' is not a file"),
        (['--weights', 1], '--weights needs --method'),
        (['--method', 'cad', '--method', 'cad', '--weights', 1], '--method must differ'),
        (['--minutes', 0], '--minutes must be positive'),
        (['--name', 'a', 'b'], 'must give each of the 1 CONFIGs a name'),
        (['--name', 'cad'], 'would be called cad, as those of a --method'),
        (['--as-long-as', 'cad-w3'], '--as-long-as is for --method student'),
        (['teacher.py'], 'several CONFIGs need a --work-dir'),
        (['student.py', '--method', 'student'], '--method student names the trainings of one CONFIG'),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said(grid, args, message):
    code, _, err = grid('paired.py', *args)
    assert code != 0
    assert message in err


def test_configs_side_by_side(grid):
    code, out, err = grid(
        'paired.py', 'student.py', '--work-dir', 'work_dirs/side', '--name', 'one', 'two', '--print'
    )
    assert code == 0, err
    first, second = out.splitlines()
    assert 'train.py paired.py --work-dir work_dirs/side/one-seed0' in first
    assert 'train.py student.py --work-dir work_dirs/side/two-seed0' in second
