"""Computes the gradients of one batch in 1, 2 and 4 of 4 gloo processes; test_processes.py runs it."""

import os
import sys
from pathlib import Path

import torch
from helpers import distill, images, pair, pspnet, samples, total
from mmengine.model import MMDistributedDataParallel
from mmengine.structures import InstanceData
from torch import distributed, nn

from rawkd_mm.training import leave_processes

BATCH = 8
SIZE = 32
BLOCK = dict(type='GlobalContextConnector', in_channels='auto')


def group_normalized(config):
    """A config whose SyncBN is GN, to which the other images of a batch do not matter."""
    if isinstance(config, dict):
        if config.get('type') == 'SyncBN':
            return dict(type='GN', num_groups=2)
        return type(config)((k, group_normalized(v)) for k, v in config.items())
    return config


def algorithm():
    student = group_normalized(pspnet())
    for head in ('decode_head', 'auxiliary_head'):
        student[head]['dropout_ratio'] = 0.0
    losses = ('LADLoss', 'CADLoss', 'PADLoss', 'NaiveFeatureLoss', 'MagnitudeLoss', 'NFDLoss')
    pairs = [pair(loss=dict(type=name, loss_weight=1.0), name=name[:-4].lower()) for name in losses]
    fgd = dict(type='FGDLoss', alpha=1e-2, beta=1e-2, gamma=1e-2, lambda_=1e-2)
    pairs.append(
        pair('backbone[3]', loss=fgd, name='fgd', student_connector=BLOCK, teacher_connector=BLOCK)
    )
    made = distill(*pairs, student=student)
    torch.manual_seed(1)
    for connector in made.distiller.connectors.values():
        for parameter in connector.parameters():
            nn.init.normal_(parameter, std=0.3)
    return made.double().train()


def batch():
    data = samples(BATCH, SIZE)
    for i, sample in enumerate(data):
        boxes = torch.tensor([[2.0, 3.0, 9.0 + i, 20.0], [10.0, 4.0, 30.0, 8.0 + 2 * i]])
        sample.gt_instances = InstanceData(bboxes=boxes[: i % 3])
        sample.set_metainfo(dict(batch_input_shape=(SIZE, SIZE)))
    return images(BATCH, SIZE).double(), data


def share(model, part):
    """Losses and gradients of a part of the batch."""
    inputs, data = batch()
    module = model.module if isinstance(model, MMDistributedDataParallel) else model
    losses = model(inputs[part], data[part], mode='loss')
    total(losses).backward()
    return dict(
        losses={name: value.item() for name, value in losses.items() if 'loss' in name},
        gradients={name: p.grad for name, p in module.named_parameters() if p.requires_grad},
    )


def main(folder):
    rank = int(os.environ['RANK'])
    distributed.init_process_group('gloo')
    found = {}
    for count in (2, 4):
        group = distributed.new_group(range(count))
        if rank < count:
            model = MMDistributedDataParallel(algorithm(), process_group=group)
            length = BATCH // count
            found[count] = share(model, slice(rank * length, (rank + 1) * length))
    if rank == 0:
        found[1] = share(algorithm(), slice(None))
    torch.save(found, Path(folder) / f'rank{rank}.pth')
    distributed.barrier()
    leave_processes()


if __name__ == '__main__':
    main(sys.argv[1])
