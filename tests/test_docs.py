"""The pages of the documentation: names, signatures, links and the index are true."""

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / 'docs'
API = re.findall(
    r'^\| \[`([\w.]+)`\]\(\.\./([\w./]+)\) \| `([^`]+)` \|',
    (DOCS / 'api.md').read_text(),
    re.MULTILINE,
)
PAGES = sorted(
    [
        ROOT / 'README.md',
        ROOT / 'CHANGELOG.md',
        *DOCS.glob('*.md'),
        *ROOT.glob('configs/*/README.md'),
        *ROOT.glob('tests/**/README.md'),
    ]
)


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page in links."""
    text = re.sub(r'^```.*?^```', '', page.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r'^#+ (.*)$', text, re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in titles}


@pytest.mark.parametrize(('path', 'file', 'signature'), API, ids=[row[0] for row in API])
def test_api_row(path, file, signature):
    module, _, name = path.rpartition('.')
    value = getattr(importlib.import_module(module), name)
    assert Path(inspect.getsourcefile(inspect.unwrap(value))) == ROOT / file
    if isinstance(value, type) and issubclass(value, BaseException):
        assert signature == name
        return
    actual = inspect.signature(value)
    bare = [p.replace(annotation=p.empty) for p in actual.parameters.values()]
    assert signature == name + str(
        actual.replace(parameters=bare, return_annotation=inspect.Signature.empty)
    )


def test_api_has_every_registered_type():
    # in a process of its own: other tests register types too
    code = (
        'import rawkd_mm, mmengine.registry as root, mmrazor.registry as razor, mmseg.registry as seg\n'
        'registries = {r for m in (root, razor, seg) for r in vars(m).values()'
        ' if isinstance(r, root.Registry)}\n'
        'types = {t for r in registries for t in r.module_dict.values()}\n'
        "print(*{t.__name__ for t in types if t.__module__.startswith('rawkd_mm.')})"
    )
    run = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    registered = set(run.stdout.splitlines()[-1].split())
    assert {'CADLoss', 'FeatureDistiller', 'FrozenTeacherDistill'} <= registered
    assert registered <= {path.rpartition('.')[2] for path, _, _ in API}


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links(page):
    text = re.sub(r'^```.*?^```', '', page.read_text(), flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r'`[^`\n]*`', '', text)
    for link in re.findall(r'\]\(([^)\s]+)\)', text):
        if re.match(r'\w+:', link):
            continue
        target, _, anchor = link.partition('#')
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), link
        assert not anchor or anchor in anchors(path), link


def test_index_lists_every_page():
    listed = set(re.findall(r'\]\((\w+\.md)\)', (DOCS / 'index.md').read_text()))
    assert listed == {page.name for page in DOCS.glob('*.md')} - {'index.md'}
