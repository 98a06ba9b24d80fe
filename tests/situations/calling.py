"""Calling a tool in the test's own process: a new one costs seconds of imports."""

import contextlib
import io
import os
import sys
import warnings
from unittest.mock import patch

from zoo import ROOT

TOOLS = ROOT / 'tools'
sys.path[:0] = [str(TOOLS), str(TOOLS / 'analysis_tools')]

import inspect_features  # noqa: E402
import make_distill_config  # noqa: E402

__all__ = [
    'call',
    'inside',
    'inspect_features',
    'make_distill_config',
]


@contextlib.contextmanager
def inside(folder):
    """Be in a folder meanwhile."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def call(tool, *args, folder='.', fails=False):
    """Call a tool's main(); gives what it printed, its error included, in one line."""
    printed, error = io.StringIO(), None
    with contextlib.ExitStack() as stack:
        stack.enter_context(inside(folder))
        stack.enter_context(patch.object(sys, 'argv', [tool.__file__, *map(str, args)]))
        stack.enter_context(contextlib.redirect_stdout(printed))
        stack.enter_context(contextlib.redirect_stderr(printed))
        stack.enter_context(warnings.catch_warnings())
        try:
            tool.main()
        except SystemExit as stop:
            error = stop.code
    assert (error not in (None, 0)) == fails, f'{error}\n{printed.getvalue()}'
    return ' '.join(f'{printed.getvalue()}\n{error if fails else ""}'.split())
