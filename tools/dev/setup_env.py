"""Make `.venv` and install what `make demo`, `make test` or `make lint` needs into it.

For `make test-classic` it is `.venv-classic`, with OpenMMLab's own last releases; with `--separate`
it is an environment named after its Python and torch, for `make test-versions`.

Runs with the standard library alone. Every finished step leaves a hash of what it was made from in
`.venv/rawkd_env.json` and is skipped as long as that hash is the same, so that running this again
costs nothing. A `.venv` in which an installation was cut short is made anew: pip takes half a
package for a whole one.

mmcv comes in two builds. The demo and the tests of segmentation do without compiled ops and get
mmcv in seconds. Detection needs the ops: they are compiled once per machine, and the wheel is kept in
`${XDG_CACHE_HOME:-~/.cache}/rawkd_mm/wheels/`, because pip's own cache does not tell the two apart.
The stages `wheel` and `wheel-classic` only compile: tests can run in the environment meanwhile.
"""

import argparse
import dataclasses
import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / 'requirements.txt'
CLASSIC_REQUIREMENTS = ROOT / 'requirements' / 'classic.txt'
TEST_REQUIREMENTS = ROOT / 'requirements' / 'tests.txt'
CXX = ROOT / 'tools' / 'dev' / 'cxx.py'  # compiles the headers of torch once


@dataclass(frozen=True)
class Stack:
    """Versions that fit together, and the environment that they are installed into.

    Attributes:
        venv: The environment.
        requirements: Their pins.
        mmcv: The distribution that provides mmcv.
        pythons: The first and the last Python that all of them exist for.
        other_pins: Pins that replace those of the same name, if any.
    """

    venv: Path
    requirements: Path
    mmcv: str
    pythons: tuple
    other_pins: 'Path | None' = None

    @property
    def python(self) -> Path:
        return self.venv / 'bin' / 'python'

    @property
    def state(self) -> Path:
        """Holds the hash of each finished step."""
        return self.venv / 'rawkd_env.json'

    @property
    def unfinished(self) -> Path:
        """Marker file: exists while a step changes the venv."""
        return self.venv / 'unfinished'

    @property
    def log(self) -> Path:
        return self.venv / 'setup.log'


MODERN = Stack(ROOT / '.venv', REQUIREMENTS, 'onedl-mmcv', ((3, 10), (3, 13)))
# torch 2.1 has no wheels for Python 3.12.
CLASSIC = Stack(ROOT / '.venv-classic', CLASSIC_REQUIREMENTS, 'mmcv', ((3, 10), (3, 11)))
STACK = MODERN  # the one that this process sets up; main() chooses

HEARTBEAT = 30  # seconds between two signs of life
TAIL = 25  # lines of output shown of a command that failed
COMPILE_SECONDS = 3 * 60  # the ops of mmcv for the CPU, measured on 2 fast cores

# Run in the venv. The ops are loaded straight from their file: `import mmcv` needs packages that
# may not be there yet, and only loading shows that they fit the torch that is installed.
PROBE = """
import importlib.machinery, importlib.metadata, importlib.util, json, os, sys, sysconfig, glob
import torch
from torch.utils import cpp_extension
try:
    version = importlib.metadata.version(sys.argv[1])
except importlib.metadata.PackageNotFoundError:
    version = None
ops = 'none'
for path in glob.glob(os.path.join(sysconfig.get_path('purelib'), 'mmcv', '_ext*.so')):
    try:
        loader = importlib.machinery.ExtensionFileLoader('_ext', path)
        importlib.util.module_from_spec(importlib.util.spec_from_loader('_ext', loader))
        ops = 'yes'
    except ImportError as error:
        ops = f'broken: {error}'
nvcc = os.path.join(cpp_extension.CUDA_HOME or '', 'bin', 'nvcc')
forced = os.environ.get('FORCE_CUDA', '0') == '1'
cuda = (torch.cuda.is_available() or forced) and os.path.exists(nvcc)
print(json.dumps(dict(
    version=version, ops=ops, torch=torch.__version__,
    python=f'cp{sys.version_info[0]}{sys.version_info[1]}',
    platform=sysconfig.get_platform(), device='cuda' if cuda else 'cpu',
    header=os.path.join(sysconfig.get_path('include'), 'Python.h'))))
"""

CHECK = """
import cv2, mmcv, mmengine, mmseg, sklearn, torch, torchvision
print('torch', torch.__version__, 'mmcv', mmcv.__version__, 'mmseg', mmseg.__version__)
"""
CHECK_SEG = CHECK + 'import pytest, xdist, hypothesis\n'
CHECK_TESTS = CHECK_SEG + 'import mmcv.ops, mmdet\n'


class StepError(Exception):
    """A step that failed: what went wrong and, as `hint`, what to do."""

    def __init__(self, reason: str, hint: str) -> None:
        super().__init__(reason)
        self.hint = hint


@dataclass
class Step:
    """One step of a stage.

    Attributes:
        name: Its key in the state file.
        title: What is said while it runs.
        expected: Its time, measured on 2 cores with a fast registry.
        inputs: What it is made from; another value runs it again.
        run: Does it.
        covered_by: A step that, when up to date, makes this one needless.
    """

    name: str
    title: str
    expected: str
    inputs: tuple
    run: Callable[[], None]
    covered_by: 'Step | None' = None

    def hash(self) -> str:
        """Hash of the inputs, of this script, and of the Python and the place of the venv."""
        parts = (
            Path(__file__).read_text(),
            sys.version_info[:2],
            str(STACK.venv),
            [p.read_text() if isinstance(p, Path) else p for p in self.inputs],
        )
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def up_to_date(self, done: dict) -> bool:
        """Whether it, or the step that covers it, was done with the same inputs."""
        if done.get(self.name) == self.hash():
            return True
        return self.covered_by is not None and self.covered_by.up_to_date(done)


def read_state() -> dict:
    """The hashes of the finished steps."""
    return json.loads(STACK.state.read_text()) if STACK.state.exists() else {}


def write_state(done: dict) -> None:
    """Write the hashes of the finished steps."""
    new = STACK.state.with_suffix('.new')
    new.write_text(json.dumps(done, indent=1))
    os.replace(new, STACK.state)  # at once: never half a file


def say(text: str) -> None:
    """Print at once, also into a pipe."""
    print(text, flush=True)


def duration(seconds: float) -> str:
    """Seconds for people: `8.2 s`, `3:05 min`."""
    if seconds < 60:
        return f'{seconds:.1f} s'
    return f'{int(seconds) // 60}:{int(seconds) % 60:02d} min'


def pins(path: Path) -> dict:
    """Requirement lines of a file by name; of a name with several markers all lines."""
    lines = {}
    for line in path.read_text().splitlines():
        line = line.split(' #')[0].strip()
        if line and not line.startswith('#'):
            name = re.match(r'[A-Za-z0-9_.-]+', line).group()
            lines.setdefault(name, []).append(line)
    return lines


def all_pins() -> dict:
    """The requirement lines that hold for the stack and its tests, by name."""
    other = pins(STACK.other_pins) if STACK.other_pins else {}
    return {**pins(TEST_REQUIREMENTS), **pins(STACK.requirements), **other}


def pin(*names: str) -> list:
    """The requirement lines of these names: from the stack's pins, otherwise from the test pins."""
    known = all_pins()
    missing = [name for name in names if name not in known]
    if missing:
        raise StepError(
            f'no pin for {", ".join(missing)} in {STACK.requirements} or {TEST_REQUIREMENTS}',
            'Add a line NAME==VERSION there.',
        )
    return [line for name in names for line in known[name]]


def pinned_version(name: str) -> str:
    """The version in `NAME==VERSION`."""
    return pin(name)[0].split('==')[1]


def advice(output: str) -> str:
    """What to do about the output of a failed command."""
    for pattern, hint in (
        (r'No space left', 'The disk is full: a full environment takes about 8 GB.'),
        (
            r'ensurepip',
            'This Python cannot make environments. On Debian and Ubuntu install the package '
            'pythonX.Y-venv, or choose another Python: make ... PYTHON=/path/to/python3.11',
        ),
        (
            r'NewConnectionError|ConnectionError|ReadTimeout|Temporary failure|SSLError|ProxyError',
            'The package registry could not be reached: check the network and `pip config list`.',
        ),
        (
            r'No matching distribution|Could not find a version',
            'The registry that pip is set up for (see `pip config list`) does not have this '
            'version for this Python and platform.',
        ),
        (r'Killed|out of memory', 'Memory ran out: try MAX_JOBS=1 make test.'),
    ):
        if re.search(pattern, output):
            return hint
    return f'The whole output is in {STACK.log}. Run make again once it is mended: finished steps stay.'


def call(command: list, expected: str = '', **environment: str) -> None:
    """Run a command, output to the log, a line every HEARTBEAT seconds; StepError if it fails."""
    env = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'PYTHONHOME')}
    env.update(PIP_DISABLE_PIP_VERSION_CHECK='1', PIP_NO_INPUT='1', **environment)
    start = time.monotonic()
    with open(STACK.log, 'a+b') as log:
        log.write(f'\n$ {shlex.join(map(str, command))}\n'.encode())
        log.flush()
        begin = log.tell()
        # The child holds the lock too: should this process be killed, the next one waits for it.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=env,
            pass_fds=tuple(LOCKS.values()),
        )
        while True:
            try:
                code = process.wait(HEARTBEAT)
                break
            except subprocess.TimeoutExpired:
                of = f' of about {expected}' if expected else ''
                say(f'      ... {duration(time.monotonic() - start)}{of}')
        if code:
            log.seek(begin)
            output = log.read().decode(errors='replace')
            lines = output.splitlines()
            # A compiler's error stands far above the traceback that a failed build ends with.
            errors = [line for line in lines[:-TAIL] if 'error:' in line.lower()][:5]
            tail = '\n'.join('    | ' + line for line in errors + lines[-TAIL:])
            raise StepError(
                f'this command ended with {code}:\n    {shlex.join(map(str, command))}\n{tail}',
                advice(output),
            )


def change_venv(command: list, expected: str = '', **environment: str) -> None:
    """Run a command that changes the venv; should it be killed, the next run sees that."""
    STACK.unfinished.touch()
    try:
        call(command, expected, **environment)
    except StepError:
        STACK.unfinished.unlink()  # failed in an orderly way: pip has put back what was there
        raise
    STACK.unfinished.unlink()


def pip(*arguments: object, expected: str = '', **environment: str) -> None:
    """Run pip in the venv."""
    run = call if arguments[0] in ('wheel', 'download') else change_venv
    run([str(STACK.python), '-m', 'pip', *map(str, arguments)], expected, **environment)


LOCKS = {}  # folder -> the file descriptor that holds its lock


def lock(folder: Path, what: str) -> None:
    """Wait until no other process holds the lock of a folder. Released when this process ends."""
    if folder in LOCKS:
        return  # a second descriptor would wait for the first
    # Not in the folder itself, which may be made anew.
    locks = cache_folder() / 'locks'
    locks.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    descriptor = os.open(locks / name, os.O_RDONLY | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say(f'Waiting for another process that {what}')
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    LOCKS[folder] = descriptor


# The steps


def make_venv() -> None:
    """Make an empty `.venv`."""
    ours = any(
        (STACK.venv / name).exists() for name in (STACK.unfinished, STACK.state, 'pyvenv.cfg')
    )
    if STACK.venv.exists() and not ours:
        raise StepError(
            f'{STACK.venv} exists, but is not a Python environment', 'Move or delete it.'
        )
    shutil.rmtree(STACK.venv, ignore_errors=True)
    STACK.venv.mkdir()
    try:
        change_venv([sys.executable, '-m', 'venv', str(STACK.venv)])
    except StepError:
        STACK.unfinished.touch()  # unlike pip, this does not restore the old state
        raise


def install_torch() -> None:
    """Install torch and what builds packages."""
    names = ('setuptools', 'wheel', 'torch', 'torchvision', 'numpy')
    pip('install', *pin(*names), expected='2 min')


def install_requirements(*files: Path) -> None:
    """Install what requirement files name."""
    names = list(dict.fromkeys(name for path in files for name in pins(path)))
    pip('install', *pin(*names), expected='1 min')


def install_classic() -> None:
    """Install the classic pins and, of those for the tests, what is bound to no stack."""
    names = ('pytest', 'pytest-timeout', 'pytest-xdist', 'hypothesis', 'tensorboard')
    pip('install', '-r', CLASSIC_REQUIREMENTS, *pin(*names), expected='1 min')


def install_ruff() -> None:
    """Install ruff alone."""
    pip('install', *pin('ruff'))


def install_headless_opencv() -> None:
    """Replace opencv-python by its headless build.

    opencv-python needs libGL and libxcb from the system, which servers and containers lack. The two
    own the same files, so both have to go before one is put back.
    """
    version = pinned_version('opencv-python')
    pip('uninstall', '--yes', 'opencv-python', 'opencv-python-headless')
    pip('install', '--no-deps', f'opencv-python-headless=={version}')


def install_project() -> None:
    """Install this repository, editable."""
    pip('install', '--no-deps', '--no-build-isolation', '--editable', ROOT)


def check(code: str) -> None:
    """Import what was installed, and let pip compare the versions."""
    call([str(STACK.python), '-c', code])
    process = subprocess.run(
        [str(STACK.python), '-m', 'pip', 'check'], capture_output=True, text=True, cwd=ROOT
    )
    # opencv-python is there under another name, see install_headless_opencv.
    expected = 'requires opencv-python, which is not installed'
    wrong = [line for line in process.stdout.splitlines() if expected not in line]
    if process.returncode and (wrong or process.stderr):
        raise StepError(
            'the installed versions do not fit together:\n' + '\n'.join(wrong) + process.stderr,
            f'Correct the pins in {STACK.requirements} or {TEST_REQUIREMENTS}.',
        )


# mmcv and its ops


def probe() -> dict:
    """What the venv has: mmcv's version, whether its ops load, and what a wheel depends on."""
    process = subprocess.run(
        [str(STACK.python), '-c', PROBE, STACK.mmcv], capture_output=True, text=True
    )
    if process.returncode:
        raise StepError(
            f'torch does not import:\n{process.stderr}', f'Remove {STACK.venv} and try again.'
        )
    return json.loads(process.stdout.splitlines()[-1])


def wheel_key(mmcv: str, torch: str, python: str, platform: str, device: str) -> str:
    """Name of the cache folder of one build of mmcv's ops: all that its binary depends on."""
    return f'mmcv{mmcv}-torch{torch}-{python}-{platform}-{device}'


def cache_folder() -> Path:
    """What is kept on this machine for all checkouts."""
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'rawkd_mm'


def wheel_folder(have: dict) -> Path:
    """The cache folder for what `probe` found."""
    names = ('torch', 'python', 'platform', 'device')
    key = wheel_key(pinned_version(STACK.mmcv), **{name: have[name] for name in names})
    return cache_folder() / 'wheels' / key


def cached_wheel(have: dict) -> 'Path | None':
    """The kept wheel, if there is one."""
    return next(wheel_folder(have).glob('*.whl'), None)


def installed(have: dict) -> bool:
    """Whether the pinned mmcv is there and its ops, if it has any, work."""
    return have['version'] == pinned_version(STACK.mmcv) and have['ops'] in ('yes', 'none')


def install_cached_wheel(have: dict) -> bool:
    """Install the kept wheel; True if its ops load."""
    wheel = cached_wheel(have)
    if wheel is None:
        return False
    say(f'      using the compiled wheel {wheel}')
    if zipfile.is_zipfile(wheel):
        pip('install', '--no-deps', '--force-reinstall', wheel)
        ops = probe()['ops']
        if ops == 'yes':
            return True
    else:
        ops = 'broken: not a whole archive'
    say(f'      removed, its ops do not load here ({ops})')
    wheel.unlink(missing_ok=True)
    return False


def install_mmcv() -> None:
    """Install mmcv, with ops if they were compiled before."""
    have = probe()
    if installed(have) or install_cached_wheel(have):
        return
    # An isolated build sees no torch and so compiles nothing. Not from pip's cache, which may hold
    # a build with ops for another torch.
    pip('uninstall', '--yes', STACK.mmcv)
    pip('install', '--no-deps', '--no-cache-dir', *pin(STACK.mmcv), MMCV_WITH_OPS='0')


def install_mmcv_with_ops() -> None:
    """Install mmcv with ops, compiled now if they were not before."""
    have = probe()
    if installed(have) and have['ops'] == 'yes':
        return
    compile_mmcv()
    if install_cached_wheel(have):
        return
    compile_mmcv()  # the kept wheel did not load and is removed
    if not install_cached_wheel(have):
        raise StepError('the ops that were just compiled do not load', f'See {STACK.log}.')


def compile_mmcv() -> None:
    """Compile mmcv's ops for the torch of the venv, unless their wheel is kept already."""
    have = probe()
    folder = wheel_folder(have)
    folder.mkdir(parents=True, exist_ok=True)
    lock(folder, 'compiles the same wheel')
    if cached_wheel(have) is None:
        build_wheel(have, folder)


def mmcv_sources(folder: Path) -> Path:
    """Unpack mmcv's source distribution into a folder, ready for the torch that is installed.

    mmcv's setup.py asks the compiler for C++17 (``-std=c++17``), and the headers of torch >= 2.14
    refuse anything before C++20.
    """
    pip(
        'download',
        '--no-build-isolation',
        '--no-deps',
        '--no-cache-dir',
        '--no-binary=:all:',
        f'--dest={folder}',
        *pin(STACK.mmcv),
        MMCV_WITH_OPS='1',  # without, mmcv 2.1 calls itself mmcv-lite; nothing is compiled here
    )
    archive = next(folder.glob('*.tar.gz'))
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter='data')
    sources = folder / archive.name.removesuffix('.tar.gz')
    torch = tuple(map(int, pinned_version('torch').split('.')[:2]))
    if torch >= (2, 14):
        setup = sources / 'setup.py'
        text = setup.read_text()
        if '-std=c++17' not in text:
            raise StepError(
                f"{archive.name}'s setup.py no longer has the flag -std=c++17",
                'See which C++ standard it asks for: torch >= 2.14 needs C++20.',
            )
        setup.write_text(text.replace('-std=c++17', '-std=c++20'))
    return sources


def build_wheel(have: dict, folder: Path) -> None:
    """Compile mmcv with its ops and keep the wheel."""
    compiler = os.environ.get('CXX', 'c++')
    if shutil.which(compiler.split()[0]) is None:
        raise StepError(
            f'no C++ compiler ({compiler})',
            'Install one that knows C++20, e.g. g++ >= 11, or set CXX. It compiles the ops of mmcv.',
        )
    if not os.path.exists(have['header']):
        raise StepError(
            f'{have["header"]} is missing',
            'Install the headers of this Python (on Debian and Ubuntu pythonX.Y-dev), or choose '
            'another Python: make test PYTHON=/path/to/python3.11',
        )
    environment = {'MMCV_WITH_OPS': '1', 'MAX_JOBS': str(os.cpu_count())}
    if 'MAX_JOBS' in os.environ:
        environment['MAX_JOBS'] = os.environ['MAX_JOBS']
    if have['device'] == 'cpu':
        # mmcv would compile for CUDA wherever there is a GPU, and fail without nvcc.
        environment.update(CUDA_VISIBLE_DEVICES='', FORCE_CUDA='0')
    expected = duration(COMPILE_SECONDS) if have['device'] == 'cpu' else 'half an hour or more'
    say(
        f'      compiling the ops of mmcv for {have["device"]}, once: {expected} on 2 fast cores\n'
        f'      (jobs: {environment["MAX_JOBS"]}; the wheel will be kept in {folder})'
    )
    pip('install', *pin('setuptools', 'wheel', 'ninja', 'psutil'))
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        precompiled = Path(temporary, 'precompiled')
        precompiled.mkdir()
        environment.update(CXX=str(CXX), RAWKD_CXX=compiler, RAWKD_PCH=str(precompiled))
        pip(
            'wheel',
            '--no-build-isolation',
            '--no-deps',
            '--no-cache-dir',
            f'--wheel-dir={temporary}',
            mmcv_sources(Path(temporary)),
            expected=expected,
            **environment,
        )
        wheel = next(Path(temporary).glob('*.whl'))
        with zipfile.ZipFile(wheel) as archive:
            if not any(name.startswith('mmcv/_ext') for name in archive.namelist()):
                raise StepError('mmcv was built, but without its ops', f'See {STACK.log}.')
        os.replace(wheel, folder / wheel.name)  # at once: nobody ever sees half a wheel


# The stages


def stages() -> dict:
    """The steps of each stage, in order."""
    torch = [pin(name) for name in ('torch', 'torchvision')]
    mmcv = [*torch, pin(STACK.mmcv)]
    both = (REQUIREMENTS, TEST_REQUIREMENTS)
    if STACK.other_pins:
        both += (STACK.other_pins,)

    venv = Step('venv', 'an empty environment', '5 s', (), make_venv)
    ruff = Step('ruff', 'ruff', '3 s', (pin('ruff'),), install_ruff)
    torch = Step('torch', 'PyTorch (about 3 GB)', '2 min', tuple(torch), install_torch)
    ops = Step(
        'mmcv with ops',
        'mmcv with compiled ops',
        '5 s from the cache, else 3 to 10 min',
        tuple(mmcv),
        install_mmcv_with_ops,
    )
    plain = Step('mmcv', 'mmcv', '10 s', tuple(mmcv), install_mmcv, covered_by=ops)
    wheel = Step(
        'wheel', "mmcv's compiled ops", '3 to 10 min', tuple(mmcv), compile_mmcv, covered_by=ops
    )
    tests = Step(
        'packages for tests',
        'the other packages, and those of the tests',
        '45 s',
        both,
        lambda: install_requirements(REQUIREMENTS, TEST_REQUIREMENTS),
    )
    packages = Step(
        'packages',
        'the other packages',
        '30 s',
        (REQUIREMENTS,),
        lambda: install_requirements(REQUIREMENTS),
        covered_by=tests,
    )
    ruff.covered_by = tests
    classic = Step(
        'packages for tests',
        'the other packages, and those of the tests',
        '45 s',
        (CLASSIC_REQUIREMENTS, TEST_REQUIREMENTS),
        install_classic,
    )
    opencv = Step(
        'opencv', 'OpenCV without windows', '5 s', (STACK.requirements,), install_headless_opencv
    )
    project = Step(
        'project',
        'rawkd_mm itself',
        '3 s',
        (ROOT / 'setup.py', ROOT / 'rawkd_mm' / 'version.py'),
        install_project,
    )
    check_tests = Step('check of tests', 'do they work?', '15 s', (), lambda: check(CHECK_TESTS))
    check_seg = Step(
        'check of test-seg', 'do they work?', '15 s', (), lambda: check(CHECK_SEG), check_tests
    )
    check_demo = Step(
        'check', 'do they work?', '10 s', (), lambda: check(CHECK), covered_by=check_seg
    )
    return {
        'lint': [venv, ruff],
        'demo': [venv, torch, plain, packages, opencv, project, check_demo],
        'test-seg': [venv, torch, plain, tests, opencv, project, check_seg],
        'test': [venv, torch, ops, tests, opencv, project, check_tests],
        'test-classic': [venv, torch, ops, classic, opencv, project, check_tests],
        'wheel': [venv, torch, wheel],
        'wheel-classic': [venv, torch, wheel],
    }


def usable() -> bool:
    """Whether the `.venv` that is there can be built upon; says why not."""
    if not STACK.venv.exists():
        return False
    if STACK.unfinished.exists():
        say(f'{STACK.venv.name} was left in the middle of an installation: making it anew')
        return False
    command = [str(STACK.python), '-c', 'import pip, sys; print(sys.version_info[:2])']
    try:
        process = subprocess.run(command, capture_output=True, text=True)
        found = (process.stdout or process.stderr).strip()
    except OSError as error:
        found = str(error)
    if found == str(sys.version_info[:2]):
        return True
    wanted = f'a working Python {sys.version_info[:2]}'
    say(f'{STACK.venv.name} does not have {wanted} ({found}): making it anew')
    return False


def set_up(stage: str) -> None:
    """Run the steps of a stage that are not up to date."""
    lock(STACK.venv, f'sets up {STACK.venv.name}')
    steps = stages()[stage]
    done = read_state()
    sound = STACK.python.exists() and not STACK.unfinished.exists()
    if sound and all(step.up_to_date(done) for step in steps):
        return
    begin = time.monotonic()
    say(f'Setting up {STACK.venv.name} for `make {stage}` with Python {sys.version.split()[0]}')
    done = {**done, 'venv': steps[0].hash()} if usable() else {}
    for number, step in enumerate(steps, 1):
        if step.up_to_date(done):
            continue
        say(f'[{number}/{len(steps)}] {step.title} (expected: {step.expected})')
        start = time.monotonic()
        try:
            step.run()
        except StepError as error:
            used = duration(time.monotonic() - start)
            say(f'\nSetting up failed at step {number}, {step.title}, after {used}: {error}')
            say(f'\nWhat to do: {error.hint}')
            sys.exit(1)
        # The steps after it build on it: pip may have brought back opencv-python, say.
        for later in steps[number:]:
            done.pop(later.name, None)
        done[step.name] = step.hash()
        write_state(done)
        say(f'      done in {duration(time.monotonic() - start)}')
    say(
        f'{STACK.venv.name} is ready for `make {stage}` after {duration(time.monotonic() - begin)}\n'
    )


def separate_name(python: tuple, torch: str) -> str:
    """Name of the environment of one combination: `.venv-py3.12-torch2.10`."""
    return f'.venv-py{python[0]}.{python[1]}-torch{".".join(torch.split(".")[:2])}'


def main() -> None:
    """Read the command line and set up."""
    global STACK
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('stage', choices=stages())
    parser.add_argument(
        '--separate',
        action='store_true',
        help='in an environment named after its Python and torch instead of .venv',
    )
    parser.add_argument(
        '--pins', type=Path, metavar='FILE', help='pins that replace those of the same name'
    )
    args = parser.parse_args()
    stage = args.stage
    STACK = CLASSIC if stage.endswith('-classic') else MODERN
    if args.pins:
        STACK = dataclasses.replace(STACK, other_pins=args.pins.resolve())
    if args.separate:
        name = separate_name(sys.version_info[:2], pinned_version('torch'))
        STACK = dataclasses.replace(STACK, venv=ROOT / name)
    first, last = STACK.pythons
    if not first <= sys.version_info[:2] <= last:
        sys.exit(
            f'Python {first[0]}.{first[1]} to {last[0]}.{last[1]} is needed, '
            f'this is {sys.version.split()[0]}: make {stage} PYTHON=/path/to/python3.11'
        )
    try:
        set_up(stage)
    except KeyboardInterrupt:
        sys.exit('\nInterrupted. Run the same again.')


if __name__ == '__main__':
    main()
