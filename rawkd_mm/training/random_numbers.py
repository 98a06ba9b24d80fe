"""Random numbers of a block that leave those outside of it as they were."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ['separate_random_numbers']


@contextmanager
def separate_random_numbers(
    number: int = 0, device: torch.device | str | None = None
) -> Iterator[None]:
    """Seed random numbers for a block, and restore the outer state at its end.

    What a distillation draws (the weights of a teacher and of connectors, the masks of a loss) must
    not shift what the student draws: with one seed, a student trained alone and a distilled one begin
    with the same weights and drop the same units. The numbers in the block follow from the state
    outside and from ``number``, so that a seeded training repeats them.

    Args:
        number (int): Tells apart blocks that begin with the same state outside, such as the
            iterations of a training that draws nothing else. Defaults to 0.
        device (torch.device | str, optional): A CUDA device whose state is kept as well as the
            CPU's. Defaults to None.
    """
    is_cuda = device is not None and torch.device(device).type == 'cuda'
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices=[device] if is_cuda else []):
            drawn = int(torch.randint(2**31, (), device='cpu'))
            words = np.random.SeedSequence((drawn, number)).generate_state(4)
            random.seed(words.tobytes())
            np.random.seed(words)
            torch.default_generator.manual_seed(int(words[0]))
            if is_cuda:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(int(words[0]))
            yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
