"""The table of bad inputs names tests that there are, and all of this folder's."""

import ast
import re
from pathlib import Path

FOLDER = Path(__file__).parent
ROWS = re.findall(
    r'^\| (\d+) \| (.+?) \| (error|warning|allowed) \| `(.+?)::(\w+)(?:\[(.+?)\])?` \|$',
    (FOLDER / 'README.md').read_text(),
    re.MULTILINE,
)


def cases_in(file):
    """The tests of a file, each with the ids that pytest.param gives its cases."""
    tree = ast.parse((FOLDER / file).read_text())
    # lists of cases that stand outside of a decorator
    lists = {
        target.id: ids_in(node)
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    found = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith('test_'):
            ids = {name for decorator in node.decorator_list for name in ids_in(decorator)}
            for decorator in node.decorator_list:
                for part in ast.walk(decorator):
                    ids |= lists.get(getattr(part, 'id', None), set())
            found[node.name] = ids
    return found


def ids_in(node):
    return {
        keyword.value.value
        for part in ast.walk(node)
        if isinstance(part, ast.Call) and getattr(part.func, 'attr', None) == 'param'
        for keyword in part.keywords
        if keyword.arg == 'id'
    }


def test_rows_are_numbered_and_there_are_enough():
    lines = re.findall(r'^\| \d', (FOLDER / 'README.md').read_text(), re.MULTILINE)
    assert len(ROWS) == len(lines), 'a row is malformed'
    assert [int(row[0]) for row in ROWS] == list(range(1, len(ROWS) + 1))
    assert len({row[3:] for row in ROWS if row[2] == 'error'}) >= 40


def test_every_row_has_its_test():
    for _, what, _, file, test, case in ROWS:
        there = cases_in(file)
        assert test in there, f'{what}: {file} has no {test}'
        assert not case or case in there[test], f'{what}: {test} has no case {case!r}'


def test_every_case_of_this_folder_has_a_row():
    listed = {(file, test, case) for _, _, _, file, test, case in ROWS}
    for path in sorted(FOLDER.glob('test_bad_*.py')):
        for test, cases in cases_in(path.name).items():
            missing = [case for case in cases if (path.name, test, case) not in listed]
            assert not missing, f'{path.name}::{test}: no rows for {missing}'
