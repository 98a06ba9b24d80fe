"""Real trainings of a few iterations: interrupted, resumed, skipped, failed, collected."""

import csv
import fcntl
import json
import math
import os
import shutil
from datetime import datetime

import pytest

from rawkd_mm.analysis.gpus import share_gpus
from rawkd_mm.analysis.one_training import TrainingError
from rawkd_mm.analysis.sweep_results import number
from rawkd_mm.analysis.training_logs import logged_seconds

FOLDER = 'work_dirs/weight_sweep/sweep'


def rows(folder):
    with (folder / FOLDER / 'results.csv').open(newline='') as file:
        return list(csv.DictReader(file))


def logged(folder, run, key):
    """{step: value} of a run's logs, as they are, the later session last."""
    entries = [
        json.loads(line)
        for path in sorted((folder / FOLDER / run).glob('*/vis_data/scalars.json'))
        for line in path.read_text().splitlines()
    ]
    return {entry['step']: entry[key] for entry in entries if key in entry}


def sessions(folder, run):
    return sorted((folder / FOLDER / run).glob('*/vis_data/scalars.json'))


def test_interrupted_sweep_ends_its_trainings(interrupted, sweep):
    code, _, err = interrupted['first']
    assert code == 130 and 'the same command goes on' in err
    assert not [name for name in interrupted['files'] if name.endswith('result.json')]
    for run in ('naive-w1-seed0', 'naive-w100-seed0'):
        assert f'{run}/training.json' in interrupted['files']
        with (sweep.folder / FOLDER / run / '.lock').open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # no process holds it any more


def test_the_same_command_goes_on_where_it_was(interrupted, sweep):
    code, out, _ = interrupted['second']
    assert code == 0 and '0 of 2 trainings are finished' in out
    # the other one may not have come as far
    runs = [f'naive-w{w}-seed0' for w in (1, 100)]
    runs = [run for run in runs if f'{run}/last_checkpoint' in interrupted['files']]
    assert runs
    starts = []
    for run in runs:
        *_, last = sessions(sweep.folder, run)
        start = json.loads(last.read_text().splitlines()[0])['step']
        starts.append(start)
        assert start > 1  # one that was stopped in its first iteration has saved that
        log = (sweep.folder / FOLDER / run / 'train.log').read_text()
        assert f'resumed epoch: 0, iter: {start - 1}' in log
        assert max(logged(sweep.folder, run, 'mIoU')) == 30
        result = json.loads((sweep.folder / FOLDER / run / 'result.json').read_text())
        assert result['resumed'] and result['iters'] == 30
        assert 1000 < result['seconds'] < 2000  # with the session that was interrupted
    # that whose checkpoint, of the second iteration, led to the interruption
    assert max(starts) > 2


def test_each_weight_is_trained_with_its_loss(sweep):
    one, hundred = (
        logged(
            sweep.folder, f'naive-w{w}-seed0', 'distill.loss_naivefeature_decode_head.bottleneck'
        )
        for w in (1, 100)
    )
    assert hundred[1] == pytest.approx(100 * one[1], rel=1e-4)
    assert one[1] > 0


def test_csv_has_what_the_logs_say(sweep):
    found = [row for row in rows(sweep.folder) if row['method'] == 'naive']
    assert [(row['weight'], row['seed']) for row in found] == [('1', '0'), ('100', '0')]
    for row in found:
        run = f'naive-w{row["weight"]}-seed0'
        assert float(row['value']) == pytest.approx(logged(sweep.folder, run, 'mIoU')[30])
        assert row['work_dir'] == f'{FOLDER}/{run}'
        assert (row['pair'], row['config'], row['metric']) == ('sweep', 'sweep.py', 'mIoU')
        assert row['iters'] == '30' and float(row['seconds']) > 0


def test_finished_trainings_are_skipped_and_another_metric_is_there(sweep):
    before = [sessions(sweep.folder, f'naive-w{w}-seed0') for w in (1, 100)]
    code, out, _ = sweep(
        'sweep.py', '--method', 'naive', '--weights', 1, 100, '--metric', 'aAcc'
    )  # fmt: skip
    assert code == 0 and '2 of 2 trainings are finished' in out
    assert [sessions(sweep.folder, f'naive-w{w}-seed0') for w in (1, 100)] == before
    (first, *_) = [row for row in rows(sweep.folder) if row['method'] == 'naive']
    assert first['metric'] == 'aAcc'
    assert float(first['value']) == pytest.approx(
        logged(sweep.folder, 'naive-w1-seed0', 'aAcc')[30], rel=1e-4
    )
    code, _, err = sweep('sweep.py', '--method', 'naive', '--weights', 1, '--metric', 'AP')
    assert code == 1 and "no metric 'AP', only ['aAcc', 'mAcc', 'mIoU']" in err


def test_student_alone(sweep):
    code, out, err = sweep('sweep.py', '--method', 'student', '--seeds', 0, 1, '--jobs', 2)
    assert code == 0, out + err
    found = [row for row in rows(sweep.folder) if row['method'] == 'student']
    assert [(row['weight'], row['seed']) for row in found] == [('', '0'), ('', '1')]
    values = [float(row['value']) for row in found]
    assert values[0] != values[1]
    for seed in (0, 1):
        run = f'student-seed{seed}'
        assert values[seed] == pytest.approx(logged(sweep.folder, run, 'mIoU')[30])
        log = (sweep.folder / FOLDER / run / 'train.log').read_text()
        assert 'distill.loss' not in log and 'decode.loss_ce' in log


def test_a_failed_training_is_reported_and_done_again_by_its_printed_command(sweep, project):
    broken = sweep.folder / FOLDER / 'md-w10-seed1'
    broken.mkdir()
    (broken / 'last_checkpoint').write_text('iter_10.pth')
    (broken / 'iter_10.pth').write_text('no checkpoint')
    command = ('sweep.py', '--method', 'md', '--weights', 10, '--seeds', 0, 1, '--jobs', 2)
    code, out, err = sweep(*command)
    assert code == 1
    assert '1 of 2 trainings failed' in err
    assert f'the training md-w10-seed1 failed; the end of {FOLDER}/md-w10-seed1/train.log' in err
    assert 'no whole checkpoint to go on from' in err and 'iter_10.pth' in err
    assert [row['seed'] for row in rows(sweep.folder) if row['method'] == 'md'] == ['0']

    (broken / 'last_checkpoint').unlink()
    (broken / 'iter_10.pth').unlink()
    code, out, _ = sweep(*command, '--print')
    (printed,) = out.splitlines()
    assert f'--work-dir {FOLDER}/md-w10-seed1' in printed and 'loss.type=MagnitudeLoss' in printed
    assert 'model.distiller.loss.loss_weight=10' in printed and 'randomness.seed=1' in printed
    assert not sessions(sweep.folder, 'md-w10-seed1')
    project.run('bash', '-c', printed, OMP_NUM_THREADS='1')
    code, out, _ = sweep(*command)
    assert code == 0 and '2 of 2 trainings are finished' in out
    found = [row for row in rows(sweep.folder) if row['method'] == 'md']
    assert [row['seed'] for row in found] == ['0', '1']
    assert float(found[1]['seconds']) > 0
    for row in found:
        run = f'md-w10-seed{row["seed"]}'
        assert float(row['value']) == pytest.approx(logged(sweep.folder, run, 'mIoU')[30])
        assert len(sessions(sweep.folder, run)) == 1


def test_training_that_ended_before_its_last_validation_is_validated(sweep):
    """It has its last checkpoint: MMEngine alone would train nothing and validate nothing."""
    copy = sweep.folder / 'work_dirs/unvalidated/naive-w1-seed0'
    shutil.copytree(sweep.folder / FOLDER / 'naive-w1-seed0', copy)
    (copy / 'result.json').unlink()
    (copy / 'last_checkpoint').write_text(str(copy / 'iter_30.pth'))
    log = max(copy.glob('*/vis_data/scalars.json'))
    lines = [line for line in log.read_text().splitlines() if '"mIoU"' not in line]
    log.write_text('\n'.join(lines) + '\n')
    code, out, err = sweep(
        'sweep.py', '--method', 'naive', '--weights', 1, '--work-dir', 'work_dirs/unvalidated'
    )  # fmt: skip
    assert code == 0, out + err
    assert 'resumed epoch: 0, iter: 28' in (copy / 'train.log').read_text()
    newest = max(copy.glob('*/vis_data/scalars.json')).read_text().splitlines()
    last = json.loads(newest[-1])
    assert last['step'] == 30
    result = json.loads((copy / 'result.json').read_text())
    assert result['metrics']['mIoU'] == last['mIoU']


def test_print_with_several_gpus(sweep):
    code, out, _ = sweep(
        'sweep.py', '--method', 'cad', '--weights', 3, '--gpus', 8, '--print',
        '--cfg-options', 'train_dataloader.batch_size=2',
    )  # fmt: skip
    assert 'tools/dist_train.sh sweep.py 8 --work-dir' in out
    assert '--cfg-options train_dataloader.batch_size=2 randomness.seed=0' in out


@pytest.mark.slow
def test_epochs(sweep):
    """As MMDetection counts: the student's own config, in epochs of 4 iterations."""
    (sweep.folder / 'epochs.py').write_text(
        "_base_ = './sweep_student.py'\n"
        "train_cfg = dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=2)\n"
        "train_dataloader = dict(sampler=dict(type='DefaultSampler'))\n"
        'default_hooks = dict(\n'
        '    checkpoint=dict(by_epoch=True, interval=1), logger=dict(log_metric_by_epoch=True))\n'
        'log_processor = dict(by_epoch=True)\n'
    )
    code, out, err = sweep('epochs.py', '--method', 'student', '--metric', 'mAcc')
    assert code == 0, out + err
    with (sweep.folder / 'work_dirs/weight_sweep/epochs/results.csv').open() as file:
        (row,) = csv.DictReader(file)
    assert (row['iters'], row['metric'], row['pair']) == ('8', 'mAcc', 'epochs')
    result = json.loads(
        (sweep.folder / 'work_dirs/weight_sweep/epochs/student-seed0/result.json').read_text()
    )
    assert result['checkpoint'].endswith('epoch_2.pth')
    assert float(row['value']) == pytest.approx(result['metrics']['mAcc'], rel=1e-4)


def test_finished_training_with_other_settings_is_refused(sweep):
    command = ('sweep.py', '--method', 'naive', '--weights', 1)
    code, _, err = sweep(*command, '--cfg-options', 'optim_wrapper.optimizer.lr=1')
    assert code == 1
    assert "optim_wrapper.optimizer.lr: '0.0002' there, 1 asked for" in err
    assert 'Choose another --work-dir' in err
    code, _, err = sweep(*command, '--gpus', 2)
    assert code == 1 and 'gpus: 1 there, 2 asked for' in err


@pytest.mark.parametrize(
    ('file', 'old', 'new', 'message'),
    [
        ('sweep_student.py', b'0.05', b'0.06', "class_weight.0: '0.05' there, '0.06' asked for"),
        ('teacher.py', b'norm_eval=False', b'norm_eval=True', 'norm_eval: False there, True'),
        ('runs/teacher/iter_4.pth', b'PK', b'QK', 'teacher_sha256'),
    ],
)
def test_changed_files_are_noticed(sweep, file, old, new, message):
    path = sweep.folder / file
    original = path.read_bytes()
    path.write_bytes(original.replace(old, new, 1))
    try:
        code, _, err = sweep('sweep.py', '--method', 'naive', '--weights', 1)
    finally:
        path.write_bytes(original)
    assert code == 1
    assert message in err


def test_training_that_runs_elsewhere_is_left_alone(sweep):
    folder = sweep.folder / FOLDER / 'pad-w3-seed0'
    folder.mkdir()
    with (folder / '.lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, _, err = sweep('sweep.py', '--method', 'pad', '--weights', 3)
    assert code == 1 and 'is being trained by another process' in err
    assert not (folder / 'train.log').exists()


@pytest.mark.parametrize(
    ('old', 'new', 'message'),
    [
        ("bottleneck')]", "bottleneck', loss=dict(type='CADLoss'))]", "['pairs[0].loss']"),
        ('pairs=[', 'student_connector=dict(type=1), pairs=[', "['student_connector']"),
    ],
)
def test_what_belongs_to_another_method_is_refused(sweep, old, new, message):
    text = (sweep.folder / 'sweep.py').read_text()
    assert text.count(old) == 1
    (sweep.folder / 'extra.py').write_text(text.replace(old, new))
    code, _, err = sweep('extra.py', '--method', 'naive', '--weights', 1)
    assert code == 1 and message in err and 'belong to another method' in err


@pytest.mark.parametrize(
    ('config', 'args', 'message'),
    [
        ('sweep.py', ['--method', 'naive'], 'needs --weights'),
        ('sweep.py', ['--method', 'student', '--weights', 1], 'has no --weights'),
        ('sweep.py', ['--method', 'naive', '--weights', 0], 'positive numbers, got 0.0'),
        ('sweep.py', ['--method', 'naive', '--weights', math.inf], 'positive numbers, got inf'),
        ('sweep.py', ['--method', 'md', '--weights', 1, 1], '--weights must differ'),
        ('sweep.py', ['--method', 'student', '--seeds', 1, 1], '--seeds must differ'),
        ('sweep.py', ['--method', 'student', '--jobs', 0], '--jobs must be at least 1, got 0'),
        ('sweep.py', ['--method', 'student', '--cfg-options', 'a'], "'a' is not KEY=VALUE"),
        (
            'sweep.py',
            ['--method', 'student', '--cfg-options', 'randomness.seed=1'],
            'the sweep sets randomness.seed; use --seeds',
        ),
        (
            'sweep.py',
            ['--method', 'naive', '--weights', 1, '--cfg-options', 'model.distiller.loss.tau=1'],
            'use --method and --weights',
        ),
        ('student.py', ['--method', 'cad', '--weights', 3], 'no FeatureDistiller with pairs'),
        (
            'sweep.py',
            ['--method', 'cad', '--weights', 3, '--cfg-options', 'model.teacher_ckpt=gone.pth'],
            "teacher_ckpt 'gone.pth' is not a file",
        ),
        (
            'sweep.py',
            ['--method', 'student', '--cfg-options', 'default_hooks.logger.log_metric_by_epoch=1'],
            'log_metric_by_epoch must be False',
        ),
        ('gone.py', ['--method', 'student'], "'gone.py' is not a file"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said(sweep, config, args, message):
    code, _, err = sweep(config, *args)
    assert code != 0
    assert message in err


def test_seconds_are_summed_over_the_sessions(tmp_path):
    for start, seconds in (('20250102_235950', 25), ('20250103_120000', 100)):
        log = tmp_path / start / 'vis_data/scalars.json'
        log.parent.mkdir(parents=True)
        log.touch()
        begin = datetime.strptime(start, '%Y%m%d_%H%M%S').timestamp()
        os.utime(log, (begin, begin + seconds))
    assert logged_seconds(tmp_path) == pytest.approx(125)


def test_weights_keep_their_digits():
    assert [number(w) for w in (10.0, 0.3, 1000.0, 0.12345678)] == [
        '10',
        '0.3',
        '1000',
        '0.12345678',
    ]


def test_train_alone_needs_a_distillation(sweep):
    code, _, err = sweep('student.py', '--student-alone', tool='train')
    assert code == 1 and "--student-alone: 'student.py' has no teacher to leave out" in err


def test_gpus_are_shared():
    eight = list('01234567')
    assert share_gpus(2, 4, eight) == [list('0123'), list('4567')]
    assert share_gpus(3, 1, ['0', '1']) == [['0'], ['1'], ['0']]
    assert share_gpus(4, 2, []) == []
    with pytest.raises(TrainingError, match='--jobs 2 with --gpus 8 needs 16 GPUs, there are 8'):
        share_gpus(2, 8, eight)
