"""What a comparison of the student's features with the teacher's gives."""

from typing import NamedTuple

from torch import Tensor

__all__ = ['Comparison', 'PairFeatures']


class PairFeatures(NamedTuple):
    """The features of a pair in one forward.

    Attributes:
        student (Tensor): The student's, as its module gave it.
        aligned (Tensor): The same with the channels, height and width of the teacher's.
        teacher (Tensor): The teacher's, shape (B, C, H, W) of a map.
    """

    student: Tensor
    aligned: Tensor
    teacher: Tensor


class Comparison(NamedTuple):
    """The losses of a distillation in one iteration, and what was compared.

    Attributes:
        losses (dict[str, Tensor]): The losses by their log names, such as
            ``'loss_cad_decode_head.bottleneck'``.
        pairs (dict[str, PairFeatures]): The features of each pair, by the same names.
    """

    losses: dict[str, Tensor]
    pairs: dict[str, PairFeatures]

    def detach(self) -> 'Comparison':
        """Give the same values without gradient, so that they keep no graph."""
        return Comparison(
            {name: loss.detach() for name, loss in self.losses.items()},
            {name: PairFeatures(*(x.detach() for x in pair)) for name, pair in self.pairs.items()},
        )
