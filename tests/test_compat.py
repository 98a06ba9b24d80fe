"""Importing rawkd_mm, each time in a fresh interpreter.

Packages are missing for real: the interpreter runs without its site-packages (`-S`), on a folder of
links to all of them but the ones a test leaves out, code and metadata alike.
"""

import json
import os
import subprocess
import sys
import sysconfig
import warnings
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from rawkd_mm import compat

ROOT = Path(__file__).resolve().parents[1]
SITE = [Path(p) for p in dict.fromkeys(sysconfig.get_paths()[k] for k in ('purelib', 'platlib'))]


def owner(entry):
    """Distribution name of a .dist-info folder."""
    return entry.name.split('-')[0].lower().replace('_', '-')


def link_site(folder, without=(), versions=()):
    """Link all installed packages into a folder.

    Args:
        folder (Path): Where to.
        without (Sequence[str]): Import names that are left out, with their metadata.
        versions (dict[str, str]): Import name -> version that its metadata shall tell.
    """
    folder.mkdir()
    found = packages_distributions()

    def providers(name):  # Python 3.10 finds only those with a top_level.txt
        return {*found.get(name, ()), *compat.TESTED_VERSIONS.get(name, (name,))}

    dropped = {d for name in without for d in providers(name)}
    changed = {d: v for name, v in dict(versions).items() for d in providers(name)}
    for entry in (e for path in SITE for e in path.iterdir()):
        metadata = entry.suffix == '.dist-info'
        if entry.stem in without or (metadata and owner(entry) in dropped):
            continue
        if metadata and owner(entry) in changed:
            text = (entry / 'METADATA').read_text(encoding='utf-8').splitlines()
            version = f'Version: {changed[owner(entry)]}'
            text = [version if line.startswith('Version: ') else line for line in text]
            (folder / entry.name).mkdir()
            (folder / entry.name / 'METADATA').write_text('\n'.join(text), encoding='utf-8')
        else:
            (folder / entry.name).symlink_to(entry)
    return folder


def run_python(script, cwd, site=None):
    """Run a script that prints one line of JSON last, and give what that line says."""
    paths = [ROOT] if site is None else [ROOT, site]
    result = subprocess.run(
        [sys.executable, *(['-S'] if site else []), '-c', script],
        cwd=cwd,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(map(str, paths))},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


IMPORT = """
import json, sys, time, warnings
import mmcv, torch
before = torch.__version__, mmcv.__version__
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    import rawkd_mm
result = dict(
    untested=[str(w.message) for w in caught if 'rawkd_mm' in str(w.message)],
    same=[torch.__version__ is before[0], mmcv.__version__ is before[1]],
    versions=[str(before[0]), before[1]],
    mmdet='mmdet.models' in sys.modules,
)
"""

REST = """
from mmengine.config import Config
from mmrazor.registry import MODELS
from rawkd_mm import compat

names = ['SingleTeacherDistill', 'ConfigurableDistiller', 'ChannelWiseDivergence', 'CADLoss']
result['missing'] = [n for n in names if MODELS.get(n) is None]

loaded, start = dict(sys.modules), time.perf_counter()
compat.setup()
result['again'] = time.perf_counter() - start
result['again_same'] = loaded == dict(sys.modules)

with open('config.py', 'w') as file:
    file.write("_base_ = 'mmseg::_base_/models/pspnet_r50-d8.py'\\n")
    file.write("custom_imports = dict(imports=['rawkd_mm'])\\n")
    file.write("model = dict(decode_head=dict(num_classes=4))\\n")
config = Config.fromfile('config.py')
result['head'] = [config.model.decode_head[k] for k in ('type', 'channels', 'num_classes')]

compat.versions.TESTED_VERSIONS['torch'] = {'torch': ('1.7', '1.8')}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    compat.check_versions()
result['changed'] = [str(w.message) for w in caught]
print(json.dumps(result))
"""


@pytest.fixture(scope='module')
def imported(tmp_path_factory):
    return run_python(IMPORT + REST, tmp_path_factory.mktemp('imported'))


def test_versions_are_restored(imported):
    assert imported['same'] == [True, True]
    assert imported['versions'] == [
        __import__(name).__version__ for name in ('torch', 'mmcv')
    ]  # those of this process, which has imported rawkd_mm too
    assert compat.mmrazor._MASKED_VERSIONS['torch'] not in imported['versions']


def test_mmrazor_is_registered(imported):
    assert imported['missing'] == []


def test_setup_is_idempotent(imported):
    assert imported['again'] < 0.01 and imported['again_same']


def test_config_inherits_from_mmseg(imported):
    assert imported['head'] == ['PSPHead', 512, 4]


def test_tested_versions_do_not_warn(imported):
    assert imported['untested'] == []


def test_changed_tested_versions_warn(imported):
    (message,) = imported['changed']
    assert f'torch {compat.installed_versions()["torch"][1]}' in message
    assert 'torch 1.7/1.8' in message and 'mmcv' not in message


def test_untested_version_and_no_mmdet(tmp_path):
    """MMSegmentation's metadata tells another version, and MMDetection, optional, is not there."""
    site = link_site(tmp_path / 'site', without=['mmdet'], versions={'mmseg': '1.4.99'})
    result = run_python(IMPORT + 'print(json.dumps(result))', tmp_path, site)
    distribution = compat.installed_versions()['mmseg'][0]
    (message,) = result['untested']
    assert f'{distribution} 1.4.99' in message
    assert compat.versions.tested_text('mmseg') in message
    assert 'torch' not in message and 'mmdet' not in message
    assert result['same'] == [True, True] and not result['mmdet']


FAIL = """
import json, sys
try:
    import rawkd_mm
except ImportError as error:
    print(json.dumps(str(error)))
"""


@pytest.mark.parametrize(
    'names',
    [['joblib'], ['ftfy'], ['torch'], ['mmengine'], ['mmcv'], ['mmseg'], ['mmrazor', 'joblib']],
    ids='+'.join,
)
def test_missing_package(names, tmp_path):
    message = run_python(FAIL, tmp_path, link_site(tmp_path / 'site', without=names))
    for name in compat.TESTED_VERSIONS:
        line = f'  {name}: tested with {compat.versions.tested_text(name)}'
        assert (line in message) == (name in names)
    for name in ('joblib', 'ftfy'):
        assert (f'  {name}: any version' in message) == (name in names)


FAIL_IN_MMRAZOR = """
import json, sys
import mmcv, torch
before = torch.__version__, mmcv.__version__
errors = []
for _ in range(2):
    try:
        import rawkd_mm
    except ImportError as error:
        errors.append(str(error))
print(json.dumps(dict(
    errors=errors,
    same=[torch.__version__ is before[0], mmcv.__version__ is before[1]],
    left=[n for n in sys.modules if n.split('.')[0] == 'mmrazor'],
)))
"""


@pytest.fixture(scope='module')
def damaged(tmp_path_factory):
    """Twice an attempt to import a damaged MMRazor: the folder that is imported last is gone."""
    folder = tmp_path_factory.mktemp('damaged')
    site = link_site(folder / 'site')
    package = (site / 'mmrazor').resolve()
    (site / 'mmrazor').unlink()
    (site / 'mmrazor').mkdir()
    for entry in package.iterdir():
        if entry.name != 'engine':
            (site / 'mmrazor' / entry.name).symlink_to(entry)
    return run_python(FAIL_IN_MMRAZOR, folder, site)


def test_failing_mmrazor_leaves_nothing(damaged):
    assert damaged['same'] == [True, True] and damaged['left'] == []


@pytest.mark.parametrize('attempt', [0, 1])
def test_failing_mmrazor_tells_the_reason(damaged, attempt):
    """The second attempt tells the reason too, and no consequence of the first one."""
    message = damaged['errors'][attempt]
    assert "No module named 'mmrazor.engine'" in message
    assert compat.versions.tested_text('mmrazor') in message


IMPORT_ALL = """
import rawkd_mm, mmseg.datasets, mmseg.engine, mmseg.evaluation
from rawkd_mm.compat import has_mmcv_ops
if has_mmcv_ops():
    import mmdet.datasets, mmdet.engine, mmdet.evaluation
print('{}')
"""


def test_importing_prints_nothing(tmp_path):
    """Neither of ours nor of the packages below us."""
    done = subprocess.run(
        [sys.executable, '-c', IMPORT_ALL],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, '{}\n', '')


def test_only_the_listed_messages_are_left_out(capsys):
    from mmengine.logging import print_log
    from mmseg.models.losses import CrossEntropyLoss

    from rawkd_mm.compat.needless_messages import NEEDLESS_LOG

    for text in NEEDLESS_LOG:
        print_log(text + ' and so on')
    print_log('The user wrote this')
    assert capsys.readouterr().out == 'The user wrote this\n'
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        compat.silence()
        CrossEntropyLoss()
        warnings.warn('What the user wrote is wrong', stacklevel=1)
    assert [str(w.message) for w in caught] == ['What the user wrote is wrong']


def test_padding_and_channel_order_of_each_kind_of_preprocessor():
    from mmengine.model import BaseDataPreprocessor, ImgDataPreprocessor
    from mmseg.models import SegDataPreProcessor

    values = dict(mean=[1.0, 2.0, 3.0], std=[1.0, 1.0, 1.0])
    read = compat.channel_swap_and_padding
    assert read(ImgDataPreprocessor(**values, pad_value=7, bgr_to_rgb=True)) == (True, 7)
    assert read(ImgDataPreprocessor(**values, pad_value=7)) == (False, 7)
    assert read(SegDataPreProcessor(**values, size=(8, 8), pad_val=9, rgb_to_bgr=True)) == (True, 9)
    assert read(BaseDataPreprocessor()) == (None, 0)
