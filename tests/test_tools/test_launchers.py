"""The shell scripts, with a program in place of Python and srun that prints what it was given."""

import pytest
from tool_project import TOOLS


@pytest.fixture
def printing(tmp_path):
    """A program that prints its arguments, one a line, and some of its environment."""
    program = tmp_path / 'bin' / 'srun'
    program.parent.mkdir()
    program.write_text(
        '#!/bin/sh\nprintf "%s\\n" "$@" "OMP=$OMP_NUM_THREADS" "PORT=$MASTER_PORT"\n'
    )
    program.chmod(0o755)
    return program


@pytest.fixture
def launch(project, printing):
    def launch(script, *args, fails=False, **environment):
        environment = (
            dict(PYTHON=str(printing), PATH=f'{printing.parent}:/usr/bin:/bin') | environment
        )
        return project.run(TOOLS / script, *args, fails=fails, cwd='/', **environment).splitlines()

    return launch


def test_dist_train(launch):
    lines = launch('dist_train.sh', 'a b.py', '2', '--cfg-options', 'x=[1, 2]')
    assert '--standalone' in lines
    assert lines[lines.index('--nproc_per_node') + 1] == '2'
    tool = lines.index(str(TOOLS / 'train.py'))
    assert lines[tool + 1 : tool + 6] == [
        'a b.py', '--cfg-options', 'x=[1, 2]', '--launcher', 'pytorch'
    ]  # fmt: skip


def test_cores_are_shared(launch):
    import os

    cores = len(os.sched_getaffinity(0))
    assert f'OMP={cores}' in launch('dist_train.sh', 'c.py', '1')
    assert f'OMP={max(1, cores // 2)}' in launch('dist_train.sh', 'c.py', '2')
    assert 'OMP=1' in launch('dist_train.sh', 'c.py', '1000')
    assert 'OMP=7' in launch('dist_train.sh', 'c.py', '1', OMP_NUM_THREADS='7')


def test_several_nodes(launch):
    lines = launch(
        'dist_test.sh', 'c.py', 'c.pth', '8', '--tta',
        NNODES='2', NODE_RANK='1', MASTER_ADDR='10.0.0.1',
    )  # fmt: skip
    for option, value in dict(
        nnodes='2', node_rank='1', master_addr='10.0.0.1', master_port='29500', nproc_per_node='8'
    ).items():
        assert lines[lines.index(f'--{option}') + 1] == value
    tool = lines.index(str(TOOLS / 'test.py'))
    assert lines[tool + 1 : tool + 4] == ['c.py', 'c.pth', '--tta']
    (message,) = launch('dist_train.sh', 'c.py', '8', NNODES='2', fails=True)
    assert 'MASTER_ADDR must be' in message
    several = dict(NNODES='2', MASTER_ADDR='10.0.0.1', fails=True)
    for rank in (dict(), dict(NODE_RANK='2'), dict(NODE_RANK='-1'), dict(NODE_RANK='b')):
        (message,) = launch('dist_train.sh', 'c.py', '8', **several, **rank)
        given = rank.get('NODE_RANK', '')
        assert f"NODE_RANK must be the number of this node, 0 to 1, got '{given}'" in message
    message = launch('dist_train.sh', 'c.py', '8', NNODES='two', fails=True)[0]
    assert "NNODES must be a positive number, got 'two'" in message


def test_port(launch):
    lines = launch('dist_train.sh', 'c.py', '1', PORT='12345')
    assert lines[lines.index('--master_port') + 1] == '12345'


def test_slurm(launch):
    lines = launch(
        'slurm_train.sh', 'gpu', 'job', 'c.py', 'work dir', '--amp',
        GPUS='16', SRUN_ARGS='--time=1 --quotatype=auto', PORT='23456',
    )  # fmt: skip
    for part in ('--ntasks=16', '--gres=gpu:8', '--ntasks-per-node=8', '--cpus-per-task=5',
                 '--time=1', '--quotatype=auto', 'PORT=23456'):  # fmt: skip
        assert part in lines
    tool = lines.index(str(TOOLS / 'train.py'))
    assert lines[tool + 1 : tool + 7] == [
        'c.py', '--work-dir', 'work dir', '--amp', '--launcher', 'slurm'
    ]  # fmt: skip
    lines = launch('slurm_train.sh', 'gpu', 'job', 'c.py', '--amp', GPUS='4')
    assert '--ntasks-per-node=4' in lines
    assert '--work-dir' not in lines
    lines = launch('slurm_test.sh', 'gpu', 'job', 'c.py', 'c.pth', '--tta')
    tool = lines.index(str(TOOLS / 'test.py'))
    assert lines[tool + 1 : tool + 4] == ['c.py', 'c.pth', '--tta']


@pytest.mark.parametrize(
    ('script', 'args'),
    [
        ('dist_train.sh', ['c.py']),
        ('dist_train.sh', ['c.py', 'two']),
        ('dist_test.sh', ['c.py', 'c.pth']),
        ('dist_test.sh', ['c.py', 'c.pth', '0']),
        ('slurm_train.sh', ['gpu', 'job']),
        ('slurm_test.sh', ['gpu', 'job', 'c.py']),
    ],
)
def test_usage(launch, script, args):
    lines = launch(script, *args, fails=True)
    assert f'usage: tools/{script}' in '\n'.join(lines)
