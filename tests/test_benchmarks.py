"""The programs in benchmarks/ run: on a tiny pair, and without looking at how fast."""

import argparse
import csv
import importlib.util
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope

from rawkd_mm.compat import has_mmcv_ops
from rawkd_mm.registry import MODELS

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


@pytest.fixture
def load(monkeypatch):
    """Load a benchmark by its name and run it with arguments."""

    def load(name, *arguments):
        spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f'{name}.py')
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.chdir(BENCHMARKS.parent)
        monkeypatch.setattr(sys, 'argv', [f'{name}.py', *map(str, arguments)])
        module.main()
        return module

    return load


CAD = 'cad_bottleneck_pspnet-r18-w12_pspnet-r18-w4_1xb16-4k_digit-scenes-48x48.py'


def test_step_parts(tmp_path, load, capsys):
    out, config = tmp_path / 'parts.json', f'configs/quickstart/{CAD}'
    options = ['--batch', 2, '--size', 32, 48, '--rounds', 2, '--warmup', 1]
    load('step_parts', config, out, *options)
    result = json.loads(out.read_text())
    assert result['images'] == [2, 3, 32, 48] and result['config'] == config
    seconds = result['seconds']
    assert all(len(values) == 2 for values in seconds.values())
    whole, *parts, rest, forward, backward, optimizer = list(seconds.values())[:8]
    for i in range(2):
        assert all(part[i] > 0 for part in parts)
        assert whole[i] == pytest.approx(sum(part[i] for part in parts) + rest[i])
        assert rest[i] == pytest.approx(forward[i] + backward[i] + optimizer[i], abs=1e-9)
    assert '| distilled step | ' in capsys.readouterr().out


def make_scenes(root, **counts):
    sys.path.insert(0, str(BENCHMARKS.parent / 'tools' / 'dataset_converters'))
    from digit_scenes_drawing import DigitScenesOptions
    from digit_scenes_generator import generate

    generate(root, DigitScenesOptions(size=(48, 48), **counts), 1)


def test_loaders(tmp_path, load, capsys):
    make_scenes(tmp_path / 'data', train=32, val=2)
    out = tmp_path / 'loaders.json'
    root = f'train_dataloader.dataset.data_root={tmp_path / "data"}'
    options = ['--iters', 4, '--skip', 1, '--rounds', 1, '--workers', 0, 1, '--cfg-options', root]
    load('loaders', f'configs/quickstart/{CAD}', out, *options)
    result = json.loads(out.read_text())
    (alone,), (worker,) = result['workers']['0'], result['workers']['1']
    assert alone['workers'] == 0
    for parts in (alone, worker):
        assert all(parts[name] > 0 for name in ('data', 'step', 'hooks', 'our hooks', 'sum'))
        assert parts['our hooks'] < parts['hooks'] < parts['step']
    assert '| 0 | ' in capsys.readouterr().out


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


@pytest.fixture
def query_models(monkeypatch, tmp_path):
    # few_labels.py sets these where they are not set, which is not for the tests that follow
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', os.environ.get('CUDA_VISIBLE_DEVICES', '0'))
    monkeypatch.syspath_prepend(BENCHMARKS)
    module = importlib.import_module('query_models')
    monkeypatch.setattr(module, 'MODELS', tmp_path)
    return module


@pytest.mark.usefixtures('mmdet')
@pytest.mark.parametrize(
    ('pair', 'features'),
    [
        ('semantic', ['decode_head.pixel_decoder[0]']),
        ('instance', ['panoptic_head.pixel_decoder[0]']),
        ('boxes', ['neck[0]', 'neck[1]', 'neck[2]']),
    ],
)
def test_configs_of_query_models(query_models, pair, features, tmp_path):
    tasks = [
        query_models.Task(pair, method, 'auto', 400, unlabelled, 20, 1)
        for method, unlabelled in (('teacher', 0), ('alone', 0), ('lad', 4000), ('cad', 4000))
    ]
    teacher, alone, lad, cad = (query_models.config(task, str(tmp_path)) for task in tasks)
    assert lad.model.architecture == cad.model.architecture == alone.model
    assert lad.model.teacher == cad.model.teacher == teacher.model
    assert lad.model.teacher_ckpt == str(tmp_path / f'{pair}.pth')
    assert lad.model.distiller.loss.type == 'LADLoss' and cad.model.distiller.loss.type == 'CADLoss'
    assert [p.student for p in lad.model.distiller.pairs] == features
    assert not alone.custom_hooks and lad.custom_hooks == cad.custom_hooks
    assert lad.train_dataloader == cad.train_dataloader == alone.train_dataloader
    # other scenes than those with labels, and than those of the backbone's training
    if pair == 'semantic':
        unlabelled = lad.custom_hooks[0].dataset
        first, last = unlabelled.start, unlabelled.start + unlabelled.count
        backbone = query_models.config(
            query_models.Task('backbone', 'alone', 'auto', 4000, 0, 20, 0), str(tmp_path)
        )
        assert backbone.train_dataloader.dataset.start == last
        assert backbone.model.type == 'EncoderDecoder'
    else:
        first = min(lad.custom_hooks[0].dataset.indices)
        labelled = alone.train_dataloader.dataset.indices
        assert len(set(labelled)) == 400 and max(labelled) < first
    assert first == 4000


def test_summary_of_query_models(query_models, tmp_path, monkeypatch, capsys):
    out = tmp_path / 'queries.csv'
    task = query_models.Task('boxes', 'alone', 'auto', 400, 0, 20, 0)
    ways = [('alone', 0, (10, 12)), ('lad', 4000, (15, 18)), ('teacher', 0, (60,))]
    rows = [
        (*task._replace(method=method, unlabelled=unlabelled, seed=seed), value, 1)
        for method, unlabelled, values in ways
        for seed, value in enumerate(values)
    ]
    header = (*query_models.Task._fields, 'metric', 'seconds')
    out.write_text('\n'.join(','.join(map(str, row)) for row in [header, *rows]) + '\n')
    monkeypatch.setattr(sys, 'argv', ['query_models.py', '--summary', '--out', str(out)])
    query_models.main()
    printed = capsys.readouterr().out
    assert (
        '| DINO, boxes | LAD | auto | 400 | 20 | 2 | 16.5 ± 2.1 bbox AP | +5.5 ± 0.7 |' in printed
    )
    assert '| DINO, boxes | teacher |  | 400 | 20 | 1 | 60.0 bbox AP |  |' in printed
    assert (tmp_path / 'queries_summary.md').read_text() in printed


def distance_of_channels(runner, scenes):
    """1 - cos of each channel of the student's feature and the teacher's, mean: what CAD makes small."""
    runner.model.eval()
    data = runner.model.data_preprocessor(pseudo_collate([scenes[i] for i in range(16)]), False)
    (pair,) = runner.model.extract_features(data['inputs'], data['data_samples']).values()
    cosines = torch.nn.functional.cosine_similarity(
        pair.aligned.flatten(2), pair.teacher.flatten(2), 2
    )
    return 1 - cosines.mean().item()


@pytest.mark.slow
@pytest.mark.usefixtures('mmdet')
def test_a_model_with_queries_learns_from_its_teacher(query_models, monkeypatch, tmp_path):
    """The benchmark's Mask2Former in small: CAD brings the features together, a weight of 0 does not.

    Less than a minute of a processor: few scenes, few iterations.
    """
    from mmengine.registry import DATASETS

    from rawkd_mm.training import build_runner

    few_labels = query_models.few_labels
    for module in (query_models, few_labels):
        monkeypatch.setattr(module, 'TEACHERS_SCENES', 128)
    monkeypatch.setattr(query_models, 'BATCH', 4)
    monkeypatch.setattr(query_models, 'UNLABELLED', 0)
    few_labels.make_scenes(128, 1)
    few_labels.register()

    first = query_models.Task('backbone', 'alone', 'auto', 128, 0, 20, 0)
    teacher = query_models.Task('semantic', 'teacher', 'auto', 128, 0, 30, 0)
    assert all(0 < query_models.train(task) < 100 for task in (first, teacher))

    task = query_models.Task('semantic', 'cad', 'auto', 64, 128, 40, 0)
    distances = {}
    for weight in (3.0, 0.0):
        cfg = query_models.config(task, str(tmp_path))
        cfg.model.distiller.loss.loss_weight = weight
        cfg.experiment_name = f'weight {weight}'
        runner = build_runner(cfg)
        scenes = DATASETS.build(cfg.val_dataloader.dataset)
        runner.model.init_weights()
        before = distance_of_channels(runner, scenes)
        runner.train()
        distances[weight] = before, distance_of_channels(runner, scenes)
        assert 0 < runner.message_hub.get_scalar('val/mIoU').current() < 100
    before, after = distances[3.0]
    assert after < 0.6 * before
    before, after = distances[0.0]
    assert after > 0.8 * before


@pytest.fixture
def evidence(monkeypatch):
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.chdir(BENCHMARKS.parent)
    return importlib.import_module('evidence')


def arguments(evidence, part, **kwargs):
    """What the command line gives by default."""
    defaults = dict(data=Path('data/x'), detector_data=Path('data/x'), iters=1000, seeds=None)
    defaults |= dict(
        jobs=1, naive_weight=10.0, out=Path('out.csv'), teacher_iters=4000, minutes=None
    )
    return argparse.Namespace(part=part, **{**defaults, **kwargs})


def test_parts_of_the_evidence(evidence):
    """Every training is described, and the parts share those that they have in common."""
    from rawkd_mm.analysis.weight_sweep import make_trainings

    labels = {}
    for part in evidence.PARTS:
        sweeps = evidence.make_sweeps(arguments(evidence, part, seeds=1))
        if part in evidence.DETECTORS and not has_mmcv_ops():
            continue
        trainings = [t for sweep in sweeps for t in make_trainings(sweep, with_teacher=False)]
        labels[part] = [(training.folder.parent.name, training.label) for training in trainings]
        assert len(set(labels[part])) == len(labels[part])
        for training in trainings:
            assert training.settings['param_scheduler.0.total_steps'] == training.length
            if training.about['method'] not in ('student', *evidence.LABELS_ONLY):
                unlabelled = training.settings['custom_hooks.1.dataset.data_root']
                assert unlabelled == 'data/x/images/train'
    counts = dict(alpha=40, start=18, methods=17, flat=15, where=20, natural=26)
    counts |= dict.fromkeys(labels.keys() & {'flat-detector'}, 15)
    counts |= dict.fromkeys(labels.keys() & {'detectors'}, 10)
    assert {part: len(found) for part, found in labels.items()} == counts
    shared = set(labels['alpha']) & set(labels['methods']) & set(labels['flat'])
    assert {label for _, label in shared} == {'student-seed0', 'cad-w3-seed0', 'lad-w3-seed0'}
    # the best weights are those of other parts
    best = {'naive-w10-seed0', 'lad-w10-seed0', 'cad-w100-seed0'}
    assert best <= {label for _, label in labels['methods']}
    assert best <= {label for _, label in [*labels['alpha'], *labels['flat']]}
    # the teacher that comes along: what the part alpha has trained
    natural = set(labels['natural'])
    shared |= {(pair, f'naive-w{w}-seed0') for pair, _ in shared for w in ('0.1', '1', '10', '100')}
    assert natural & set(labels['alpha']) == shared
    assert len([label for pair, label in natural if pair.startswith('upernet-')]) == 9


NATURAL = ('pspnet_sgd', 'upernet_student', 'upernet_teacher')
CONFIGS = sorted((BENCHMARKS / 'evidence_configs').glob('*.py'))
DETECTORS = sorted((BENCHMARKS / 'evidence_configs/retinanet').glob('*.py'))


def check_distilled(cfg, size, pairs):
    """One iteration has a sound distillation loss for each pair of features."""
    from rawkd_mm.training import run_one_iteration

    losses = run_one_iteration(MODELS.build(cfg.model), cfg.optim_wrapper, size)
    distilled = {name: value for name, value in losses.items() if 'distill' in name}
    assert len(distilled) == pairs
    assert all(0 < value < 1e4 for value in distilled.values()), distilled


@pytest.mark.parametrize('file', [file for file in CONFIGS if file.stem not in NATURAL])
def test_configs_of_the_evidence_train(file):
    from rawkd_mm.training import load_config

    cfg = load_config(str(file))
    init_default_scope(cfg.default_scope)
    if file.stem == 'upernet':  # its teacher is to be trained first
        cfg.model.update(teacher_ckpt=None, allow_random_teacher=True)
    assert (cfg.optim_wrapper.get('clip_grad') is None) == (file.stem != 'mgd')
    check_distilled(cfg, (48, 48), 2 if file.stem in ('lad_kl', 'cad_kl', 'at_both') else 1)


@pytest.mark.usefixtures('mmdet')
@pytest.mark.parametrize('file', DETECTORS, ids=lambda file: file.stem)
def test_configs_of_detectors_train(evidence, file):
    from rawkd_mm.training import load_config

    cfg = load_config(str(file))
    init_default_scope(cfg.default_scope)
    assert not [key for key in cfg if key.startswith('_')]  # helpers of the file are no settings
    has_unlabelled = 'UnlabelledImagesHook' in [hook.type for hook in cfg.custom_hooks]
    assert has_unlabelled == (file.stem not in evidence.LABELS_ONLY)
    assert cfg.optim_wrapper.clip_grad.max_norm == 10
    check_distilled(cfg, (64, 64), 3)


def test_natural_teachers_train(evidence, tmp_path, monkeypatch):
    """They differ from the teacher that comes along in what they are about."""
    from mmengine.optim import build_optim_wrapper
    from zoo import check_step

    from rawkd_mm.analysis.pictures import build_model
    from rawkd_mm.training import load_config, made_up_batch, replace_sync_batchnorm

    init_default_scope('mmseg')
    ours = load_config(str(evidence.QUICKSTART / f'{evidence.TEACHER}.py'))
    for name in NATURAL:
        cfg = load_config(str(evidence.CONFIGS / f'{name}.py'))
        same = {key for key in cfg if cfg[key] == ours.get(key)}
        changed = {'model', 'param_scheduler'} if name != 'pspnet_sgd' else set()
        assert cfg.keys() - same == changed | {'optim_wrapper'}
        model = build_model(cfg)
        replace_sync_batchnorm(model)
        inputs, samples = made_up_batch(model, (48, 48))
        wrapper = build_optim_wrapper(model.train(), cfg.optim_wrapper)
        check_step(cfg, model, wrapper, dict(inputs=inputs, data_samples=samples))
    sgd = load_config(str(evidence.CONFIGS / 'pspnet_sgd.py')).optim_wrapper
    assert sgd.optimizer == dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=5e-4)


def test_best_weights_of_the_natural_teachers(evidence, tmp_path):
    """Sorted by mn/N; the best weight is that of the best mean."""
    out = tmp_path / 'evidence.csv'
    sgd = str(evidence.natural_teacher('pspnet_sgd', 4000))
    lines = [
        'pair,method,weight,seed,metric,value,iters,seconds,config,work_dir,processor_seconds,'
        'startup_seconds,mn_over_N,model.teacher_ckpt'
    ]
    for pair, weight, values, size, path in (
        ('pspnet-1000', '1', (50, 51), 1.5, ''),
        ('pspnet-1000', '10', (52, 48), 1.6, ''),
        ('pspnet-1000', '1', (40, 41), 0.02, sgd),
        ('pspnet-1000', '100', (45, 47), 0.03, sgd),
        ('upernet-1000', '0.1', (30, 31), 20, ''),
        ('other-1000', '0.1', (99, 99), 20, ''),
    ):
        for seed, value in enumerate(values):
            lines.append(f'{pair},naive,{weight},{seed},mIoU,{value},9,9,c,w,9,9,{size},{path}')
    out.write_text('\n'.join(lines) + '\n')
    args = arguments(evidence, 'natural', iters=1000)
    text = evidence.best_weights(out, evidence.cells_of(evidence.make_sweeps(args)))
    assert [line for line in text.splitlines() if '-1000' in line] == [
        '| pspnet-1000 | pspnet_sgd-4000 | 0.02 to 0.03 | 2 | 100 | 46.00 | 6 |',
        '| pspnet-1000 | as configured | 1.5 to 1.6 | 2 | 1 | 50.50 | 3 |',
        '| upernet-1000 | as configured | 20 to 20 | 2 | 0.1 | 30.50 | 4 |',
    ]


def test_summary_of_the_evidence(evidence, tmp_path, monkeypatch, capsys):
    out = tmp_path / 'evidence.csv'
    rows = [('student', '', 60.0, '', 100), ('cad', 3, 62.0, '', 200), ('other', 3, 1.0, '', 1)]
    for alpha, weights in evidence.NAIVE_WEIGHTS.items():
        path = '' if alpha == 1 else str(evidence.teacher_of(alpha))
        rows += [('naive', f'{w:g}', 61.0, path, 200) for w in weights]
    header = 'pair,method,weight,seed,metric,value,iters,seconds,config,work_dir,processor_seconds,'
    # cells without a weight have more keys than those that are drawn
    more = f'{evidence.LOSS_KEY},{evidence.WEIGHT_KEY}'
    lines = [f'{header}startup_seconds,mn_over_N,{evidence.TEACHER_KEY},{more}']
    rows.append(('before_relu', '', 59.0, f'{evidence.teacher_of(0.1)},NaiveFeatureLoss,30', 200))
    for method, weight, value, path, seconds in rows:
        for seed in (0, 1):
            lines.append(
                f'pspnet-1000,{method},{weight},{seed},mIoU,{value + seed},1000,9,c,w,{seconds},10,'
                f'0.5,{path}{"" if "," in path else ",,"}'
            )
    out.write_text('\n'.join(lines) + '\n')
    monkeypatch.setattr(
        sys, 'argv', ['evidence.py', '--part', 'alpha', '--summary', '--out', str(out)]
    )
    evidence.main()
    table = (tmp_path / 'evidence_alpha.md').read_text()
    assert table in capsys.readouterr().out
    assert '| naive | 10000 | alpha-0.1 |  |  | 2 | 61.50 ± 0.71 | +1.00 ± 0.00 |' in table
    assert '| before_relu |  | alpha-0.1 | NaiveFeatureLoss | 30 | 2 | 59.50 ± 0.71 |' in table
    assert 'cad' in table and 'other' not in table
    names = (
        'evidence_alpha_weight.svg',
        'evidence_alpha_angular_weight.svg',
        'evidence_alpha_time.png',
    )
    assert all((tmp_path / name).stat().st_size for name in names)
    assert '2w mn/N' in (tmp_path / names[1]).read_text()


def test_a_refitted_classifier_is_the_best_one(monkeypatch):
    """SciPy's minimum of the cross entropy, which is computed in NumPy."""
    optimize = pytest.importorskip('scipy.optimize')
    monkeypatch.syspath_prepend(BENCHMARKS)
    from refit_classifier import fit

    generator = np.random.default_rng(0)
    features = generator.normal(size=(3, 4, 6, 5)) * 7
    labels = generator.integers(0, 3, (3, 6, 5))
    labels[0, 0, :3] = 255
    rows = features.transpose(0, 2, 3, 1).reshape(-1, 4)[labels.ravel() != 255]
    found = labels.ravel()[labels.ravel() != 255]

    def cross_entropy(parameters):
        scores = rows @ parameters[:12].reshape(3, 4).T + parameters[12:]
        scores -= scores.max(1, keepdims=True)
        chosen = scores[np.arange(len(found)), found]
        return (np.log(np.exp(scores).sum(1)) - chosen).mean()

    least = optimize.minimize(cross_entropy, np.zeros(15), method='BFGS')
    weight, bias, loss = fit(torch.from_numpy(features), torch.from_numpy(labels), 3, False, 200)
    assert loss == pytest.approx(least.fun, rel=1e-6) and loss < np.log(3) - 0.01
    parameters = torch.cat([weight.flatten(), bias]).numpy()
    assert cross_entropy(parameters) == pytest.approx(loss, rel=1e-9)


def test_refit_classifier(load, tmp_path, capsys):
    """A student whose classifier says nothing but background learns it again from its feature."""
    from rawkd_mm.analysis.pictures import load_model
    from rawkd_mm.training import load_config

    make_scenes(tmp_path / 'data', train=16, val=8)
    name = 'pspnet_r18-w12_1xb16-4k_digit-scenes-48x48'
    cfg = load_config(f'configs/quickstart/{name}.py')
    for part in ('train', 'val'):
        cfg[f'{part}_dataloader'].dataset.data_root = str(tmp_path / 'data')
    folder = tmp_path / 'training'
    folder.mkdir()
    cfg.dump(str(folder / 'config.py'))
    model = load_model(cfg, f'configs/quickstart/weights/{name}.pth')
    torch.nn.init.zeros_(model.decode_head.conv_seg.weight)
    torch.save(dict(state_dict=model.state_dict()), folder / 'iter_1.pth')
    (folder / 'last_checkpoint').write_text('elsewhere/iter_1.pth')
    out = tmp_path / 'refit.csv'
    load('refit_classifier', folder, '--csv', out)
    (row,) = csv.DictReader(out.open())
    assert float(row['as_trained']) < 10 and float(row['refitted']) > 30
    assert float(row['cross_entropy']) < 0.1 and float(row['feature_rms']) > 0.1
    assert f'| training | {float(row["as_trained"]):.2f} | ' in capsys.readouterr().out
