"""Images without labels from make_distill_config.py to the report, each tool started as it is."""

import pytest
from mmengine.config import Config
from tool_project import TOOLS

REPORT = TOOLS / 'analysis_tools/report.py'
SWEEP = TOOLS / 'analysis_tools/weight_sweep.py'
MAKE = TOOLS / 'make_distill_config.py'
UNLABELLED = 'distill_unlabelled.loss_lad_decode_head.bottleneck'
# random transforms, one that loads labels, and one that looks at them
STUDENT = """
_base_ = './student.py'
train_dataloader = dict(dataset=dict(pipeline=[
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(40, 40), ratio_range=(0.8, 1.5), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(32, 32), cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='RandomApply', transforms=[dict(type='PhotoMetricDistortion')]),
    dict(type='GenerateEdge'),
    dict(type='PackSegInputs'),
]))
default_hooks = dict(checkpoint=dict(type='ResumableCheckpointHook'))
"""
FEATURES = """
_base_ = './distillation.py'
model = dict(calculate_student_loss=False)
train_dataloader = dict(dataset=dict(
    _delete_=True, type='UnlabelledImages', data_root='data/images/train',
    pipeline=[dict(type='LoadImageFromFile'), dict(type='PackSegInputs')]))
val_dataloader = val_cfg = val_evaluator = None
test_dataloader = test_cfg = test_evaluator = None
"""


@pytest.fixture(scope='module')
def made(project, teacher_log):
    """The printed text of make_distill_config.py; mixed.py is written, and trained."""
    (project.folder / 'augmented.py').write_text(STUDENT)
    (project.folder / 'features.py').write_text(FEATURES)
    return make(
        project, '--unlabelled', 'data/images/val', '--unlabelled-batch', '3', out='mixed.py'
    )


def make(project, *args, out='other.py', method='lad', **kwargs):
    return project.run(
        MAKE, '--teacher', 'teacher.py', '--teacher-ckpt', 'runs/teacher/iter_4.pth',
        '--student', 'augmented.py', '--method', method, '-o', out, *args, **kwargs,
    )  # fmt: skip


@pytest.fixture(scope='module')
def mixed_log(project, made):
    return project.run(TOOLS / 'train.py', 'mixed.py', '--work-dir', 'runs/mixed')


@pytest.fixture(scope='module')
def features_log(project, made):
    return project.run(TOOLS / 'train.py', 'features.py', '--work-dir', 'runs/features')


def test_config_has_the_students_transforms_without_labels(project, made):
    cfg = Config.fromfile(str(project.folder / 'mixed.py'))
    hook = cfg.custom_hooks[-1]
    assert hook.type == 'UnlabelledImagesHook' and hook.batch_size == 3 and hook.num_workers == 0
    assert hook.dataset.data_root == 'data/images/val', 'relative, as the other paths'
    names = [step.type for step in hook.dataset.pipeline]
    assert names == [
        'LoadImageFromFile', 'RandomResize', 'RandomCrop', 'RandomFlip', 'RandomApply', 'PackSegInputs',
    ]  # fmt: skip
    assert hook.dataset.pipeline[2].cat_max_ratio == 1.0
    assert cfg.train_dataloader.dataset.pipeline[3].cat_max_ratio == 0.75, "the student's own stays"
    text = ' '.join(made.split())
    assert '16 images without labels, 3 beside each batch' in text
    assert 'LoadAnnotations, GenerateEdge' in text


def test_batch_is_the_students_unless_told(project, made):
    make(project, '--unlabelled', 'data/images/val', '--force')
    assert Config.fromfile(str(project.folder / 'other.py')).custom_hooks[-1].batch_size == 8


def test_mixed_training(project, mixed_log):
    entries = [entry for entry in project.scalars('runs/mixed') if 'loss' in entry]
    assert len(entries) == 4
    for entry in entries:
        losses = [v for k, v in entry.items() if 'loss' in k and k != 'loss' and '/' not in k]
        assert entry['loss'] == pytest.approx(sum(losses), rel=1e-4)
        assert entry[UNLABELLED] > 0
    assert '16 images without labels, 3 in each iteration' in mixed_log


def test_student_alone(project, made):
    log = project.run(TOOLS / 'train.py', 'mixed.py', '--student-alone', '--work-dir', 'runs/plain')
    assert 'UnlabelledImagesHook' not in log and 'distill' not in str(project.scalars('runs/plain'))


def test_resumed_training_is_the_uninterrupted_one(project, mixed_log):
    import torch

    project.copy_of_interrupted('runs/mixed', 'runs/mixed_again')
    project.run(TOOLS / 'train.py', 'mixed.py', '--work-dir', 'runs/mixed_again', '--resume')
    a, b = (project.weights(f'runs/{name}/iter_4.pth') for name in ('mixed', 'mixed_again'))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_training_from_features_alone(project, features_log):
    assert 'do not learn' in features_log and 'decode_head.conv_seg (2)' in features_log
    entries = [entry for entry in project.scalars('runs/features') if 'loss' in entry]
    assert len(entries) == 4 and not any(k.startswith('student') for k in entries[0])


def test_report_of_a_mixed_training(project, mixed_log):
    project.run(REPORT, 'runs/mixed', '--images', '1', fresh=True)
    text = (project.folder / 'runs/mixed/report.html').read_text()
    assert 'each with its share of all images' in text
    assert UNLABELLED in text
    task = text[text.index('Task loss') :]
    assert 'distill_unlabelled' not in task[: task.index('Distillation losses')], (
        'no part of the task'
    )


def test_report_of_features_alone(project, features_log):
    project.run(REPORT, 'runs/features', fresh=True)
    text = (project.folder / 'runs/features/report.html').read_text()
    assert 'learned from features alone' in text and 'The config has no validation' in text


def test_sweep_over_a_mixed_training(project, made):
    project.run(
        SWEEP, 'mixed.py', '--method', 'lad', '--weights', '1', '2', '--seeds', '0', '--metric', 'mIoU',
        '--work-dir', 'sweep',
    )  # fmt: skip
    found = {}
    for weight in '12':
        entries = project.scalars(f'sweep/lad-w{weight}-seed0')
        found[weight] = next(e[UNLABELLED] for e in entries if 'loss' in e)
    assert found['2'] == pytest.approx(2 * found['1'], rel=1e-3)


# Bad input; rows of tests/bad_input/README.md


@pytest.mark.parametrize(
    ('args', 'parts'),
    [
        pytest.param(
            ['--unlabelled', 'nowhere'], ["--unlabelled 'nowhere' is not a folder"], id='no folder'
        ),
        pytest.param(['--unlabelled', 'runs/empty'], ['no image in'], id='no images'),
        pytest.param(
            ['--unlabelled-batch', '4'], ['--unlabelled-batch 4', 'FOLDER'], id='no folder given'
        ),
        pytest.param(
            ['--unlabelled', 'data/images/val', '--unlabelled-batch', '0'],
            ['at least 1'],
            id='batch of 0',
        ),
        pytest.param(
            ['--unlabelled', 'runs/broken'], ['x.png', 'cannot be read'], id='unreadable image'
        ),
    ],
)
def test_bad_arguments(project, made, args, parts):
    (project.folder / 'runs/empty').mkdir(exist_ok=True, parents=True)
    (project.folder / 'runs/broken').mkdir(exist_ok=True)
    (project.folder / 'runs/broken/x.png').write_bytes(b'no image')
    printed = ' '.join(make(project, *args, out='bad.py', fails=True).split())
    for part in parts:
        assert part in printed
    assert 'Traceback' not in printed and not (project.folder / 'bad.py').exists()


def test_student_alone_needs_labels(project, made):
    printed = project.run(
        TOOLS / 'train.py', 'features.py', '--student-alone', '--work-dir', 'runs/x', fails=True
    )
    assert 'from which only a distillation learns, and the model is EncoderDecoder' in printed
