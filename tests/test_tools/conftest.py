"""The runs that several tests look at.

Starting a process costs some 8 s of imports, so each run is made once and checked from many sides.
"""

import pytest
from tool_project import TOOLS, Project


@pytest.fixture(scope='session')
def project(tmp_path_factory):
    return Project(tmp_path_factory.mktemp('project'))


@pytest.fixture(scope='session')
def teacher_log(project):
    """The teacher, trained alone: one process, mixed precision, scaled learning rate."""
    return project.run(
        TOOLS / 'train.py', 'teacher.py', '--work-dir', 'runs/teacher', '--amp', '--auto-scale-lr',
        '--cfg-options', 'auto_scale_lr.base_batch_size=16',
    )  # fmt: skip


@pytest.fixture(scope='session')
def one_process_log(project, teacher_log):
    """A distillation in one process."""
    return project.run(TOOLS / 'train.py', 'distillation.py', '--work-dir', 'runs/one')


@pytest.fixture(scope='session')
def two_process_log(project, teacher_log):
    """The same with two processes and the same total batch, started from elsewhere."""
    return project.run(
        TOOLS / 'dist_train.sh', project.folder / 'distillation.py', '2',
        '--work-dir', project.folder / 'runs/two', '--cfg-options', 'train_dataloader.batch_size=4',
        cwd='/',
    )  # fmt: skip


@pytest.fixture(scope='session')
def dumped_log(project):
    return project.run(TOOLS / 'dump_config.py', 'distillation.py', 'dumped/self_contained.py')
