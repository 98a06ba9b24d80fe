"""docs/quickstart.ipynb, executed as it stands, with few iterations."""

import json
import os

import pytest
from tool_project import ROOT

NOTEBOOK = ROOT / 'docs/quickstart.ipynb'


def test_it_runs_from_the_installation_to_the_report(tmp_path, monkeypatch, fast_python):
    nbformat = pytest.importorskip('nbformat')
    nbclient = pytest.importorskip('nbclient')
    pytest.importorskip('ipykernel')
    # `rawkd` beside this Python belongs to the checkout that is tested
    (tmp_path / 'bin').mkdir()
    command = tmp_path / 'bin/rawkd'
    command.write_text(f'#!/bin/sh\nexec {fast_python} {ROOT}/rawkd.py "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]))
    for name, value in dict(ITERS='4', EVERY='2', TRAIN='60', OMP_NUM_THREADS='1').items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if 'os.environ' in cell.source:
            cell.source += f'\nos.environ["PATH"] = "{command.parent}:" + os.environ["PATH"]'
    client = nbclient.NotebookClient(
        notebook,
        timeout=300,
        kernel_name='python3',
        resources=dict(metadata=dict(path=str(tmp_path))),
    )
    client.execute()

    folder = tmp_path / 'quickstart'
    assert '<h2>Metrics' in (folder / 'work_dirs/cad/report.html').read_text()
    metrics = json.loads((folder / 'work_dirs/teacher/test_metrics.json').read_text())['metrics']
    assert round(metrics['mIoU'], 2) == 75.62
    texts = [
        output.get('text', '')
        for cell in notebook.cells
        if cell.cell_type == 'code'
        for output in cell.outputs
    ]
    assert any(text.startswith('alone {2: ') and '\ncad {2: ' in text for text in texts)
    pictures = [
        output
        for cell in notebook.cells
        if cell.cell_type == 'code'
        for output in cell.outputs
        if 'image/png' in output.get('data', {})
    ]
    assert len(pictures) == 1


def test_it_is_stored_without_outputs():
    cells = json.loads(NOTEBOOK.read_text())['cells']
    code = [cell for cell in cells if cell['cell_type'] == 'code']
    assert len(code) == 8
    assert not any(cell['outputs'] or cell['execution_count'] for cell in code)
