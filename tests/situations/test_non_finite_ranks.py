"""With several processes the message names the one whose feature or loss was not finite.

With the hooks that tools/train.py installs, one of which averages the losses over the processes, so
that those of every process are not finite afterwards.
"""

import ast
import re
from pathlib import Path

import pytest
from helpers import distill, run

from rawkd_mm.hooks import (
    LabelRangeHook,
    NonFiniteLossHook,
    register_training_hooks,
)
from rawkd_mm.training import AverageLossesHook

HERE = Path(__file__).parent


@pytest.fixture(scope='module')
def found(run_processes):
    """What each of two processes was told, by what was broken in the second."""
    return run_processes(HERE / 'ranks.py', 2)


def told(found, what):
    messages = [rank[what] for rank in found]
    assert messages[0] == messages[1], 'both stop with the same message'
    assert messages[0].startswith('iteration 2: the loss is not finite. Process (rank) 1 of 2: ')
    assert 'rank) 0' not in messages[0], 'the first process is innocent'
    return messages[0]


def test_nothing_broken_trains(found):
    assert [rank['nothing'] for rank in found] == ['trained', 'trained']


@pytest.mark.parametrize('role', ['student', 'teacher'])
def test_rank_and_pair_are_named(found, role):
    """layer4 of one process is broken: the bottleneck's pair is, the pair of layer3 is not."""
    message = told(found, role)
    assert re.search(
        rf"pair loss_cad_decode_head.bottleneck: \d+ of \d+ values of the {role}'s feature are NaN",
        message,
    )
    assert 'distill.loss_cad_decode_head.bottleneck is nan' in message
    assert 'pair loss_cad_backbone.2' not in message
    other = dict(student='teacher', teacher='student')[role]
    assert f"the {other}'s" not in message


def test_loss_of_finite_features(found):
    """The loss itself overflows in one process; its features are finite everywhere."""
    message = told(found, 'loss')
    assert 'pair loss_cad_decode_head.bottleneck: both features are finite' in message
    assert 'distill.loss_cad_decode_head.bottleneck is inf' in message


def test_hook_of_the_config_is_not_doubled(found):
    told(found, 'teacher, hook of the config')


def test_hook_behind_the_averaging(found):
    """A config may place the hook anywhere: then every loss is NaN, and the features still tell."""
    message = told(found, 'teacher, late')
    assert "values of the teacher's feature are NaN" in message
    assert 'both features are finite' not in message


def test_train_tool_installs_these_hooks():
    """tools/train.py calls the function that this file tests, and registers nothing else."""
    tree = ast.parse((HERE.parents[1] / 'tools' / 'train.py').read_text())
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    names = [getattr(func, 'id', getattr(func, 'attr', None)) for func in calls]
    assert names.count('register_training_hooks') == 1
    assert 'register_hook' not in names


def test_order_of_the_hooks(tmp_path):
    """Looked at before averaged, averaged before recorded and logged; the config's hook stays."""
    runner = run(distill(), tmp_path, iters=1, hooks=[dict(type='NonFiniteLossHook', patience=7)])
    register_training_hooks(runner)
    kinds = [type(hook).__name__ for hook in runner.hooks]
    assert [kinds.count(x.__name__) for x in (NonFiniteLossHook, LabelRangeHook)] == [1, 1]
    first, second, third = (
        kinds.index(name) for name in ('NonFiniteLossHook', 'AverageLossesHook', 'RuntimeInfoHook')
    )
    assert first < second < third
    assert kinds.count(AverageLossesHook.__name__) == 1
    assert runner.hooks[first].patience == 7
