"""Building the package as a user would, from a copy of the sources: building writes into them."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOT_SOURCE = ('.git', '.venv*', '.mim', '__pycache__', '*.egg-info', 'build', 'data', 'work_dirs')


def run(*command, cwd):
    process = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr


def copy_source(target):
    shutil.copytree(ROOT, target, symlinks=True, ignore=shutil.ignore_patterns(*NOT_SOURCE))
    return target


def build_wheel(source, target):
    """Give the wheel and the names of the files in it."""
    options = ('--no-deps', '--no-build-isolation', '--no-index', '--wheel-dir')
    run(sys.executable, '-m', 'pip', 'wheel', source, *options, target, cwd=source)
    (wheel,) = target.glob('*.whl')
    with zipfile.ZipFile(wheel) as archive:
        return wheel, set(archive.namelist())
