"""The models whose weights come along: putting them there, and checking them."""

import importlib
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config
from tool_project import ROOT, TOOLS

from rawkd_mm.analysis.ship_training import (
    default_name,
    log_of,
    read_finished,
    student_state,
    weights_bytes,
    write_model,
)
from rawkd_mm.analysis.shipped_models import (
    METAFILE,
    ZooError,
    evaluate_with_tool,
    publish,
    read_metafile,
    read_shipped,
)
from rawkd_mm.analysis.shipped_pages import make_page, with_part
from rawkd_mm.training import leaf_text, load_config, make_paths_relative, student_config

sys.path.insert(0, str(TOOLS / 'dev'))

LAD = 'lad_bottleneck_pspnet-r18-w12_pspnet-r18-w4_1xb16-4k_digit-scenes-48x48'
TEACHER = 'pspnet_r18-w12_1xb16-4k_digit-scenes-48x48'
STUDENT = 'pspnet_r18-w4_1xb16-4k_digit-scenes-48x48'
ITERATIONS = (
    'train_cfg.max_iters=4', 'train_cfg.val_interval=2', 'param_scheduler.0.total_steps=4',
    'default_hooks.checkpoint.interval=4', 'default_hooks.logger.interval=1',
    'train_dataloader.batch_size=4',
)  # fmt: skip
PAGES = ('digit_scenes', 'lad', 'naive', 'students')


def make_root(folder: Path, data: Path) -> Path:
    """A small repository: what the tools read and write, and data."""
    (folder / 'data').mkdir(parents=True)
    (folder / 'data/digit_scenes').symlink_to(data)
    for name in ('_base_', 'quickstart', *PAGES):
        shutil.copytree(ROOT / 'configs' / name, folder / 'configs' / name)
    metafiles = [path for path in index_of(ROOT) if path.split('/')[1] in PAGES]
    (folder / 'model-index.yml').write_text(yaml.safe_dump(dict(Import=metafiles)))
    return folder


def index_of(root):
    return yaml.safe_load((root / 'model-index.yml').read_text())['Import']


def call(name, *args, root, python, **globals_):
    """Run a tool of tools/dev on another repository, in this process; gives code, output, errors."""
    module = importlib.import_module(name)
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', [name, *map(str, args)])
        patch.setattr(sys, 'executable', str(python))
        patch.setattr(sys, 'stdout', out)
        patch.setattr(sys, 'stderr', err)
        patch.setenv('OMP_NUM_THREADS', '1')
        patch.chdir(root)
        for key, value in dict(ROOT=root, **globals_).items():
            if hasattr(module, key):  # weight_sweep.py works where it is started
                patch.setattr(module, key, value)
        try:
            module.main()
        except SystemExit as end:
            code = end.code or 0
            if isinstance(code, str):
                err.write(code)
                code = 1
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope='module')
def trained(once, project, tmp_path_factory):
    """A small repository, and in it a sweep of a student alone and a naive distillation."""

    def make():
        root = make_root(tmp_path_factory.mktemp('zoo') / 'root', project.folder / 'data')
        for method in ('student', 'naive'):
            weights = [] if method == 'student' else ['--weights', '10']
            code, out, err = call(
                'weight_sweep', f'configs/quickstart/{LAD}.py', '--method', method, *weights,
                '--seeds', '1', '--work-dir', 'work_dirs/tiny-4', '--cfg-options', *ITERATIONS,
                root=root, python=project.fast_python,
            )  # fmt: skip
            assert code == 0, out + err
        return root

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TOOLS / 'analysis_tools')
        return once('trained_zoo', make)


@pytest.fixture
def root(trained, tmp_path):
    """A copy that the test may change."""
    return Path(shutil.copytree(trained, tmp_path / 'root', symlinks=True))


@pytest.fixture
def sweep(trained):
    return trained / 'work_dirs/tiny-4'


@pytest.fixture
def ship(root, trained, project):
    """Calls ship_models.py on the copy."""
    fixed = ['--commit', '0123abc', '--replace', f'{trained}=.']
    kwargs = dict(root=root, python=project.fast_python)
    return lambda *args: call('ship_models', *args, *fixed, **kwargs)


@pytest.fixture
def read(root, trained):
    """Reads what a training has left."""
    return lambda folder, **more: read_finished(
        folder, root, '0123abc', {str(trained): '.', **more}
    )


def contents(root):
    files = (path for path in (root / 'configs').rglob('*') if path.is_file())
    return {path.relative_to(root): path.read_bytes() for path in files}


needs_ruff = pytest.mark.skipif(
    importlib.util.find_spec('ruff') is None,
    reason='ruff, which lays configs out, is not installed',
)


@needs_ruff
def test_shipping(root, sweep, project, ship):
    """All that a training leaves is there; twice it is the same; the check finds what is changed."""
    before = contents(root)
    folders = (sweep / 'naive-w10-seed1', sweep / 'student-seed1')
    code, out, err = ship(*folders)
    assert code == 0, out + err
    first = contents(root)
    name, alone = 'tiny-4_naive-w10-seed1', 'tiny-4_student-seed1'
    home = METAFILE.parent
    files = [home / f'{m}.py' for m in (name, alone)]
    files += [home / f'weights/{m}.{ending}' for m in (name, alone) for ending in ('pth', 'json')]
    assert first.keys() - before.keys() == set(files)
    pages = [home / 'README.md', METAFILE, *(Path('configs', p, 'README.md') for p in PAGES[2:])]
    assert {path for path in before if first[path] != before[path]} == set(pages)

    entries = {entry['Name']: entry for entry in read_metafile(root / METAFILE)['Models']}
    about = entries[name]['Metadata']
    values = [json.loads((f / 'result.json').read_text())['metrics']['mIoU'] for f in folders]
    assert entries[name]['Results'][0]['Metrics'] == {'mIoU': round(values[0], 2)}
    assert about['Command'].startswith(f'python tools/train.py configs/quickstart/{LAD}.py --cfg')
    assert about['Command'].endswith('model.distiller.loss.loss_weight=10')
    assert str(sweep) not in about['Command'] and about['Commit'] == '0123abc'
    assert about['Student']['Config'] == f'configs/quickstart/{STUDENT}.py'
    assert (about['Method'], about['Loss Weight'], about['Seed']) == ('naive', '10', 1)
    assert about['Teacher']['Weights'] == f'configs/quickstart/weights/{TEACHER}.pth'
    assert about['Architecture'] == ['EncoderDecoder', 'ResNetV1c', 'PSPHead']

    # the config is that of the training, in few lines
    text = first[home / f'{name}.py'].decode()
    # naive distillation differs from LAD and from CAD alike
    assert f'/{LAD[1:]}.py' in text.replace('/cad_', '/ad_').replace('/lad_', '/ad_')
    assert len(text.splitlines()) < 25
    assert str(root) not in text and str(ROOT) not in text
    cfg = load_config(str(root / home / f'{name}.py'))
    (dumped,) = (sweep / 'naive-w10-seed1').glob('*/vis_data/config.py')
    other = load_config(str(dumped))
    for config in (cfg, other):
        make_paths_relative(config, [str(root), str(sweep.parents[1])])
        for key in ('work_dir', 'launcher'):
            config.pop(key, None)
    assert cfg.to_dict() == other.to_dict()
    assert cfg.model.distiller.loss == dict(type='NaiveFeatureLoss', loss_weight=10)
    written = [str(file) for file in files if file.suffix == '.py']
    format_check = [sys.executable, '-m', 'ruff', 'format', '--check', *written]
    assert subprocess.run(format_check, capture_output=True, cwd=root).returncode == 0

    # the weights are the student's alone
    saved = torch.load(root / home / f'weights/{name}.pth', weights_only=True)
    kept = torch.load(sweep / 'naive-w10-seed1/iter_4.pth', weights_only=False)['state_dict']
    assert set(saved['state_dict']) == {key for key in kept if not key.startswith('distiller.')}
    assert any(key.startswith('distiller.') for key in kept)
    assert about['Stored As'] == 'float16'
    for key, value in saved['state_dict'].items():
        expected = kept[key].half() if kept[key].is_floating_point() else kept[key]
        assert torch.equal(value, expected) and value.dtype == expected.dtype, key

    # the log is whole, in the order of the iterations
    log = [json.loads(line) for line in first[home / f'weights/{name}.json'].splitlines()]
    assert about['Log Records'] == f'all {len(log)} records'
    assert [entry['step'] for entry in log if 'loss' in entry] == [1, 2, 3, 4]
    assert [entry['step'] for entry in log if 'mIoU' in entry] == [2, 4] and 'mIoU' in log[-1]

    # the pages show it, apart from the paper's models
    value = f'{values[0]:.2f}'
    gain = f'{round(values[0], 2) - round(values[1], 2):+.2f}'
    page = first[home / 'README.md'].decode()
    assert f'| [{name}]({name}.py) | naive | 10 | 1 | 4 | {value} | {gain} | [0.' in page
    page = first[Path('configs/naive/README.md')].decode()
    ours = page[page.index('## Ours, DigitScenes') : page.index('## Assumptions')]
    assert f'| [{name}](../digit_scenes/{name}.py) | naive | 10 | 1 | 4 | {value} |' in ours
    assert alone in first[Path('configs/students/README.md')].decode()

    assert ship(*folders)[0] == 0
    assert contents(root) == first

    # the check finds them as published, by the plain config of the student as well
    kwargs = dict(root=root, python=project.fast_python, DATA={})
    code, out, err = call('check_zoo', '--only', 'tiny-4', **kwargs)
    assert code == 0 and '2 of 2 are as published' in out, out + err
    assert f'| {name} | mIoU | {value} | {value} | same |' in out
    student = about['Student']['Config']
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'executable', str(project.fast_python))
        assert publish(evaluate_with_tool(root, student, entries[name]['Weights']))[1] == value
    out = project.run_mmseg(
        'test.py', student, entries[name]['Weights'], '--work-dir', 'work_dirs/theirs', cwd=root
    )
    assert re.search(rf'mIoU: {re.escape(value)}\d* ', out), out[-2000:]
    text = first[METAFILE].decode()
    at = text.index('mIoU: ', text.index(f'Name: {name}'))
    changed = f'{float(value) + 0.01:.2f}'
    (root / METAFILE).write_text(f'{text[:at]}mIoU: {changed}{text[at + 6 + len(value) :]}')
    (root / home / f'weights/{alone}.pth').write_bytes(b'broken')
    code, out, err = call('check_zoo', '--only', 'tiny-4', **kwargs)
    assert code == 1 and f'| {name} | mIoU | {changed} | {value} | DIFFERS |' in out
    assert f'| {alone} | mIoU | {values[1]:.2f} |  | FAILED |' in out
    assert 'tools/test.py' in err and f"2 of 2 are not as published: ['{name}', '{alone}']" in err

    # what is deleted is off the list and the pages
    (root / METAFILE).write_text(text)
    for model in (name, alone):
        (root / home / f'weights/{model}.pth').unlink()
    code, out, err = call('check_zoo', **kwargs)
    assert code == 1 and f'{name}: configs/digit_scenes/weights/{name}.pth is not there' in err
    code, out, err = ship()
    assert (
        code == 0 and f'{name}: configs/digit_scenes/weights/{name}.pth is not there; it is' in out
    )
    assert contents(root) == before


@needs_ruff
def test_too_much_is_refused(root, sweep, ship):
    before = contents(root)
    files = [
        f
        for part in ('digit_scenes', 'quickstart/weights')
        for f in (root / 'configs' / part).rglob('*')
    ]
    most = round(sum(f.stat().st_size for f in files if f.is_file()) / 1e6 + 0.05, 2)
    code, _, err = ship(sweep / 'student-seed1', '--megabytes', most)
    found = re.search(rf'would have (\S+) MB, and at most {most:g} MB', err)
    assert code == 1 and float(found[1]) >= round(most, 1), err
    assert 'Nothing is written' in err and 'tiny-4_student-seed1.pth 0.' in err
    assert contents(root) == before


def test_halves_that_change_a_digit_are_not_taken(
    root, sweep, project, read, tmp_path, monkeypatch
):
    """1000.2 and 1000.1 are one number as halves, and then another class is predicted."""
    monkeypatch.setattr(sys, 'executable', str(project.fast_python))
    folder = Path(shutil.copytree(sweep, tmp_path / 'tiny-4')) / 'student-seed1'
    checkpoint = torch.load(folder / 'iter_4.pth', weights_only=False)
    checkpoint['state_dict']['decode_head.conv_seg.weight'].zero_()
    bias = checkpoint['state_dict']['decode_head.conv_seg.bias']
    bias[:2] = torch.tensor([1000.1, 1000.2])
    torch.save(checkpoint, folder / 'iter_4.pth')

    training = read(folder)
    staging = root / 'configs/new'
    with pytest.raises(ZooError, match='the training ended with mIoU .* and the weights of iter_4'):
        write_model(training, 'model', root, staging)
    config = Path('configs/new/model.py')
    metrics = evaluate_with_tool(root, config, folder / 'iter_4.pth')
    entry = write_model(training._replace(metrics=metrics), 'model', root, staging)
    assert entry['Metadata']['Stored As'] == 'float32'
    saved = torch.load(staging / 'weights/model.pth', weights_only=True)['state_dict']
    assert saved['decode_head.conv_seg.bias'].dtype == torch.float32


@needs_ruff
def test_models_of_one_student_share_its_config(root, sweep, ship, tmp_path):
    """None that comes along has this student; what is deleted leaves it to the others."""
    folder = Path(shutil.copytree(sweep, tmp_path / 'tiny-4')) / 'naive-w10-seed1'
    (dumped,) = folder.glob('*/vis_data/config.py')
    text = dumped.read_text()
    dumped.write_text(text.replace('dropout_ratio=0.1', 'dropout_ratio=0.2'))
    assert text != dumped.read_text()
    for name in ('one', 'two'):
        code, out, err = ship(folder, '--name', name)
        assert code == 0, out + err
    entries = {entry['Name']: entry for entry in read_metafile(root / METAFILE)['Models']}
    shared = (METAFILE.parent / 'one_student.py').as_posix()
    assert [entries[n]['Metadata']['Student']['Config'] for n in ('one', 'two')] == [shared] * 2
    head = load_config(str(root / shared)).model.decode_head
    assert head.dropout_ratio == 0.2
    assert not (root / METAFILE.parent / 'two_student.py').exists()

    (root / METAFILE.parent / 'weights/one.pth').unlink()
    code, out, err = ship()
    assert code == 0 and 'one: configs/digit_scenes/weights/one.pth is not there' in out, out + err
    assert not (root / METAFILE.parent / 'one.py').exists() and (root / shared).is_file()
    (root / METAFILE.parent / 'weights/two.pth').unlink()
    assert ship()[0] == 0
    assert not any((root / METAFILE.parent).glob('[ot]*.py'))


def test_paths_of_one_machine_are_refused(sweep, read, tmp_path):
    folder = Path(shutil.copytree(sweep, tmp_path / 'tiny-4')) / 'naive-w10-seed1'
    (dumped,) = folder.glob('*/vis_data/config.py')
    text = dumped.read_text()
    dumped.write_text(text.replace("'data/digit_scenes'", "'/mnt/scenes'"))
    with pytest.raises(ZooError, match=r"paths \['/mnt/scenes'\], which are not below"):
        read(folder)
    cfg = read(folder, **{'/mnt/scenes': 'data/digit_scenes'}).cfg
    assert cfg.train_dataloader.dataset.data_root == 'data/digit_scenes'
    assert str(sweep.parents[1]) in text and str(sweep.parents[1]) not in cfg.pretty_text


def test_a_training_that_shared_its_teacher_has_its_own_command(sweep, read, tmp_path):
    """The log of each has the command of the process, which trained the others."""
    folder = Path(shutil.copytree(sweep, tmp_path / 'tiny-4')) / 'naive-w10-seed1'
    (log,) = folder.glob('*/*.log')
    text = re.sub(
        r'Command: (\S+ \S+) .*',
        r'Command: \1 a.py --work-dir x/lad-w3-seed1 --together t',
        log.read_text(),
    )
    log.write_text(text)
    with pytest.raises(ZooError, match='no together.json'):
        read(folder)
    other = ['b.py', '--work-dir', 'x/naive-w1-seed1']
    own = ['b.py', '--work-dir', 'x/naive-w10-seed1', '--resume', 'auto', '--cfg-options', 'a=1']
    (tmp_path / 'tiny-4/student-seed1/together.json').write_text(json.dumps([other, own]))
    training = read(folder)
    assert training.command == 'python tools/train.py b.py --cfg-options a=1'


def test_commit_is_the_last_before_the_training(root, sweep, tmp_path):
    """Found in the repository whose train.py was used."""
    origin = tmp_path / 'origin'
    (origin / 'tools').mkdir(parents=True)
    folder = Path(shutil.copytree(sweep, tmp_path / 'tiny-4')) / 'student-seed1'
    (log,) = folder.glob('*/*.log')
    log.write_text(log.read_text().replace(str(TOOLS), str(origin / 'tools')))
    replace = {str(sweep.parents[1]): '.'}
    with pytest.raises(ZooError, match='does not tell which commit .* Give it with --commit'):
        read_finished(folder, root, replace=replace)
    git = ['git', '-C', str(origin), '-c', 'user.name=a', '-c', 'user.email=a@b']
    subprocess.run([*git, 'init', '-q'], check=True)
    for date in ('2020-01-01T00:00:00', '2099-01-01T00:00:00'):
        environment = {**os.environ, 'GIT_COMMITTER_DATE': date}
        command = [*git, 'commit', '-q', '--allow-empty', '-m', date]
        subprocess.run(command, check=True, env=environment)
    first = subprocess.check_output([*git, 'rev-parse', 'HEAD~'], text=True)
    assert read_finished(folder, root, replace=replace).commit == first[:12]


def test_without_ruff_nothing_is_written(root, sweep, ship, monkeypatch):
    before = contents(root)
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    code, _, err = ship(sweep / 'student-seed1')
    assert code == 1 and 'ruff, which lays the configs out, is not installed' in err
    assert contents(root) == before


@needs_ruff
@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['no_such'], 'has no result.json'),
        (['a', 'b', '--name', 'c'], '--name is for one FOLDER, got 2'),
        (['a', '--replace', 'b'], "--replace 'b': expected FROM=TO"),
        (['x/a', 'y/x/a'], r"['x_a'] would be the names of several models"),
    ],
)
def test_bad_arguments(root, ship, args, message):
    before = contents(root)
    code, _, err = ship(*args)
    assert code and message in err, err
    assert contents(root) == before


def test_a_long_log_is_thinned(tmp_path):
    """All validations stay, and the last record; a resumed session replaces what it repeats."""
    sessions = {'1': range(1, 61), '2': range(51, 101)}
    for session, steps in sessions.items():
        file = tmp_path / session / 'vis_data/scalars.json'
        file.parent.mkdir(parents=True)
        entries = []
        for step in steps:
            entries.append(dict(loss=1.5, session=session, step=step))
            entries += [{'geometry/a/n': 1.0, 'step': step}] if step % 5 == 0 else []
            entries += [dict(mIoU=50.0, step=step)] if step % 25 == 0 else []
        file.write_text(''.join(json.dumps(entry) + '\n' for entry in entries))
    text, records = log_of(tmp_path)
    log = [json.loads(line) for line in text.splitlines()]
    assert records == 'all 124 records' and len(log) == 124
    losses = [entry for entry in log if 'loss' in entry]
    assert [entry['step'] for entry in losses] == list(range(1, 101))
    assert [entry['session'] for entry in losses] == ['1'] * 50 + ['2'] * 50

    text, records = log_of(tmp_path, 2000)
    log = [json.loads(line) for line in text.splitlines()]
    assert (
        len(text) <= 2000
        and records == f'every 3. record of the training, {len(log)} of 124 in all'
    )
    assert [entry['step'] for entry in log if 'mIoU' in entry] == [25, 50, 75, 100]
    assert [entry['step'] for entry in log if 'loss' in entry] == list(range(1, 101, 3))
    assert [entry['step'] for entry in log] == sorted(entry['step'] for entry in log)


@pytest.mark.parametrize('dtype', [torch.float16, torch.float32])
def test_weights_have_the_same_bytes_each_time(dtype):
    """A part of a larger storage is written without the rest."""

    def make(spare):
        whole = torch.arange(10.0) if spare else torch.arange(4.0)
        names = [''.join(['a.', name]) for name in ('weight', 'count')]  # new texts each time
        state = {names[0]: whole[:4], names[1]: torch.tensor(3), 'distiller.b': torch.ones(2)}
        return weights_bytes(student_state(state, dtype), dict(config='a.weight', of=1))

    assert make(False) == make(True)
    saved = torch.load(io.BytesIO(make(True)), weights_only=True)
    assert saved['meta'] == dict(config='a.weight', of=1) and len(saved['state_dict']) == 2
    assert saved['state_dict']['a.weight'].dtype == dtype
    assert saved['state_dict']['a.count'].dtype == torch.int64


@pytest.mark.parametrize(
    'change',
    [
        "model.decode_head.channels = 32; del model.decode_head['loss_decode']",
        "model.backbone = dict(type='SwinTransformer', depths=(2, 2), window=[4], on=True, x=None)",
        "cfg.pop('tta_model'); cfg.new = {'a-b': (1,), 'c': dict()}",
        "cfg.train_cfg = None; cfg.log_level = 'it is \\'quoted\\''",
        "cfg.randomness.seed = 1; cfg.param_scheduler[0].eta_max = 1e-3",
        'cfg.val_cfg = dict(); cfg.train_dataloader.batch_size = 16.0',
    ],
)  # fmt: skip
def test_a_leaf_config_gives_what_it_was_written_from(change, tmp_path):
    base = ROOT / f'configs/quickstart/{LAD}.py'
    cfg = load_config(str(base))
    cfg.model = student_config(cfg).model
    exec(change, dict(cfg=cfg, model=cfg.model))
    text = leaf_text(base, load_config(str(base)), cfg, tmp_path)
    (tmp_path / 'leaf.py').write_text(text)
    again = Config.fromfile(tmp_path / 'leaf.py').to_dict()
    assert again == cfg.to_dict()
    assert repr(again['train_dataloader']['batch_size']) == repr(cfg.train_dataloader.batch_size)


def test_a_leaf_config_says_no_more_than_it_must(tmp_path):
    base = ROOT / f'configs/quickstart/{LAD}.py'
    cfg = load_config(str(base))
    cfg.model.distiller.loss.loss_weight = 7
    text = leaf_text(base, load_config(str(base)), cfg, base.parent)
    assert text == (
        f"_base_ = '{LAD}.py'\n\nmodel = dict(distiller=dict(loss=dict(loss_weight=7)))\n"
    )


def test_names():
    folder = Path('a/pspnet-1000/lad-w3-model.teacher_ckpt=alpha-10.pth~9e0a7f-seed0')
    assert default_name(folder) == 'pspnet-1000_lad-w3-model.teacher_ckpt-alpha-10.pth-9e0a7f-seed0'


# What this repository has


def test_pages_are_those_of_the_metafile():
    models = read_shipped(ROOT)
    assert len({model.name for model in models}) == len(models)
    page = (ROOT / METAFILE.parent / 'README.md').read_text()
    assert page == make_page(ROOT, models)
    for path in (ROOT / 'configs').glob('*/README.md'):
        if '\n## Assumptions\n' in path.read_text() and path.parent.name != 'digit_scenes':
            assert path.read_text() == with_part(ROOT, path.parent.name, models), path
    for model in models:
        log = (ROOT / model.metadata['Log']).read_text().splitlines()
        assert publish(json.loads(log[-1])) == (model.metric, model.value)
        assert model.metadata['Commit'] and model.metadata['Command'].startswith('python ')
        assert (
            load_config(str(ROOT / model.config)).train_cfg.max_iters == json.loads(log[-1])['step']
        )


def test_all_that_comes_along_is_small():
    files = [*(ROOT / METAFILE.parent).rglob('*'), *(ROOT / 'configs/quickstart/weights').iterdir()]
    assert sum(path.stat().st_size for path in files if path.is_file()) <= 25e6


def test_weights_that_no_metafile_has_are_an_error(root):
    (root / 'configs/lad/stray.pth').touch()
    with pytest.raises(ZooError, match=r"\['configs/lad/stray.pth'\] are in no metafile"):
        read_shipped(root)


@pytest.fixture
def zoo(once, project, tmp_path_factory):
    """All that comes along, beside data that are made once."""

    def make():
        folder = tmp_path_factory.mktemp('whole_zoo')
        (folder / 'configs').symlink_to(ROOT / 'configs')
        (folder / 'model-index.yml').symlink_to(ROOT / 'model-index.yml')
        return folder

    return dict(root=once('whole_zoo', make), python=project.fast_python)


def test_one_model_is_as_published(zoo):
    code, out, err = call('check_zoo', '--only', TEACHER, **zoo)
    assert code == 0, out + err
    assert f'| {TEACHER} | mIoU | 75.62 | 75.62 | same |' in out


def test_check_knows_its_models(zoo):
    code, _, err = call('check_zoo', '--only', 'w12', 'no such', **zoo)
    names = [model.name for model in read_shipped(ROOT)]
    assert code == 1 and f"--only 'no such': no model has it in its name; there are {names}" in err


@pytest.mark.slow
@pytest.mark.usefixtures('mmdet')
def test_all_models_are_as_published(zoo):
    code, out, err = call('check_zoo', '--jobs', '2', **zoo)
    count = len(read_shipped(ROOT))
    assert code == 0 and f'{count} of {count} are as published' in out, out + err
