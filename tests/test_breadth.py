"""The page docs/breadth.md is what tools/dev/breadth.py finds."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# What the page has to have run, as teacher or student.
SEGMENTORS = (
    'pspnet fcn deeplabv3 deeplabv3plus upernet ocrnet segformer pointrend bisenetv2 fast_scnn stdc '
    'segnext bisenetv1 icnet pidnet ddrnet lraspp'
).split()
DETECTORS = 'retinanet faster-rcnn mask-rcnn fcos gfl rtmdet'.split()


def rows(text):
    """Cells of the tables: those of what ran and those of what was refused, for both packages."""
    tables = re.findall(r'\n\|---.*?\n(.*?)\n(?:\n|$)', text, re.DOTALL)
    assert len(tables) == 4
    return [
        [[cell.strip() for cell in line.strip('|').split('|')] for line in table.splitlines()]
        for table in tables
    ]


def test_the_page_has_all_that_was_asked_for():
    segmentors, no_segmentors, detectors, no_detectors = rows(
        (ROOT / 'docs/breadth.md').read_text()
    )
    for names, ran in ((SEGMENTORS, segmentors), (DETECTORS, detectors)):
        models = ' '.join(f'{teacher} {student}' for teacher, student, *_ in ran)
        assert [name for name in names if name not in models] == []
    for *_, features in segmentors + detectors:
        assert re.match(r'`[\w.\[\]:]+` \(\d+, \d+\) from `', features)
    for *_, reason in no_segmentors + no_detectors:
        assert 'FAILED' not in reason and len(reason) > 40


@pytest.mark.slow
@pytest.mark.usefixtures('mmdet')
def test_the_page_is_true(tmp_path):
    command = [sys.executable, ROOT / 'tools/dev/breadth.py', '-o', tmp_path / 'breadth.md']
    done = subprocess.run([str(c) for c in command], text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / 'breadth.md').read_text() == (ROOT / 'docs/breadth.md').read_text()
