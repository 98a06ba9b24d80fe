"""Networks of one's own that are teachers without a head, small and quickly trained."""

import functools
import os
from pathlib import Path

import torch
from torch import nn

IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


class EightConvs(nn.Module):
    """A map of 16 channels at an eighth of the size; ``end`` changes what comes out.

    Args:
        halvings (int): How often the size is halved.
        end (str): '', 'flat' for the mean over all positions, 'map' for a map that does not depend on
            the image, 'line' for 16 multiples of one channel.
    """

    images = IMAGENET

    def __init__(self, end='', halvings=3):
        super().__init__()
        layers = []
        for i in range(8):
            conv = nn.Conv2d(16 if i else 3, 16, 3, 2 if i < halvings else 1, 1)
            layers += [conv, nn.BatchNorm2d(16), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.end = end

    def forward(self, images):
        maps = self.layers(images)
        if self.end == 'flat':
            return maps.mean((2, 3), keepdim=True).expand_as(maps)
        if self.end == 'map':
            return (
                torch.arange(maps[0].numel(), dtype=maps.dtype).sin().view(maps[:1].shape)
                + 0 * maps
            )
        if self.end == 'line':
            return maps[:, :1] * torch.arange(1, 17, dtype=maps.dtype).view(1, 16, 1, 1)
        return maps


def eight_convs(**kwargs):
    """Build it with PyTorch's own random weights."""
    return EightConvs(**kwargs)


@functools.lru_cache
def trained_state(iterations=120):
    """Weights of EightConvs that has learnt to tell where an image is bright."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network, last = EightConvs(), nn.Conv2d(16, 3, 1)
        parameters = [*network.parameters(), *last.parameters()]
        optimizer = torch.optim.Adam(parameters, lr=1e-2)
        for _ in range(iterations):
            images = torch.randn(8, 3, 32, 32)
            wanted = nn.functional.avg_pool2d(images, 8)
            loss = (last(network(images)) - wanted).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def random_state(seed=0, touched=False):
    """Weights of an initialisation; ``touched``, with norms as after a step of a training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = EightConvs().state_dict()
        for value in state.values():
            if touched and value.dim() == 1:
                value += 1e-3 * torch.randn(value.shape)
    return state


def save(state, folder):
    """Write weights to a file of its own; gives its path."""
    folder = Path(folder)
    path = folder / f'network_{os.getpid()}_{len(list(folder.iterdir()))}.pth'
    torch.save(state, path)
    return str(path)


def own_teacher(**kwargs):
    """Config of the teacher."""
    return dict(type='TorchTeacher', factory='small_networks.eight_convs', kwargs=kwargs)
