"""The runs that several tests look at.

A training costs some seconds, so each run is made once and checked from many sides.
"""

import pytest
from tool_project import TOOLS, Project


@pytest.fixture(scope='session')
def project(tmp_path_factory, once, fast_python):
    return once('project', lambda: Project(tmp_path_factory.mktemp('project'), fast_python))


@pytest.fixture(scope='session')
def run_once(once, project):
    """Runs a tool as ``project.run`` does, the first time that it is asked to; gives its output."""
    return lambda name, *args, **kwargs: once(name, lambda: project.run(*args, **kwargs))


@pytest.fixture(scope='session')
def teacher_log(run_once):
    """The teacher, trained alone: one process, mixed precision, scaled learning rate."""
    return run_once(
        'teacher', TOOLS / 'train.py', 'teacher.py', '--work-dir', 'runs/teacher', '--amp',
        '--auto-scale-lr', '--cfg-options', 'auto_scale_lr.base_batch_size=16', fresh=True,
    )  # fmt: skip


@pytest.fixture(scope='session')
def one_process_log(run_once, teacher_log):
    """A distillation in one process."""
    return run_once('one', TOOLS / 'train.py', 'distillation.py', '--work-dir', 'runs/one')


@pytest.fixture(scope='session')
def two_process_log(run_once, project, teacher_log):
    """The same with two processes and the same total batch, started from elsewhere."""
    return run_once(
        'two', TOOLS / 'dist_train.sh', project.folder / 'distillation.py', '2',
        '--work-dir', project.folder / 'runs/two', '--cfg-options', 'train_dataloader.batch_size=4',
        cwd='/',
    )  # fmt: skip


@pytest.fixture(scope='session')
def dumped_log(run_once):
    return run_once(
        'dumped', TOOLS / 'dump_config.py', 'distillation.py', 'dumped/self_contained.py',
        fresh=True,
    )  # fmt: skip
