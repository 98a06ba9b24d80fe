"""The command `rawkd`, from an installed wheel, in a folder that is no checkout.

What is installed is started afresh: a process of the fork server has the checkout's package.
"""

import json
import os
import re
import resource
import subprocess
import sys

import pytest
from built_wheel import build_wheel, copy_source
from built_wheel import run as run_step
from tool_project import ROOT, TOOLS

import rawkd
import rawkd_mm

QUICKSTART = 'quickstart/'
TEACHER = 'pspnet_r18-w12_1xb16-4k_digit-scenes-48x48'
STUDENT = 'pspnet_r18-w4_1xb16-4k_digit-scenes-48x48'
LAD = 'lad_bottleneck_pspnet-r18-w12_pspnet-r18-w4_1xb16-4k_digit-scenes-48x48'
FEW = 'lad_bottleneck_pspnet-r18-w12_pspnet-r18-w4_1xb16-1k_digit-scenes-48x48_50-labels'
TWO_ITERATIONS = (
    '--cfg-options', 'train_cfg.max_iters=2', 'train_cfg.val_interval=2',
    'default_hooks.logger.interval=1',
)  # fmt: skip


class Installed:
    """The wheel, installed into a folder of its own."""

    def __init__(self, folder):
        wheel, _ = build_wheel(copy_source(folder / 'source'), folder / 'wheel')
        self.packages = folder / 'packages'
        options = ('--no-deps', '--no-index', '--no-compile', '--target', self.packages)
        run_step(sys.executable, '-m', 'pip', 'install', *options, wheel, cwd=folder)

    @property
    def program(self):
        return self.packages / 'bin' / 'rawkd'

    def run(self, *args, cwd, code=0, **environment):
        """Start `rawkd`, or another program; gives its output and its errors."""
        command = [str(arg) for arg in args]
        if not command or command[0] != sys.executable:
            command.insert(0, str(self.program))
        env = {**os.environ, 'PYTHONPATH': str(self.packages), 'CUDA_VISIBLE_DEVICES': ''}
        env |= dict(OMP_NUM_THREADS='1') | environment
        done = subprocess.run(
            command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == code, f'{command}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}'
        return done.stdout, done.stderr


@pytest.fixture(scope='module')
def installed(once, tmp_path_factory):
    return once('installed', lambda: Installed(tmp_path_factory.mktemp('installed')))


@pytest.mark.parametrize('name', rawkd.COMMANDS)
def test_help_is_the_tools_own(installed, tmp_path, name):
    script = TOOLS / rawkd.COMMANDS[name]
    done = subprocess.run(
        [sys.executable, script, '--help'], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'COLUMNS': '2000'},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected = done.stdout.replace(f'usage: {script.name} ', f'usage: rawkd {name} ', 1)
    assert expected != done.stdout
    assert installed.run(name, '--help', cwd=tmp_path, COLUMNS='2000')[0] == expected


def test_help_and_version_are_quick(installed, tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    text, _ = installed.run('--help', cwd=tmp_path)
    version, _ = installed.run('--version', cwd=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # of the processor, as the machine may be busy
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1
    assert version == f'rawkd_mm {rawkd_mm.__version__}\n'
    listed = re.findall(r'^  ([a-z-]+)  +[A-Z]', text, re.M)
    assert listed == list(rawkd.COMMANDS)


@pytest.mark.parametrize('argument', ['--help', '--version', 'trian'])
def test_heavy_packages_are_not_imported(installed, tmp_path, argument):
    code = (
        'import sys, contextlib, rawkd\n'
        f'with contextlib.suppress(SystemExit): rawkd.main([{argument!r}])\n'
        "print(sorted({'torch', 'numpy', 'mmengine', 'rawkd_mm', 'argparse'} & set(sys.modules)))\n"
        'print(rawkd.__file__)'
    )
    out, _ = installed.run(sys.executable, '-c', code, cwd=tmp_path)
    assert out.splitlines()[-2:] == ['[]', str(installed.packages / 'rawkd.py')]


def test_the_launchers_are_where_help_says(installed, tmp_path):
    text, _ = installed.run('--help', cwd=tmp_path)
    (python, script) = re.search(r'PYTHON=(\S+) bash (\S+/dist_train\.sh) CONFIG 8', text).groups()
    assert python == sys.executable
    assert script.startswith(str(installed.packages))
    done = subprocess.run(['bash', script], capture_output=True, text=True)
    assert done.returncode == 2 and 'usage: tools/dist_train.sh CONFIG GPUS' in done.stderr


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ([], 'rawkd: error: a command is missing'),
        (['trian'], "there is no command 'trian'; the closest: train"),
        (['makeconfig'], "there is no command 'makeconfig'; the closest: make-config"),
        (['--gpus'], f"there is no command '--gpus'; there are {', '.join(rawkd.COMMANDS)}"),
        (['train'], 'rawkd train: error: the following arguments are required: CONFIG'),
        (['train', 'no.py'], "rawkd train: error: CONFIG: 'no.py' is not a file"),
        (['test', '--no-such'], 'rawkd test: error: the following arguments are required'),
        (['inspect', 'no.py'], "rawkd inspect: error: 'no.py' is not a file"),
        (['configs', 'voc21', 'lad_b'], "no config has 'voc21 lad_b' in its name; the closest: lad/"),
        (['configs', 'yolo'], "no config has 'yolo' in its name; without TEXT all are listed"),
        (['configs', TEACHER.replace('w12', 'w21')], f'the closest: {QUICKSTART}{TEACHER}.py'),
        (['configs', 'quickstart', '-o', 'mine.py'], '-o copies one config, and 15 fit:'),
        (['configs', TEACHER, '-o', 'mine.txt'], "-o 'mine.txt': expected a folder that exists"),
        (['configs', TEACHER, '-o', 'there.py'], "'there.py' exists. Choose another name"),
        (['configs', TEACHER, '--force'], '--cfg-options and --force are about the file'),
    ],
)  # fmt: skip
def test_errors(installed, tmp_path, arguments, message):
    (tmp_path / 'there.py').write_text('mine')
    out, error = installed.run(*arguments, cwd=tmp_path, code=2)
    assert message in error and not out and 'Traceback' not in error
    assert (tmp_path / 'there.py').read_text() == 'mine'


def test_configs_lists_the_zoo(installed, tmp_path):
    def listed(*texts):
        return installed.run('configs', *texts, cwd=tmp_path)[0].splitlines()

    zoo = {path.relative_to(ROOT / 'configs') for path in (ROOT / 'configs').glob('*/*.py')}
    everything = listed()
    assert everything == sorted(str(path) for path in zoo if path.parts[0] != '_base_')
    assert listed('LAD', 'coco') == [n for n in everything if '/lad_' in n and 'coco' in n]
    # the name of one, which is a part of others' too
    assert listed(LAD) == [f'{QUICKSTART}{LAD}.py']
    assert listed(f'{LAD}_') == [f'{QUICKSTART}{LAD}_unlabelled.py']


@pytest.fixture(scope='module')
def folder(installed, once, tmp_path_factory):
    """A folder with data and copied configs, made by the command alone."""

    def make():
        folder = tmp_path_factory.mktemp('no_checkout')
        out, _ = installed.run('configs', FEW, '-o', 'my_lad.py', cwd=folder)
        (command,) = {
            line.partition('from: rawkd ')[2] for line in out.splitlines() if 'from:' in line
        }
        installed.run(*command.split(), '--train', '60', '--workers', '1', cwd=folder)
        installed.run('configs', STUDENT, '-o', 'student.py', cwd=folder)
        teacher, _ = installed.run('configs', TEACHER, '-o', '.', cwd=folder)
        return folder, out, teacher

    return once('no_checkout', make)


def test_a_copied_config_needs_no_other_file(folder):
    path, out, _ = folder
    text = (path / 'my_lad.py').read_text()
    assert not re.search(r'cfg_path|_base_|::', text)
    assert str(ROOT) not in text and 'packages/' not in text and str(path) not in text
    assert f"teacher_ckpt='{TEACHER}.pth'" in re.sub(r'=\s+', '=', text)
    source = ROOT / 'configs/quickstart/weights' / f'{TEACHER}.pth'
    assert (path / f'{TEACHER}.pth').read_bytes() == source.read_bytes()
    for said in (out, text.partition('auto_scale_lr')[0]):
        assert f"{TEACHER}.pth: the teacher's weights\n" in said
        assert 'data/digit_scenes: the data, from: rawkd digit-scenes' in said
        assert 'data/digit_scenes/images/train: the data, from: rawkd digit-scenes' in said
    assert out.endswith('To train it: rawkd train my_lad.py\n')


def test_other_weights_are_not_overwritten(folder, tmp_path, capsys):
    """The copy of a config writes two files."""
    mine = tmp_path / f'{TEACHER}.pth'
    mine.write_text('mine')
    command = [sys.executable, ROOT / 'rawkd.py', 'configs', LAD, '-o', 'lad.py']
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode and f"'{TEACHER}.pth' exists and is not the file" in done.stderr
    assert mine.read_text() == 'mine' and not (tmp_path / 'lad.py').exists()
    subprocess.run([*command, '--force'], cwd=tmp_path, check=True, capture_output=True)
    assert mine.read_bytes() != b'mine' and (tmp_path / 'lad.py').is_file()


def test_the_shipped_teacher_has_its_published_metric(installed, folder):
    """As a user evaluates it; README and the log beside it have the same number."""
    path, _, out = folder
    command = re.search(r'To evaluate them: rawkd (.+)', out)[1]
    installed.run(*command.split(), cwd=path)
    result = json.loads((path / f'work_dirs/{TEACHER}/test_metrics.json').read_text())
    log = (ROOT / 'configs/quickstart/weights' / f'{TEACHER}.json').read_text().splitlines()
    published = json.loads(log[-1])['mIoU']
    assert result['metrics']['mIoU'] == pytest.approx(published, abs=0.006)
    assert f'| teacher | {published:.2f} |' in (ROOT / 'README.md').read_text()


def test_make_train_test_and_report(installed, folder):
    """An own distillation with the shipped teacher, as the README shows it."""
    path, _, _ = folder
    pair = ['--teacher', f'{TEACHER}.py', '--teacher-ckpt', f'{TEACHER}.pth', '--student']
    made, _ = installed.run(
        'make-config', '--method', 'cad', *pair, 'student.py', '-o', 'my_cad.py', cwd=path
    )
    assert 'decode_head.bottleneck' in made
    installed.run('train', 'my_cad.py', *TWO_ITERATIONS, cwd=path)
    (log,) = (path / 'work_dirs/my_cad').glob('*/*.log')
    script = installed.packages / 'rawkd_mm/.mim/tools/train.py'
    assert f'Command: {sys.executable} {script} my_cad.py --cfg-options' in log.read_text()
    (scalars,) = (path / 'work_dirs/my_cad').glob('*/vis_data/scalars.json')
    logged = [json.loads(line) for line in scalars.read_text().splitlines()]
    assert any(key.startswith('distill.') for entry in logged for key in entry)
    (validated,) = (entry for entry in logged if 'mIoU' in entry)

    out, _ = installed.run('test', 'my_cad.py', 'work_dirs/my_cad/iter_2.pth', cwd=path)
    metrics = json.loads((path / 'work_dirs/my_cad/test_metrics.json').read_text())['metrics']
    for name, value in metrics.items():
        assert value == pytest.approx(validated[name], abs=0.011)
        assert f'{name}: {value:g}' in out

    out, _ = installed.run('report', 'work_dirs/my_cad', '--images', '1', cwd=path)
    report = (path / 'work_dirs/my_cad/report.html').read_text()
    assert 'work_dirs/my_cad/report.html' in out and '<h2>Metrics' in report


@pytest.mark.slow
def test_the_other_commands(installed, folder):
    path, _, _ = folder
    few = ['train_dataloader.batch_size=2', *TWO_ITERATIONS[1:]]
    installed.run('train', 'my_lad.py', '--cfg-options', *few, cwd=path)
    log = next((path / 'work_dirs/my_lad').glob('*/vis_data/scalars.json')).read_text()
    assert 'distill_unlabelled.' in log
    out, _ = installed.run('inspect', f'{TEACHER}.py', cwd=path)
    assert 'decode_head.bottleneck' in out
    installed.run('dump-config', 'my_lad.py', 'dumped.py', cwd=path)
    assert (path / 'dumped.py').is_file()
    out, _ = installed.run('benchmark', 'my_lad.py', '--help', cwd=path)
    assert 'usage: rawkd benchmark' in out
    sweep = [
        '--method',
        'lad',
        '--weights',
        '3',
        '--seeds',
        '0',
        '--work-dir',
        'sweep',
        '--cfg-options',
        *few,
    ]
    installed.run('sweep', 'my_lad.py', *sweep, cwd=path)
    assert list((path / 'sweep').glob('*/result.json'))


@pytest.mark.slow
def test_demo(installed, tmp_path):
    few = ['--iters', '4', '--train', '60', '--val', '8', '--jobs', '1']
    out, _ = installed.run('demo', *few, cwd=tmp_path)
    table = (tmp_path / 'work_dirs/demo/table.md').read_text()
    assert table in out + '\n' and table.count('\n') == 7
