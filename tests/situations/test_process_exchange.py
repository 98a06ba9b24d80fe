"""What two gloo processes tell each other after an iteration, with the hooks of tools/train.py."""

from pathlib import Path

import numpy as np
import pytest
import torch

from rawkd_mm.training.process_exchange import ProcessExchange

HERE = Path(__file__).parent


@pytest.fixture(scope='module')
def found(run_processes):
    return [rank['exchange'] for rank in run_processes(HERE / 'ranks.py', 2)]


def test_one_collective_an_iteration(found):
    """Losses, whether they are finite, and whether to stop; a checkpoint is not due in these."""
    for rank in found:
        assert rank['never']['counts'] == [['all_reduce']] * 4
        assert rank['never']['stopped'] is None


def test_losses_are_averaged_to_the_bit(found):
    ours, theirs = (rank['never'] for rank in found)
    assert ours['own'] != theirs['own'] and len(ours['own']) == 4
    for a, b, averaged in zip(ours['own'], theirs['own'], ours['averaged']):
        assert sorted(a) == sorted(averaged) and 'loss' in a
        for name in a:
            expected = (np.float32(a[name]) + np.float32(b[name])) / np.float32(2)
            assert averaged[name] == expected, name
    assert ours['averaged'] == theirs['averaged']


@pytest.mark.parametrize(('when', 'iteration'), [('before', 2), ('end', 3)])
def test_both_stop_after_the_same_iteration(found, when, iteration):
    """A signal that comes when the processes have exchanged counts in the next iteration."""
    assert [rank[when]['stopped'] for rank in found] == [iteration] * 2
    # those before the last one
    assert [rank[when]['counts'] for rank in found] == [[['all_reduce']] * (iteration - 1)] * 2


def test_alone():
    """Without other processes: the first call of an iteration tells, and nothing is changed."""
    told = []
    exchange = ProcessExchange(lambda: bool(told))
    outputs = dict(loss=torch.tensor([1.0, 2.0]), acc=torch.tensor(float('nan')), text='x')
    exchanged = exchange.after(0, outputs)
    assert exchanged.is_finite and exchanged.is_own_finite and not exchanged.is_told_to_stop
    assert set(exchanged.averages) == {'loss', 'acc'}
    told.append(True)
    bad = dict(outputs, loss=torch.tensor([1.0, float('inf')]))
    assert exchange.after(0, bad) is exchanged
    exchanged = exchange.after(1, bad)
    assert not exchanged.is_finite and not exchanged.is_own_finite and exchanged.is_told_to_stop
    assert exchange.after(2, None).is_finite
    assert bad['loss'].tolist() == [1.0, float('inf')]
