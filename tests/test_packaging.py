"""What a user of the package gets: wheel, sdist, editable install; and the set-up script."""

import dataclasses
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml
from built_wheel import ROOT, build_wheel, copy_source, run

import rawkd_mm


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    return copy_source(tmp_path_factory.mktemp('source') / 'rawkd_mm')


@pytest.fixture(scope='module')
def wheel(source, tmp_path_factory):
    return build_wheel(source, tmp_path_factory.mktemp('wheel'))


def files_below(folder):
    found = (path for path in (ROOT / folder).rglob('*') if path.is_file())
    return {path.relative_to(ROOT).as_posix() for path in found if '__pycache__' not in path.parts}


def test_wheel_has_every_module_and_mim(wheel):
    _, names = wheel
    modules = {name for name in files_below('rawkd_mm') if '.mim' not in name}
    assert {name for name in modules if name.endswith('.py')} <= names
    expected = files_below('configs') | files_below('tools') | {'model-index.yml'}
    shipped = {name.removeprefix('rawkd_mm/.mim/') for name in names if '/.mim/' in name}
    assert shipped == expected
    others = {name.split('/')[0] for name in names} - {'rawkd_mm', 'rawkd.py'}
    assert len(others) == 1 and others.pop().endswith('.dist-info'), 'stray top-level package'
    assert 'rawkd.py' in names


def test_wheel_has_no_leftovers_of_an_earlier_build(source, wheel, tmp_path):
    stale = source / 'build' / 'lib' / 'rawkd_mm' / 'deleted_since.py'
    stale.parent.mkdir(parents=True, exist_ok=True)
    stale.touch()
    assert build_wheel(source, tmp_path)[1] == wheel[1]


def test_wheel_from_sdist_is_the_same(source, wheel, tmp_path):
    code = f'from setuptools.build_meta import build_sdist; build_sdist({str(tmp_path)!r})'
    run(sys.executable, '-c', code, cwd=source)
    (sdist,) = tmp_path.glob('*.tar.gz')
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter='data')
    unpacked = tmp_path / sdist.name.removesuffix('.tar.gz')
    assert build_wheel(unpacked, tmp_path / 'wheel')[1] == wheel[1]


def test_editable_install_links_mim(source, tmp_path):
    """A fresh one, so that it is this setup.py that is tested and not how .venv was made."""
    options = ('--no-deps', '--no-build-isolation', '--no-index', '--target', tmp_path)
    run(sys.executable, '-m', 'pip', 'install', *options, '--editable', source, cwd=source)
    mim = source / 'rawkd_mm' / '.mim'
    for part in ('configs', 'tools', 'model-index.yml'):
        assert os.path.samefile(mim / part, source / part)
    assert (tmp_path / 'bin' / 'rawkd').is_file()
    # -I -S: without PYTHONPATH and this environment's packages, which may have the command, too
    code = f'import site; site.addsitedir({str(tmp_path)!r}); import rawkd; print(rawkd.TOOLS)'
    found = subprocess.check_output([sys.executable, '-I', '-S', '-c', code], text=True)
    assert Path(found.strip()) == source / 'tools'
    (source / 'model-index.yml').write_text('Import: []  # edited\n')
    assert 'edited' in (mim / 'model-index.yml').read_text()


def test_running_environment_exposes_mim():
    mim = Path(rawkd_mm.__file__).parent / '.mim'
    assert (mim / 'configs').is_dir()
    assert (mim / 'tools' / 'dev' / 'setup_env.py').is_file()
    assert (mim / 'model-index.yml').read_text() == (ROOT / 'model-index.yml').read_text()


def test_version_is_one(wheel):
    assert rawkd_mm.__version__ == importlib.metadata.version('rawkd_mm')
    assert f'rawkd_mm-{rawkd_mm.__version__}-' in wheel[0].name


def test_model_index_names_exactly_the_metafiles():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    metafiles = {path.relative_to(ROOT).as_posix() for path in ROOT.glob('configs/**/metafile.yml')}
    assert set(index['Import']) == metafiles


def test_only_one_opencv_is_installed():
    names = {d.metadata['Name'].lower() for d in importlib.metadata.distributions()}
    assert len({name for name in names if name.startswith('opencv')}) == 1


def test_the_extra_has_what_the_tests_run_with():
    """`pip install -e .[tests]` is enough for the options that the Makefile gives pytest."""
    needed = {re.split('[=<>]', line)[0] for line in pinned('tests') if line.startswith('pytest')}
    assert {'pytest', 'pytest-timeout', 'pytest-xdist'} <= needed
    (extra,) = re.findall(r"'tests': \[(.*?)\]", (ROOT / 'setup.py').read_text(), re.S)
    assert needed <= {re.split('[=<>]', name)[0] for name in re.findall(r"'(.*?)'", extra)}


def pinned(name):
    """The requirements of a file in requirements/."""
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text().splitlines()
    return [line.partition('#')[0].strip() for line in lines]


def test_ruff_is_one_version():
    hook = (ROOT / '.pre-commit-config.yaml').read_text()
    pinned = re.findall(r'^ruff==(\S+)', (ROOT / 'requirements/tests.txt').read_text(), re.M)
    assert set(re.findall(r'ruff==([^\]]+)', hook)) == set(pinned)


# tools/dev/setup_env.py


@pytest.fixture(scope='module')
def setup_env():
    spec = importlib.util.spec_from_file_location('setup_env', ROOT / 'tools/dev/setup_env.py')
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


BUILD = dict(
    mmcv='2.3.6', torch='2.14.1+cu130', python='cp311', platform='linux-x86_64', device='cpu'
)


def test_wheel_key_names_the_build(setup_env):
    key = setup_env.wheel_key(**BUILD)
    assert all(part in key for part in BUILD.values())
    assert '/' not in key


@pytest.mark.parametrize('part', sorted(BUILD))
def test_wheel_key_differs_with_every_part(setup_env, part):
    assert setup_env.wheel_key(**{**BUILD, part: 'other'}) != setup_env.wheel_key(**BUILD)


def test_probe_finds_the_ops_of_this_environment(setup_env, monkeypatch):
    import mmcv
    import torch

    names = {d.metadata['Name'] for d in importlib.metadata.distributions()}
    stacks = {stack.mmcv: stack for stack in (setup_env.MODERN, setup_env.CLASSIC)}
    (name,) = names & set(stacks)
    running = dataclasses.replace(stacks[name], venv=Path(sys.prefix))
    monkeypatch.setattr(setup_env, 'STACK', running)
    have = setup_env.probe()
    assert have['version'] == mmcv.__version__ and have['torch'] == torch.__version__
    assert have['python'] == f'cp{sys.version_info[0]}{sys.version_info[1]}'
    assert have['ops'] == ('yes' if importlib.util.find_spec('mmcv._ext') else 'none')


@pytest.mark.timeout(20)
def test_a_lock_that_this_process_holds_is_not_waited_for(setup_env, tmp_path, monkeypatch):
    """A kept wheel that does not load is compiled anew, under the lock that was taken to look at it."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setattr(setup_env, 'LOCKS', {})
    for folder in (tmp_path / 'a', tmp_path / 'b', tmp_path / 'a'):
        setup_env.lock(folder, 'compiles the same wheel')
    assert list(setup_env.LOCKS) == [tmp_path / 'a', tmp_path / 'b']
    for descriptor in setup_env.LOCKS.values():
        os.close(descriptor)


def test_a_step_runs_again_when_an_input_changes(setup_env, tmp_path):
    pins = tmp_path / 'requirements.txt'
    pins.write_text('a==1\n')
    step = setup_env.Step('packages', '', '', (pins,), run=lambda: None)
    done = {'packages': step.hash()}
    assert step.up_to_date(done)
    pins.write_text('a==2\n')
    assert not step.up_to_date(done)


def test_pins_have_one_line_a_marker(setup_env):
    for path in (ROOT / 'requirements.txt', *(ROOT / 'requirements').glob('*.txt')):
        for name, lines in setup_env.pins(path).items():
            assert all('==' in line for line in lines), f'{name} is not pinned in {path}'
            assert len(lines) == 1 or all(';' in line for line in lines)


def test_no_registry_or_machine_path_in_the_setup():
    names = ('Makefile', 'setup.py', 'requirements.txt', 'requirements/classic.txt')
    for name in (*names, 'tools/dev/setup_env.py'):
        text = (ROOT / name).read_text()
        assert not re.search(r'https?://|/home/|/root/|--index-url|find-links', text), name
