"""Runs the steps, each in its time, and keeps a record of them."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RECORDS = 'records.json'
# An absolute path, up to its last part.
_FOLDERS = re.compile(r'(?<![\w:/.~<-])/(?:[^\s/:\'"<>|]+/)+')


class Cleaner:
    """Takes what belongs to this machine alone out of texts.

    Args:
        out (Path): The folder of the results.
    """

    def __init__(self, out: Path) -> None:
        folders = {f'{ROOT}/': '', f'{out.resolve()}/': 'OUT/', f'{out.resolve()}': 'OUT'}
        if out.resolve().is_relative_to(ROOT):
            folders = {f'{ROOT}/': ''}
        self._folders = dict(sorted(folders.items(), key=lambda item: -len(item[0])))
        name = socket.gethostname()
        names = {name, name.partition('.')[0]} - {'', 'localhost'}
        alternatives = '|'.join(map(re.escape, sorted(names, key=len, reverse=True)))
        self._host = re.compile(rf'(?<![\w-])(?:{alternatives})(?![\w-])') if names else None

    def text(self, text: str) -> str:
        """Make paths below the repository relative, cut others to their last part, replace the host."""
        for folder, name in self._folders.items():
            text = text.replace(folder, name)
        text = _FOLDERS.sub('', text)
        return self._host.sub('HOST', text) if self._host else text

    def file(self, path: Path) -> None:
        """Do so in a text file."""
        path.write_text(self.text(path.read_text(errors='replace')))


def fitting(steps: list, seconds: float) -> list:
    """Give the steps that fit into a time: the least important, which are the last, are dropped first.

    Args:
        steps (list[Step]): The most important first.
        seconds (float): The time.

    Returns:
        list[Step]: The first ones.
    """
    for number, step in enumerate(steps):
        seconds -= step.expected
        if seconds < 0:
            return steps[:number]
    return list(steps)


class Runner:
    """Runs steps in a folder of results.

    Args:
        out (Path): The folder: it gets each step's result, ``logs/<step>.log``, and ``records.json``
            with what became of each step.
        environment (dict): As environment.py describes it.
        commit (str): Of the repository.
        deadline (float): When all has to be over, by ``time.monotonic``.

    Attributes:
        records (dict): Name of a step -> ``title``, ``status`` ('done', 'failed', 'dropped', 'left
            out'), ``seconds``, ``message``, ``log``, and the ``key`` of what ran: command, commit,
            device and version of PyTorch.
    """

    def __init__(self, out: Path, environment: dict, commit: str, deadline: float) -> None:
        self.out, self.environment, self.commit, self.deadline = out, environment, commit, deadline
        self.cleaner = Cleaner(out)
        (out / 'logs').mkdir(parents=True, exist_ok=True)
        file = out / RECORDS
        self.records = json.loads(file.read_text()) if file.is_file() else {}

    def run(self, steps: list, redo=()) -> None:
        """Run what is not finished and fits into the time.

        Args:
            steps (list[Step]): The most important first.
            redo (Collection[str]): Names of steps to run even if they are finished.
        """
        pending = []
        for step in steps:
            if step.detection and not self.environment['detection']:
                self._record(
                    step,
                    'left out',
                    "needs MMDetection and MMCV's compiled operators, not installed",
                )
            elif self.is_finished(step) and step.name not in redo:
                print(f'{step.name}: finished by an earlier run', flush=True)
            else:
                pending.append(step)
        late = [step.name for step in pending[len(fitting(pending, self._left())) :]]
        if late:
            print(f'Dropped unless the others take less than expected: {", ".join(late)}')
        while fitting(pending, self._left()):
            self._run_step(pending.pop(0))
        for step in pending:
            expected = f'expected to take {step.expected} s, {max(self._left(), 0):.0f} s were left'
            self._record(step, 'dropped', expected)

    def is_finished(self, step) -> bool:
        """Whether an earlier run has this step's result: same command, commit, device and PyTorch."""
        record = self.records.get(step.name, {})
        is_same = record.get('status') == 'done' and record['key'] == self._key(step)
        return is_same and (self.out / step.result).is_file()

    def record_of(self, step) -> dict:
        """Give the record of a step, with the status 'not run' if it is of another command or commit."""
        record = self.records.get(step.name)
        if record is not None and record['key'] == self._key(step):
            return record
        empty = dict.fromkeys(('seconds', 'message', 'log'))
        return dict(title=step.title, status='not run', key=self._key(step), **empty)

    def _left(self) -> float:
        return self.deadline - time.monotonic()

    def _command(self, step) -> list[str]:
        out = self.out.resolve()
        out = str(out.relative_to(ROOT) if out.is_relative_to(ROOT) else out)
        return [part.replace('{out}', out) for part in step.command]

    def _key(self, step) -> dict:
        command = self.cleaner.text(' '.join(['python', *self._command(step)]))
        device, torch = self.environment['device'], self.environment['torch']
        return dict(command=command, commit=self.commit, device=device, torch=torch)

    def _run_step(self, step) -> None:
        result, log = self.out / step.result, self.out / 'logs' / f'{step.name}.log'
        result.unlink(missing_ok=True)
        limit = min(step.limit, max(self._left(), 1))
        print(f'{step.name}: {step.title}, at most {limit:.0f} s ...', flush=True)
        begun = time.monotonic()
        code = run_process([sys.executable, *self._command(step)], log, limit)
        seconds = time.monotonic() - begun
        self.cleaner.file(log)
        if code == 0 and result.is_file():
            self.cleaner.file(result)
            self._record(step, 'done', None, seconds)
            return
        if code is None:
            message = f'stopped after {limit:.0f} s; the last line of its output: {last_line(log)}'
        elif code == 0:
            message = f'ended without {step.result}'
        else:
            message = f'exit code {code}: {last_line(log)}'
        self._record(step, 'failed', message, seconds)

    def _record(self, step, status: str, message: str | None, seconds: float | None = None) -> None:
        self.records[step.name] = dict(
            title=step.title,
            status=status,
            seconds=seconds and round(seconds, 1),
            message=message,
            log=f'logs/{step.name}.log' if seconds else None,
            key=self._key(step),
        )
        text = json.dumps(self.records, indent=2) + '\n'
        temporary = self.out / f'.{RECORDS}'
        temporary.write_text(text)
        os.replace(temporary, self.out / RECORDS)
        words = [f'{status} in {seconds:.0f} s' if seconds else status, message]
        print(f'{step.name}: {", ".join(filter(None, words))}', flush=True)


def run_process(command: list, log: Path, seconds: float) -> int | None:
    """Run a command, with its output in a file; it ends with all its processes.

    Args:
        command (list[str]): The command.
        log (Path): The file.
        seconds (float): How long it may take.

    Returns:
        int | None: The exit code; None if it had to be stopped.
    """
    paths = [str(ROOT), os.environ.get('PYTHONPATH', '')]
    environment = {k: v for k, v in os.environ.items() if not k.startswith('PYTEST_')}
    environment['PYTHONPATH'] = os.pathsep.join(filter(None, paths))
    environment['PYTHONUNBUFFERED'] = '1'
    # what a variant has compiled, the same variant in another process need not compile
    environment.setdefault('TORCHINDUCTOR_FX_GRAPH_CACHE', '1')
    with log.open('wb') as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.returncode is None:
                _stop(process)


def _stop(process) -> None:
    """Stop a process and those that it has started; what does not end in 5 s is killed."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(5)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            pass
    process.wait()


def last_line(log: Path) -> str:
    """Give the last line of a log that has a word, at most 300 characters of it."""
    lines = [line.strip() for line in log.read_text(errors='replace').splitlines()]
    lines = [line for line in lines if re.search(r'\w', line)]
    return lines[-1][-300:] if lines else 'none'
