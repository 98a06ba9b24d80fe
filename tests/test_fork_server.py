"""The stand-in for the interpreter does what the interpreter does."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SHOW = """
import os, sys
print(sys.argv, __name__, globals().get('__file__'), os.getcwd(), os.environ.get('GIVEN'))
print([path for path in sys.path if path][:4], file=sys.stderr)
"""


@pytest.fixture
def script(tmp_path):
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'folder/show.py').write_text(SHOW)
    (tmp_path / 'link.py').symlink_to('folder/show.py')
    return tmp_path


def call(python, *args, cwd, **environment):
    done = subprocess.run(
        [python, *args], cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    'args',
    [
        ['folder/show.py', '-x', 'a b'],
        ['link.py'],
        ['-u', 'folder/show.py'],
        ['-m', 'folder.show', '-m'],
        ['-c', SHOW, 'x'],
        ['-c', 'import sys; sys.exit("a reason")'],
        ['-c', 'import sys; sys.exit(300)'],
        ['-c', 'import os; os.kill(os.getpid(), 15)'],
        ['-c', 'import atexit; atexit.register(print, "at exit"); print("first", end=" ")'],
        [
            '-c',
            'import threading, time\n'
            'threading.Thread(target=lambda: (time.sleep(0.1), print("thread"))).start()',
        ],
        [
            '-c',
            'import torch; print(torch.get_num_threads())',
        ],
    ],
)
def test_same_as_the_interpreter(script, fast_python, args):
    options = dict(cwd=script, GIVEN='value', OMP_NUM_THREADS='3')
    assert call(fast_python, *args, **options) == call(sys.executable, *args, **options)


def test_same_error_as_the_interpreter(script, fast_python):
    code, _, error = call(fast_python, '-c', '1 / 0', cwd=script)
    assert code == 1
    assert error.endswith('ZeroDivisionError: division by zero\n')


def test_random_numbers_differ(tmp_path, fast_python):
    code = 'import random, numpy, torch; '
    code += 'print(random.random(), numpy.random.rand(), torch.rand(1).item())'
    one, two = (call(fast_python, '-c', code, cwd=tmp_path)[1].split() for _ in range(2))
    assert len({*one, *two}) == 6


def test_everything_is_imported(tmp_path, fast_python):
    code = 'import sys; print("rawkd_mm" in sys.modules, len(sys.modules) > 1000)'
    assert call(fast_python, '-c', code, cwd=tmp_path)[1] == 'True True\n'


def test_packages_of_another_folder_are_refused(tmp_path, fast_python):
    code, _, error = call(fast_python, '-c', '', cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert code == 1 and f"PYTHONPATH has ['{tmp_path}']: start a fresh interpreter" in error


LIVES = """
import os, signal, time
from pathlib import Path
signal.signal(signal.SIGTERM, lambda *_: exit(7))
Path('pid.part').write_text(str(os.getpid()))
os.rename('pid.part', 'pid')
time.sleep(60)
"""


@pytest.fixture
def living(tmp_path, fast_python):
    process = subprocess.Popen([fast_python, '-c', LIVES], cwd=tmp_path)
    file = tmp_path / 'pid'
    while not file.exists():
        assert process.poll() is None
        time.sleep(0.01)
    yield process, int(file.read_text())
    process.kill()


def test_signals_are_handed_on(living):
    process, pid = living
    assert process.pid != pid
    process.terminate()
    assert process.wait(10) == 7
    assert not Path(f'/proc/{pid}').exists()


def test_killed_together(living):
    process, pid = living
    process.kill()
    assert process.wait(10) == -signal.SIGKILL
    end = time.monotonic() + 10
    while Path(f'/proc/{pid}').exists():
        assert time.monotonic() < end
        time.sleep(0.01)
