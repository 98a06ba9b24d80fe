"""Trainings that log to TensorBoard and MLflow too, by the lines of docs/train.md."""

import json
import re

import pytest
from tool_project import ROOT

LINES = dict(
    re.findall(
        r'^\| (\w+) \| `(visualizer = [^`]+)` \|', (ROOT / 'docs/train.md').read_text(), re.M
    )
)


@pytest.fixture(scope='module')
def train(project, teacher_log):
    """Trains with the line of a backend; gives the folder of what it logged, and the scalars."""

    def run(name):
        (project.folder / f'{name}.py').write_text(f"_base_ = './distillation.py'\n{LINES[name]}\n")
        project.run(
            ROOT / 'tools/train.py', f'{name}.py', '--cfg-options', 'default_hooks.logger.interval=1',
            MLFLOW_ALLOW_FILE_STORE='true',
        )  # fmt: skip
        (file,) = (project.folder / 'work_dirs' / name).glob('*/vis_data/scalars.json')
        entries = [json.loads(line) for line in file.read_text().splitlines()]
        scalars = {}
        for entry in entries:
            for key, value in entry.items():
                scalars.setdefault(key, []).append((entry['step'], value))
        assert any(key.startswith('distill.') for key in scalars) and 'mIoU' in scalars
        return file.parent, scalars

    return run


def test_the_page_has_three_lines():
    assert list(LINES) == ['TensorBoard', 'MLflow']
    assert "type='WandbVisBackend'" in (ROOT / 'docs/train.md').read_text()


def test_tensorboard(train):
    accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    folder, scalars = train('TensorBoard')
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    for key, values in scalars.items():
        if key == 'step':
            continue
        written = [(event.step, event.value) for event in events.Scalars(key)]
        assert written == [(step, pytest.approx(value, rel=1e-6)) for step, value in values], key


def test_mlflow(train, monkeypatch):
    tracking = pytest.importorskip('mlflow.tracking')
    monkeypatch.setenv('MLFLOW_ALLOW_FILE_STORE', 'true')
    folder, scalars = train('MLflow')
    client = tracking.MlflowClient(f'file://{folder}')
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    for key, values in scalars.items():
        if key == 'step':
            continue
        history = client.get_metric_history(run.info.run_id, key)
        assert sorted((m.step, m.value) for m in history) == sorted(values), key
