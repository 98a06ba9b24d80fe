"""The client of fork_server.py: a process of the server's, and a stand-in for the interpreter.

Imports nothing but a little of the standard library, as what it saves is the time of imports.
"""

import contextlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys

LENGTH = struct.Struct('!I')
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def send(connection: socket.socket, message, descriptors=()) -> None:
    """Send a JSON value, and with it open files."""
    data = json.dumps(message).encode()
    header = LENGTH.pack(len(data))
    if descriptors:
        socket.send_fds(connection, [header], descriptors)
    else:
        connection.sendall(header)
    connection.sendall(data)


def receive(connection: socket.socket, descriptors: int = 0):
    """Give the JSON value (None if there is no more) and the open files that came."""
    header, files, *_ = socket.recv_fds(connection, LENGTH.size, descriptors)
    if len(header) < LENGTH.size:
        return None, files
    (missing,) = LENGTH.unpack(header)
    data = b''
    while missing:
        part = connection.recv(missing)
        if not part:
            return None, files
        data += part
        missing -= len(part)
    return json.loads(data), files


class ForkedProcess:
    """A process that the server forks, with the interface of subprocess.Popen.

    Args:
        address: The server's socket.
        args: What follows ``python`` on a command line.
        cwd: The process's folder.
        env: Its environment.
        files: Its standard input, output and error.
    """

    def __init__(self, address: str, args: list, cwd: str, env: dict, files=(0, 1, 2)) -> None:
        self.returncode = None
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(address)
        request = dict(args=args, cwd=cwd, env=env, umask=_umask())
        send(self._connection, request, files)
        answer, _ = receive(self._connection)
        if answer is None:
            raise RuntimeError(f'the server at {address} has not forked: {args}')
        self.pid = answer['pid']

    def poll(self):
        """Give the exit code, as Popen does, or None."""
        if self.returncode is None and select.select([self._connection], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the exit code: that of the process, or minus the signal that ended it."""
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f'process {self.pid}', timeout)
            answer, _ = receive(self._connection)
            if answer is None:
                raise RuntimeError(f'the server of process {self.pid} has ended')
            self.returncode = answer['returncode']
            self._connection.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, if the process has not ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value


def main(address: str, *args: str) -> int:
    """Run what a Python with these arguments would, hand on signals, end as it ends."""
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    process = ForkedProcess(address, list(args), os.getcwd(), dict(os.environ))
    for number in FORWARDED:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, frame: process.send_signal(number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    code = process.wait()
    if code < 0:
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


if __name__ == '__main__':
    sys.exit(main(*sys.argv[1:]))
