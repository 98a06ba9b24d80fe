"""A headless Chromium, driven by its DevTools protocol over a pipe."""

import base64
import contextlib
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

TIMEOUT = 60  # seconds for an answer


def find_chromium() -> str | None:
    """Give the path of a Chromium or Chrome."""
    names = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable')
    return next(filter(None, map(shutil.which, names)), None)


class Page:
    """A page; everything that it complains about and asks for is kept.

    Attributes:
        problems: Messages of the console (errors and warnings) and exceptions.
        requests: URLs.
    """

    def __init__(self, send: int, receive: int) -> None:
        self._send, self._receive, self._buffer = send, receive, b''
        self._numbers = itertools.count(1)
        self._events, self._session = [], None
        self.problems, self.requests = [], []
        target = self.call('Target.createTarget', url='about:blank')['targetId']
        self._session = self.call('Target.attachToTarget', targetId=target, flatten=True)[
            'sessionId'
        ]
        for domain in ('Page', 'Runtime', 'Log', 'Network'):
            self.call(f'{domain}.enable')

    def call(self, method: str, **params) -> dict:
        """Call a method of the protocol; gives its result."""
        number = next(self._numbers)
        message = dict(id=number, method=method, params=params)
        if self._session:
            message['sessionId'] = self._session
        os.write(self._send, json.dumps(message).encode() + b'\0')
        while True:
            answer = self._read()
            if answer.get('id') == number:
                assert 'error' not in answer, (method, answer)
                return answer['result']

    def _read(self) -> dict:
        while b'\0' not in self._buffer:
            ready, _, _ = select.select([self._receive], [], [], TIMEOUT)
            assert ready, f'Chromium has not answered for {TIMEOUT} s'
            data = os.read(self._receive, 1 << 16)
            assert data, 'Chromium has ended'
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b'\0')
        message = json.loads(line)
        self._note(message.get('method'), message.get('params', {}))
        return message

    def _note(self, method: str | None, params: dict) -> None:
        if method == 'Log.entryAdded' and params['entry']['level'] in ('warning', 'error'):
            self.problems.append(params['entry']['text'])
        elif method == 'Runtime.consoleAPICalled' and params['type'] in ('warning', 'error'):
            self.problems.append(str(params['args']))
        elif method == 'Runtime.exceptionThrown':
            self.problems.append(str(params['exceptionDetails']))
        elif method == 'Network.requestWillBeSent':
            self.requests.append(params['request']['url'])
        if method:
            self._events.append(method)

    def open(self, url: str) -> None:
        """Open a URL, wait until it is loaded."""
        self._events.clear()
        self.call('Page.navigate', url=url)
        while 'Page.loadEventFired' not in self._events:
            self._read()

    def evaluate(self, expression: str):
        """Give the value of a JavaScript expression."""
        result = self.call('Runtime.evaluate', expression=expression, returnByValue=True)
        assert 'exceptionDetails' not in result, result
        return result['result'].get('value')

    def show_as(self, width: int, height: int, mobile: bool = False, scheme: str = 'light') -> None:
        """Choose a screen and its colour scheme."""
        self.call(
            'Emulation.setDeviceMetricsOverride',
            width=width,
            height=height,
            deviceScaleFactor=2 if mobile else 1,
            mobile=mobile,
        )
        feature = dict(name='prefers-color-scheme', value=scheme)
        self.call('Emulation.setEmulatedMedia', features=[feature])

    def screenshot(self, whole: bool = False) -> bytes:
        """Give a PNG of what is seen, or of the whole page."""
        params = dict(captureBeyondViewport=whole)
        if whole:
            size = self.call('Page.getLayoutMetrics')['cssContentSize']
            params['clip'] = dict(x=0, y=0, width=size['width'], height=size['height'], scale=1)
        return base64.b64decode(self.call('Page.captureScreenshot', **params)['data'])

    def print(self) -> bytes:
        """Give the page as PDF."""
        result = self.call('Page.printToPDF', printBackground=True)
        return base64.b64decode(result['data'])


@contextlib.contextmanager
def open_page(profile: Path):
    """Start a Chromium with an empty profile and give a page of it."""
    to_read, send = os.pipe()
    receive, to_write = os.pipe()
    command = [find_chromium(), '--headless=new', '--no-sandbox', '--remote-debugging-pipe']
    command += ['--disable-gpu', '--disable-dev-shm-usage', '--no-first-run']
    command += [f'--user-data-dir={profile}', 'about:blank']
    # it reads from descriptor 3 and writes to 4
    shell = ['bash', '-c', f'exec "$@" 3<&{to_read} 4>&{to_write}', '--', *command]
    with (profile.parent / f'{profile.name}.log').open('wb') as log:
        process = subprocess.Popen(
            shell, pass_fds=(to_read, to_write), stdout=log, stderr=log, start_new_session=True
        )
    os.close(to_read)
    os.close(to_write)
    try:
        yield Page(send, receive)
    finally:
        os.close(send)  # which ends it
        os.close(receive)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        # its processes may still write into the profile
        for _ in range(20):
            shutil.rmtree(profile, ignore_errors=True)
            if not profile.exists():
                break
            time.sleep(0.1)
