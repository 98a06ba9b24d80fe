"""The gradient of a batch that 1, 2 and 4 processes share."""

from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


@pytest.fixture(scope='module')
def found(run_processes):
    """What shared_batch.py computed: for each number of processes, the gradients of each of them."""
    ranks = run_processes(HERE / 'shared_batch.py', 4, timeout=500)
    return {count: [r[count] for r in ranks if count in r] for count in (1, 2, 4)}


@pytest.mark.parametrize('count', [2, 4])
def test_averaged_gradient_is_that_of_one_process(found, count):
    (whole,), shared = found[1], found[count]
    assert len(shared) == count
    assert any(name.startswith('distiller.connectors.') for name in whole['gradients'])
    for one in shared:
        assert one['gradients'].keys() == whole['gradients'].keys()
        for name, gradient in one['gradients'].items():
            expected = whole['gradients'][name]
            scale = expected.abs().max().item()
            torch.testing.assert_close(
                gradient, expected, rtol=0, atol=1e-10 * scale + 1e-13, msg=name
            )


@pytest.mark.parametrize('count', [2, 4])
def test_processes_saw_different_images(found, count):
    """Else the gradients would agree for a wrong reason."""
    losses = [one['losses'] for one in found[count]]
    (whole,) = found[1]
    for name, value in whole['losses'].items():
        shares = [loss[name] for loss in losses]
        assert len(set(shares)) == count, name
        assert sum(shares) / count == pytest.approx(value, rel=1e-10), name


def test_every_loss_and_connector_counts(found):
    (whole,) = found[1]
    assert {name.split('_')[1] for name in whole['losses'] if name.startswith('distill')} == {
        'lad', 'cad', 'pad', 'naivefeature', 'magnitude', 'nfd', 'fgd',
    }  # fmt: skip
    # W_1 and w_k of FGD's blocks get a gradient when W_2 is no longer 0
    silent = {n for n, g in whole['gradients'].items() if not g.abs().max() > 0}
    assert not silent
