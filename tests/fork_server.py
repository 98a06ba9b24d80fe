"""Python processes that start at once: a server that has imported everything forks them.

A fresh interpreter needs 7 s of a processor to import PyTorch and all of OpenMMLab. ``start`` gives
the path of a program to call in the place of ``python``: scripts, ``-m``, ``-c``, ``-u``. The process
has its own arguments, folder, environment, output and exit code, and is ended when the program is.
Differences to a fresh interpreter: what the server has imported is imported, and PYTHON* variables
other than PYTHONPATH are those of the server. Therefore each tool has a test that starts it afresh.

The server has one thread, and has run no operator, so that forking is safe.
"""

import atexit
import contextlib
import gc
import importlib
import os
import random
import runpy
import selectors
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
from pathlib import Path

from forked_python import receive, send

ROOT = Path(__file__).resolve().parents[1]
CLIENT = Path(__file__).with_name('forked_python.py')
PRELOAD = (
    'rawkd_mm', 'rawkd_mm.training', 'rawkd_mm.hooks', 'mmseg.apis', 'mmseg.datasets', 'mmseg.engine',
    'mmdet.apis', 'mmdet.datasets', 'mmdet.engine', 'torch._dynamo', 'torch.distributed.launcher.api',
    'matplotlib.pyplot',
)  # fmt: skip


def python_path() -> list:
    return [entry for entry in os.environ.get('PYTHONPATH', '').split(os.pathsep) if entry]


_started = []  # a Popen that is forgotten warns about its process


def start(owner: int) -> Path:
    """Start a server; gives the program.

    Args:
        owner: Process with which the server, and all that it has forked, end.
    """
    folder = Path(tempfile.mkdtemp(prefix='fork_server_'))  # paths of sockets have to be short
    program, address = folder / 'python', folder / 'socket'
    client = shlex.join([sys.executable, '-S', '-E', str(CLIENT), str(address)])
    program.write_text(f'#!/bin/sh\nexec {client} "$@"\n')
    program.chmod(0o755)
    path = os.pathsep.join([str(ROOT), *python_path()])
    environment = {**os.environ, 'PYTHONPATH': path, 'OMP_NUM_THREADS': '1'}
    log = folder / 'log'
    with log.open('wb') as file:
        server = subprocess.Popen(
            [sys.executable, __file__, str(folder), str(owner)],
            cwd='/', env=environment, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
        )  # fmt: skip
    _started.append(server)
    while not address.exists():
        if server.poll() is not None:
            raise RuntimeError(f'the fork server has ended:\n{log.read_text()}')
        time.sleep(0.02)
    return program


def address_of(program: Path) -> str:
    return str(program.with_name('socket'))


class Server:
    """Waits for requests, forks, tells what became of the processes."""

    def __init__(self, folder: Path, owner: int) -> None:
        self._program = folder / 'python'
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / 'new_socket'))
        self._listener.listen(64)
        (folder / 'new_socket').rename(folder / 'socket')
        self._owner = os.pidfd_open(owner)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._owner, selectors.EVENT_READ, self._end)
        self._running = {}  # pid -> descriptor of the process and its client
        self._request = None

    def serve(self) -> list:
        """Give, in each forked process, its arguments."""
        while self._request is None:
            for key, _ in self._selector.select():
                key.data(key.fileobj)
                if self._request is not None:
                    break
        return self._become()

    def _accept(self, listener) -> None:
        client, _ = listener.accept()
        request, files = receive(client, 3)
        if request is None:
            client.close()
            return
        pid = os.fork()
        if pid == 0:
            self._request, self._files = request, files
            client.close()
            return
        for file in files:
            os.close(file)
        process = os.pidfd_open(pid)
        self._running[pid] = process, client
        self._selector.register(process, selectors.EVENT_READ, lambda _: self._ended(pid))
        self._selector.register(client, selectors.EVENT_READ, lambda _: self._abandoned(pid))
        self._send(client, dict(pid=pid))

    def _ended(self, pid: int) -> None:
        process, client = self._running.pop(pid)
        self._selector.unregister(process)
        os.close(process)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if client is not None:
            self._selector.unregister(client)
            self._send(client, dict(returncode=code))
            client.close()

    def _abandoned(self, pid: int) -> None:
        """Its program was killed: so is the process."""
        if pid not in self._running:
            return
        process, client = self._running[pid]
        self._selector.unregister(client)
        client.close()
        self._running[pid] = process, None
        os.kill(pid, signal.SIGKILL)

    def _send(self, client, message) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            send(client, message)

    def _end(self, owner) -> None:
        for pid in self._running:
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self._program.parent, ignore_errors=True)
        os._exit(0)

    def _become(self) -> list:
        """Turn this process into the one that was asked for."""
        os.setsid()
        self._selector.close()
        self._listener.close()
        os.close(self._owner)
        for process, client in self._running.values():
            os.close(process)
            if client is not None:
                client.close()
        for target, file in enumerate(self._files):
            os.dup2(file, target)
            os.close(file)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.umask(self._request['umask'])
        os.chdir(self._request['cwd'])
        os.environ.clear()
        os.environ.update(self._request['env'])
        sys.executable = str(self._program)  # what it starts has imported everything, too
        _forget_the_server()
        return self._request['args']


def _forget_the_server() -> None:
    """Random numbers and threads are what they are in a fresh process."""
    import numpy
    import torch

    random.seed()
    numpy.random.seed()
    torch.default_generator.seed()
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(min(cores, int(os.environ.get('OMP_NUM_THREADS') or cores)))


def run(args: list, known: list, path: list) -> None:
    """Do what the interpreter does with its arguments.

    Args:
        args: The arguments.
        known: The server's PYTHONPATH. Packages of other folders may have been imported already,
            from elsewhere, so that these are refused.
        path: sys.path but for the script's folder and PYTHONPATH.
    """
    folders = python_path()
    unknown = [f for f in folders if f not in known and not Path(f).is_relative_to(ROOT)]
    if unknown:
        sys.exit(f'fork_server.py: PYTHONPATH has {unknown}: start a fresh interpreter')
    while args and args[0] == '-u':
        args = args[1:]
        sys.stdout.reconfigure(write_through=True)
    if not args or (args[0].startswith('-') and args[0] not in ('-m', '-c')):
        sys.exit(f'fork_server.py: {args}: expected a script, -m or -c')
    kind, *rest = args
    if kind == '-m':
        sys.argv = rest
        sys.path[:] = [os.getcwd(), *folders, *path]
        runpy.run_module(rest[0], run_name='__main__', alter_sys=True)
        return
    module = types.ModuleType('__main__')
    sys.modules['__main__'] = module
    if kind == '-c':
        code = compile(rest[0], '<string>', 'exec')
        sys.argv = ['-c', *rest[1:]]
        sys.path[:] = ['', *folders, *path]
    else:
        module.__file__ = os.path.abspath(kind)
        code = compile(Path(kind).read_bytes(), module.__file__, 'exec')
        sys.argv = args
        sys.path[:] = [os.path.dirname(os.path.realpath(kind)), *folders, *path]
    exec(code, module.__dict__)


def leave(code) -> None:
    """End as the interpreter does after sys.exit, but for freeing every object: that takes 0.5 s.

    Args:
        code: Argument of sys.exit.
    """
    threading._shutdown()
    atexit._run_exitfuncs()
    if not (code is None or isinstance(code, int)):
        print(code, file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit((code or 0) & 0xFF)


if __name__ == '__main__':
    known = python_path()
    path = [entry for entry in sys.path[1:] if entry not in known]
    for name in PRELOAD:
        with contextlib.suppress(ModuleNotFoundError):  # mmdet is not everywhere
            importlib.import_module(name)
    sys.stdout.flush()  # else each process would print it
    gc.collect()
    gc.freeze()
    args = Server(Path(sys.argv[1]), int(sys.argv[2])).serve()
    try:
        run(args, known, path)
    except SystemExit as end:
        leave(end.code)
    leave(0)
