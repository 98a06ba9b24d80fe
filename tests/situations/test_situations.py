"""The table of situations names tests that there are, and every file of this folder."""

import ast
import re
from pathlib import Path

FOLDER = Path(__file__).parent
TEXT = (FOLDER / 'README.md').read_text()
ROWS = re.findall(r'^\| (.+?) \| (.+?) \| (.+?) \| `(test_\w+\.py)(?:::(\w+))?` \|$', TEXT, re.M)


def test_every_row_is_well_formed_and_has_a_source():
    assert len(ROWS) == len(re.findall(r'^\| (?!situation|-)', TEXT, re.M)) >= 30
    for what, _, source, *_ in ROWS:
        assert source == 'seen here' or re.search(r'[\w-]+/[\w-]+#\d+', source), what


def test_every_row_has_its_test():
    for what, _, _, file, test in ROWS:
        tree = ast.parse((FOLDER / file).read_text())
        names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert not test or test in names, f'{what}: {file} has no {test}'


def test_every_file_has_a_row():
    files = {path.name for path in FOLDER.glob('test_*.py')} - {Path(__file__).name}
    assert files == {file for *_, file, _ in ROWS}
