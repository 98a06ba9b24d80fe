import math

import pytest
import torch
from tool_project import TOOLS


def test_student_alone(project, teacher_log):
    assert 'SyncBN layers run as BN: there is only one process.' in teacher_log
    assert 'mixed precision is bfloat16 on the CPU' in teacher_log
    assert 'Scaling the original LR by 0.5.' in teacher_log
    assert all(map(math.isfinite, project.losses('runs/teacher')))
    assert (project.folder / 'runs/teacher/iter_4.pth').is_file()


def test_distillation_on_two_processes_equals_one(project, one_process_log, two_process_log):
    assert 'the processes talk through gloo instead of nccl' in two_process_log
    assert 'SyncBN layers run as BN: SyncBN needs GPUs' in two_process_log
    assert 'SyncBN layers run as BN: there is only one process.' in one_process_log
    one, two = project.scalars('runs/one'), project.scalars('runs/two')
    assert len(project.losses('runs/one')) == 4
    # accuracies are means over the valid pixels of a process, whose number differs
    keys = {key for entry in one for key in entry if 'loss' in key}
    assert any(key.startswith('distill.') for key in keys)
    assert [entry['step'] for entry in two] == [entry['step'] for entry in one]
    for key in keys:
        of_one, of_two = ([e[key] for e in entries if key in e] for entries in (one, two))
        assert of_two == pytest.approx(of_one, rel=1e-5), key
    one, two = (project.weights(f'runs/{name}/iter_4.pth') for name in ('one', 'two'))
    assert one.keys() == two.keys()
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-4, atol=1e-5, msg=name)


def test_resume_auto_equals_no_interruption(project, one_process_log):
    project.copy_of_interrupted('runs/one', 'runs/moved')
    log = project.run(TOOLS / 'train.py', 'distillation.py', '--work-dir', 'runs/moved', '--resume')
    assert 'resumed epoch: 0, iter: 2' in log
    expected, resumed = (project.weights(f'runs/{name}/iter_4.pth') for name in ('one', 'moved'))
    for name, weight in expected.items():
        assert torch.equal(resumed[name], weight), name


def test_resume_path_with_amp_on_two_processes(project, one_process_log):
    log = project.run(
        TOOLS / 'dist_train.sh', 'distillation.py', '2', '--work-dir', 'runs/amp', '--amp',
        '--resume', 'runs/one/iter_2.pth', '--cfg-options', 'train_dataloader.batch_size=4',
    )  # fmt: skip
    assert 'The training resumes from runs/one/iter_2.pth.' in log
    assert 'mixed precision is bfloat16 on the CPU' in log
    losses, exact = project.losses('runs/amp'), project.losses('runs/one')
    assert losses == pytest.approx(exact[2:], rel=0.05)
    assert losses != exact[2:]


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ([], 'the following arguments are required: CONFIG'),
        (['nowhere.py'], "CONFIG: 'nowhere.py' is not a file"),
        (['student.py', '--launcher', 'ssh'], "invalid choice: 'ssh'"),
        (['student.py', '--local-rank', 'x'], 'invalid int value'),
    ],
)
def test_wrong_arguments(project, args, message):
    assert message in project.run(TOOLS / 'train.py', *args, fails=True)


@pytest.mark.parametrize('tool', ['train', 'test', 'dump_config'])
def test_help(project, tool):
    text = project.run(TOOLS / f'{tool}.py', '--help', fresh=True)
    assert 'CONFIG' in text
    assert '--cfg-options' in text
