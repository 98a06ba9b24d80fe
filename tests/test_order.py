"""What conftest.py says of the order of the tests is about tests that are there."""

import importlib.util
from pathlib import Path

TESTS = Path(__file__).parent
SPEC = importlib.util.spec_from_file_location('root_conftest', TESTS / 'conftest.py')
CONFTEST = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(CONFTEST)


def test_every_name_is_there():
    assert len(set(CONFTEST.LONGEST)) == len(CONFTEST.LONGEST)
    for name in CONFTEST.LONGEST:
        file, _, test = name.partition('::')
        if name != 'sweep':
            text = (TESTS.parent / file).read_text()
            assert f'def {test}(' in text or not test, name
    for name in CONFTEST.SWEEP:
        assert (TESTS / 'test_tools/test_analysis_tools' / name).is_file()


def test_files_stay_together_but_for_those_that_share_nothing():
    group_of = CONFTEST.group_of
    assert group_of('tests/a.py::test_b[x::y@z]') == group_of('tests/a.py::test_c') == 'tests/a.py'
    sweep = {group_of(f'tests/{name}::test_{name}') for name in CONFTEST.SWEEP}
    assert sweep == {'sweep'}
    one, two = (f'tests/test_tools/test_faults.py::test_{name}' for name in ('a', 'b'))
    assert group_of(one) != group_of(two)
