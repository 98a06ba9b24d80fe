"""What the command lines import, and what the package imports of them."""

import re
import subprocess
import sys

import pytest
from tool_project import ROOT, TOOLS

LIGHT = [
    'demo.py',
    'dataset_converters/digit_scenes.py',
    *(f'analysis_tools/{path.name}' for path in (TOOLS / 'analysis_tools').glob('[!_]*.py')),
]
HELP = """
import runpy, sys
sys.argv = [sys.argv[1], '--help']
sys.path.insert(0, sys.argv[0].rpartition('/')[0])
try:
    runpy.run_path(sys.argv[0], run_name='__main__')
except SystemExit as end:
    assert not end.code
print(sorted({'torch', 'rawkd_mm', 'mmseg', 'mmcv', 'matplotlib'} & set(sys.modules)))
"""


@pytest.mark.parametrize('tool', LIGHT)
def test_help_needs_no_pytorch(tool, tmp_path):
    command = [sys.executable, '-c', HELP, str(TOOLS / tool)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'usage: ' in done.stdout and done.stdout.splitlines()[-1] == '[]'


def test_analysis_is_above_the_rest_of_the_package():
    package = ROOT / 'rawkd_mm'
    for path in package.rglob('*.py'):
        if not {'analysis', '.mim'} & set(path.relative_to(package).parts):
            imports = re.findall(r'^ *(?:from|import) .*', path.read_text(), re.M)
            below = re.compile(
                r'(from|import) (rawkd_mm|\.+)\.?analysis|from (rawkd_mm|\.+) import .*analysis'
            )
            assert not any(below.search(line) for line in imports), path
