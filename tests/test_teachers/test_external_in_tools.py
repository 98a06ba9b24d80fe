"""Trainings, tools and hooks with a teacher that gives features and has no head."""

import copy
import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch
from helpers import (
    bitwise_equal,
    build,
    count_runs,
    distill,
    images,
    pair,
    pspnet,
    run,
    samples,
    total,
    validation,
)
from mmengine.registry import DefaultScope
from small_networks import own_teacher, save, trained_state

from rawkd_mm.analysis.benchmark import Benchmark, BenchmarkOptions
from rawkd_mm.analysis.report import ReportError, write_report
from rawkd_mm.analysis.weight_sweep import Sweep, TrainingError, check
from rawkd_mm.hooks import WrongTeacherError
from rawkd_mm.loops import SingleTeacherDistillValLoop
from rawkd_mm.training import load_config, teacher_config

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS / 'test_tools'))

from tool_project import TOOLS, Project  # noqa: E402

VIT = dict(img_size=32, patch_size=4, embed_dim=32, depth=2, num_heads=2)
TEACHERS = {
    'module': own_teacher(),
    'resnet': dict(type='TimmTeacher', model='test_resnet'),
    'vit': dict(type='TimmTeacher', model='vit_tiny_patch16_224', kwargs=VIT),
}


@pytest.fixture(params=TEACHERS)
def teacher(request):
    """Config of a teacher: a module of one's own, and two of timm."""
    if request.param != 'module':
        pytest.importorskip('timm')
    return copy.deepcopy(TEACHERS[request.param])


def checkpoint_of(teacher, folder):
    """Weights of the network with norms as after a training."""
    torch.manual_seed(5)
    network = build(teacher).network
    with torch.no_grad():
        for value in network.parameters():
            value += 0.05 * torch.randn(value.shape)
    return save(network.state_dict(), folder)


def algorithm_of(teacher, folder, seed=0, **kwargs):
    student = pspnet()
    for head in ('decode_head', 'auxiliary_head'):
        student[head]['dropout_ratio'] = 0.0
    kwargs.setdefault('teacher_ckpt', checkpoint_of(teacher, folder))
    features = pair(teacher='features[0]')
    return distill(features, student=student, teacher=teacher, seed=seed, **kwargs)


SANITY = dict(type='TeacherSanityHook')


def test_resumed_run_is_the_uninterrupted_one(tmp_path, teacher):
    path = checkpoint_of(teacher, tmp_path)

    def train(folder, iters, **kwargs):
        algorithm = algorithm_of(teacher, tmp_path, teacher_ckpt=path)
        run(algorithm, tmp_path / folder, iters=iters, save_every=2, hooks=[SANITY], **kwargs)
        return torch.load(tmp_path / folder / f'iter_{iters}.pth', weights_only=False)

    whole = train('whole', 4)
    train('parts', 2)
    parts = train('parts', 4, resume=True)
    assert bitwise_equal(parts['state_dict'], whole['state_dict'])
    assert not [name for name in whole['state_dict'] if 'network' in name], 'no teacher in it'
    plain = build(pspnet())
    assert plain.load_state_dict(whole['state_dict'], strict=False).missing_keys == []


def test_bf16_training_with_averages(tmp_path, teacher):
    algorithm = algorithm_of(teacher, tmp_path)
    before = copy.deepcopy(algorithm.teacher.state_dict())
    optimizer = dict(type='Bf16OptimWrapper', optimizer=dict(type='SGD', lr=0.05))
    hooks = [SANITY, dict(type='EMAHook', momentum=0.5), dict(type='NonFiniteLossHook')]
    run(algorithm, tmp_path / 'run', iters=3, hooks=hooks, optim_wrapper=optimizer)
    checkpoint = torch.load(tmp_path / 'run/iter_3.pth', weights_only=False)
    assert list(checkpoint['state_dict']) == list(algorithm.state_dict())
    assert set(checkpoint['ema_state_dict']) == {'steps'} | {
        f'module.{name}' for name in checkpoint['state_dict']
    }
    assert bitwise_equal(algorithm.teacher.state_dict(), before)
    assert not any(module.training for module in algorithm.teacher.modules())


def test_a_copy_shares_the_teacher(tmp_path, teacher):
    algorithm = algorithm_of(teacher, tmp_path)
    twin = copy.deepcopy(algorithm)
    assert twin.teacher is algorithm.teacher
    for model in (algorithm, twin):
        total(model.train()(images(), samples(), mode='loss')).backward()
    gradients = [m.student.backbone.layer1[0].conv1.weight.grad for m in (algorithm, twin)]
    assert torch.equal(*gradients) and gradients[0].abs().sum() > 0


@pytest.mark.parametrize('precision', ['bf16', 'fp32'])
def test_compiled_features_are_the_same(tmp_path, teacher, precision):
    path, features = checkpoint_of(teacher, tmp_path), []
    for compiled in (False, True):
        algorithm = algorithm_of(
            teacher,
            tmp_path,
            teacher_ckpt=path,
            teacher_precision=precision,
            teacher_compile=compiled,
            teacher_channels_last=compiled,
        )
        runs = count_runs(algorithm.teacher)
        (feature,) = algorithm.frozen_teacher.extract_features(images()).values()
        features.append(feature)
        assert feature.dtype == torch.float32 and len(runs) <= 1
    expected, found = features
    assert (found - expected).norm() < (2e-2 if precision == 'bf16' else 1e-4) * expected.norm()


def test_loop_that_validates_the_teacher_refuses(tmp_path, teacher):
    """When it is built, before the first iteration."""
    algorithm = algorithm_of(teacher, tmp_path)
    ran = count_runs(algorithm.student)
    given = {**validation(), 'val_cfg': dict(type='mmrazor.SingleTeacherDistillValLoop')}
    with pytest.raises(WrongTeacherError) as error:
        run(algorithm, tmp_path / 'run', iters=1, **given)
    message = str(error.value)
    assert message.startswith(f'{SingleTeacherDistillValLoop.__name__}: the teacher, a ')
    assert message.endswith("it cannot be evaluated: validate with 'ValLoop'.")
    assert not ran


# The tools, with a module of one's own, which needs no extra

DISTILLATION = """
_base_ = './student.py'
model = dict(
    _delete_=True,
    type='FrozenTeacherDistill',
    architecture=dict(cfg_path='{{ fileDirname }}/student.py'),
    teacher=dict(type='TorchTeacher', factory='small_networks.eight_convs', kwargs=dict(halvings=2)),
    teacher_ckpt='{{ fileDirname }}/network.pth',
    distiller=dict(
        type='FeatureDistiller',
        loss=dict(type='LADLoss', loss_weight=3.0),
        pairs=[dict(student='decode_head.bottleneck', teacher='features[0]')]))
custom_hooks = [
    dict(type='FeatureGeometryHook', interval=2), dict(type='TeacherSanityHook', images=4)]
optim_wrapper = dict(optimizer=dict(eps=1e-3))
"""


@pytest.fixture(scope='module')
def project(tmp_path_factory, once, fast_python):
    """A folder with data, configs and the teacher's weights, and a training in it."""

    def make():
        project = Project(tmp_path_factory.mktemp('external'), fast_python)
        torch.save(trained_state(), project.folder / 'network.pth')
        (project.folder / 'external.py').write_text(DISTILLATION)
        log = project.run(TOOLS / 'train.py', 'external.py', '--work-dir', 'runs/one', **PATH)
        return project, log

    return once('external_project', make)


PATH = dict(PYTHONPATH=os.pathsep.join([str(TESTS.parent), str(TESTS)]))


@pytest.fixture
def folder(project, monkeypatch):
    monkeypatch.chdir(project[0].folder)
    with DefaultScope.overwrite_default_scope('mmseg'):
        yield project[0].folder


def test_training_says_what_the_features_are_like(project):
    _, log = project
    assert 'The teacher on 4 validation images: features[0] has 16 channels, effective rank' in log
    assert 'The teacher is none with random weights: features[0]' in log


def test_two_processes_train_as_one(project):
    project, _ = project
    project.run(
        TOOLS / 'dist_train.sh', 'external.py', '2', '--work-dir', 'runs/two', '--cfg-options',
        'train_dataloader.batch_size=4', **PATH,
    )  # fmt: skip
    assert project.losses('runs/two') == pytest.approx(project.losses('runs/one'), rel=1e-3)
    ours, theirs = (project.weights(f'runs/{name}/iter_4.pth') for name in ('one', 'two'))
    assert list(ours) == list(theirs)


def test_checkpoint_is_the_students(project):
    """Its test tool, and mmseg's on the student's own config."""
    project, log = project
    logged = project.scalars('runs/one')[-1]['mIoU']
    project.run(
        TOOLS / 'test.py', 'external.py', 'runs/one/iter_4.pth', '--work-dir', 'tested', **PATH
    )
    assert project.metrics('tested')['mIoU'] == pytest.approx(logged, abs=0.01)
    printed = project.run_mmseg('test.py', 'student.py', 'runs/one/iter_4.pth', '--work-dir', 'seg')
    assert f'mIoU: {logged:.4f}' in printed


def test_report_has_no_predictions_of_the_teacher(folder):
    text = write_report(Path('runs/one'), images=2).read_text()
    assert 'The teacher, TorchTeacher, gives features and has no head' in text
    header = text[text.index('<h2>Metrics') :].split('</tr>')[0]
    assert 'distilled' in header and 'teacher' not in header
    assert 'distilled, own connector: ' in text, 'angles need no predictions'
    cached = json.loads(Path('runs/one/report_cache.json').read_text())
    assert len(cached) == 1, 'the student alone was evaluated'


def test_report_without_the_teachers_weights(folder):
    with pytest.raises(ReportError, match="the teacher's weights are not there: 'gone.pth'"):
        write_report(Path('runs/one'), teacher_ckpt='gone.pth')


def test_config_of_the_teacher_keeps_its_own_images(folder):
    model = teacher_config(load_config('external.py')).model
    assert 'data_preprocessor' not in model
    assert build(model).data_preprocessor.mean.flatten().tolist() == pytest.approx(
        [123.675, 116.28, 103.53]
    )


def bench(monkeypatch, names, **options):
    """Measure one step of each variant; how much memory they need is not looked at."""
    monkeypatch.setattr(Benchmark, 'memory_in_a_fresh_process', lambda *_: 0.0)
    given = dict(config='external.py', batch=2, iters=1, warmup=0, **options)
    return Benchmark(BenchmarkOptions(**given), torch.device('cpu')).run(names)


NAMES = ('student', 'mmrazor', 'configured', 'bf16+channels_last', 'compile')


def test_benchmark(folder, monkeypatch):
    result = bench(monkeypatch, NAMES)
    rows = {row['variant']: row['losses'] for row in result['variants']}
    assert tuple(rows) == NAMES and result['notes'] == []
    (name,) = set(rows['configured']) - set(rows['student'])
    expected = rows['mmrazor'][name]
    for variant in NAMES[1:]:
        assert rows[variant][name] == pytest.approx(
            expected, rel=0.05 if 'bf16' in variant else 1e-4
        )


@pytest.mark.parametrize(
    ('change', 'reason'),
    [
        ({'model.teacher.kwargs.halvings': 3}, 'the features of .* have the shapes'),
        ({'model.teacher.images': dict(mean=0.5, std=0.5)}, 'this teacher takes others'),
        ({'model.teacher_input': dict(scale=2.0)}, 'this one has teacher_input'),
    ],
)
def test_benchmark_leaves_mmrazor_out_and_says_why(folder, monkeypatch, change, reason):
    result = bench(monkeypatch, ('student', 'mmrazor', 'configured'), cfg_options=change)
    assert [row['variant'] for row in result['variants']] == ['student', 'configured']
    (note,) = result['notes']
    assert note.startswith('mmrazor is left out: its teacher gets') or 'does not bring' in note
    assert re.search(reason, note)


def test_sweep_and_its_figures(project):
    project, _ = project
    tools = TOOLS / 'analysis_tools'
    project.run(
        tools / 'weight_sweep.py', 'external.py', '--method', 'cad', '--weights', '1',
        '--work-dir', 'sweep', **PATH,
    )  # fmt: skip
    lines = (project.folder / 'sweep/results.csv').read_text().splitlines()
    assert len(lines) == 2 and 'cad' in lines[1]
    project.run(
        tools / 'plot_feature_geometry.py', 'sweep', '--methods', 'cad', '--out', 'geometry', **PATH
    )
    assert (project.folder / 'geometry.svg').is_file()


def test_sweep_with_the_librarys_weights(folder):
    """'pretrained' is no file that must be there."""
    sweep = Sweep('external.py', 'cad', [1.0], [0], 'mIoU', Path('sweep'))
    check(load_config('external.py', {'model.teacher_ckpt': 'pretrained'}), sweep)
    with pytest.raises(TrainingError, match="'gone.pth' is not a file"):
        check(load_config('external.py', {'model.teacher_ckpt': 'gone.pth'}), sweep)
