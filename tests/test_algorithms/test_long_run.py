"""200 iterations of a real training leave nothing behind."""

import gc
import os
from pathlib import Path

import pytest
import torch
from helpers import distill, pair, pspnet, run
from mmengine.hooks import Hook

FIRST, LAST = 50, 200
STATM = Path('/proc/self/statm')


def resident():
    """Memory of this process in MiB."""
    return int(STATM.read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 2**20


@pytest.fixture
def frozen():
    """What is there already, of other tests, is in no inventory.

    Fake tensors that torch.compile left behind have symbolic sizes: to add them up makes objects.
    """
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


class Inventory(Hook):
    """What of the training is alive after some iterations."""

    priority = 'LOWEST'

    def __init__(self):
        self.counts = {}

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        iteration = runner.iter + 1
        if iteration not in (FIRST, LAST):
            return
        gc.collect()
        objects = gc.get_objects()  # without the frozen
        tensors = [x for x in objects if isinstance(x, torch.Tensor)]
        self.counts[iteration] = dict(
            objects=len(objects),
            tensors=len(tensors),
            bytes=sum(x.numel() * x.element_size() for x in tensors),
            hooks=sum(
                len(m._forward_hooks) + len(m._forward_pre_hooks)
                for m in objects
                if isinstance(m, torch.nn.Module)
            ),
            resident=resident(),
        )


@pytest.mark.skipif(not STATM.exists(), reason='needs /proc/self/statm to see its own memory')
def test_memory_does_not_grow(frozen, tmp_path):
    """Several pairs, connectors, geometry, EMA; what only grows is MMEngine's log, of numbers."""
    inventory = Inventory()
    algorithm = distill(
        pair(),
        pair('backbone[2]'),
        pair('backbone[3]', loss=dict(type='LADLoss')),
        student=pspnet(),
    )
    hooks = [dict(type='FeatureGeometryHook', interval=10), dict(type='EMAHook'), inventory]
    runner = run(algorithm, tmp_path, iters=LAST, hooks=hooks, save_last=False)
    assert runner.iter == LAST
    before, after = (inventory.counts[i] for i in (FIRST, LAST))
    # a thing that is left behind every iteration would be there 150 times
    for kind, most in dict(objects=75, tensors=10, hooks=0).items():
        assert after[kind] - before[kind] <= most, (kind, before, after)
    assert after['bytes'] - before['bytes'] < 2**20, (before, after)
    # an iteration's graph is 1 MiB and more
    assert after['resident'] - before['resident'] < 50, (before, after)
