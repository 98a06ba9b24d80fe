"""Imports go one way: a part of the package imports only what is below it."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / 'rawkd_mm'
# From the bottom to the top; parts of one layer do not import each other.
LAYERS = [
    {'compat', 'version', 'zoo'},
    {'registry', 'reductions'},
    {'functional', 'features', 'connectors'},
    {'losses', 'training'},
    {'distillers', 'teachers'},
    {'algorithms'},
    {'datasets', 'hooks'},
    {'loops'},
    {'distill_config'},
    {'analysis'},
]
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}


def parts():
    return sorted(
        path.stem
        for path in PACKAGE.iterdir()
        if path.stem != '__init__' and (path.suffix == '.py' or (path / '__init__.py').is_file())
    )


def imported(path):
    """The parts that a file imports, within functions too."""
    inside = path.relative_to(PACKAGE).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = inside[: len(inside) - node.level + 1]
            names = [*base, *(node.module or '').split('.')] if node.module else list(base)
            yield from [names[0]] if names else [alias.name for alias in node.names]
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [node.module] if isinstance(node, ast.ImportFrom) else []
            modules += [] if modules else [alias.name for alias in node.names]
            for module in modules:
                if module.startswith('rawkd_mm.'):
                    yield module.split('.')[1]


def test_every_part_has_a_layer():
    assert set(parts()) == set(LEVEL)


@pytest.mark.parametrize('part', parts())
def test_a_part_imports_what_is_below(part):
    path = PACKAGE / part
    files = path.rglob('*.py') if path.is_dir() else [path.with_suffix('.py')]
    for file in files:
        for name in imported(file):
            assert name == part or name not in LEVEL or LEVEL[name] < LEVEL[part], (
                f'{file.relative_to(PACKAGE.parent)} imports {name}'
            )
