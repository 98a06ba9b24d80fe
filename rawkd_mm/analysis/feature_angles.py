"""The angle between student and teacher feature at each position, with and without distillation.

The angle at a position is that between the two vectors of C values there, in degrees. A feature of
the teacher can only be compared with one of as many channels. Where the student has another number,
the distilled one has learnt a connector, and one trained alone has none, so that both are compared
through the same kind of map: the 1x1 convolution (with bias) that brings the student's feature
closest to the teacher's, by least squares over validation images that are not among those shown. It
tells how much of the teacher's feature can be read off the student's, position by position. Where the
numbers are the same the features are compared as they are, as the loss does.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

FIT_IMAGES = 16
ALONE, DISTILLED, CONNECTOR = 'student alone', 'distilled', 'distilled, own connector'


class PairAngles(NamedTuple):
    """Angles of one pair of features.

    Attributes:
        pair: Its name.
        fitted_on: Number of images that the least squares map is fitted on; 0 without one.
        maps: ALONE, DISTILLED and CONNECTOR to one map for each image, in degrees, shape (H, W);
            what is not there is left out.
    """

    pair: str
    fitted_on: int
    maps: dict[str, list[np.ndarray]]

    def mean(self, kind: str) -> float:
        """Mean over the positions of all shown images, in degrees."""
        return float(np.mean(np.concatenate([angles.ravel() for angles in self.maps[kind]])))


def angle_map(student, teacher) -> np.ndarray:
    """Compute the angle between two features at each position.

    Args:
        student (Tensor): Shape (1, C, H, W).
        teacher (Tensor): The same shape.

    Returns:
        np.ndarray: Degrees, shape (H, W).
    """
    import torch

    cosine = torch.cosine_similarity(student.double(), teacher.double(), dim=1)[0]
    return torch.rad2deg(torch.acos(cosine.clamp(-1, 1))).cpu().numpy()


class LeastSquaresMap:
    """The 1x1 convolution with bias that maps features closest to others, by least squares."""

    def __init__(self) -> None:
        self._gram = self._cross = 0

    def add(self, inputs, targets) -> None:
        """Add features of shape (1, C, H, W) and (1, D, H, W)."""
        rows, wanted = _rows(inputs), targets[0].double().flatten(1).T
        self._gram = self._gram + rows.T @ rows
        self._cross = self._cross + rows.T @ wanted

    def fit(self) -> None:
        """Solve the normal equations; those of fewer positions than channels too."""
        import torch

        self._weight = torch.linalg.pinv(self._gram, hermitian=True) @ self._cross

    def __call__(self, inputs):
        """Map a feature of shape (1, C, H, W) to (1, D, H, W)."""
        mapped = _rows(inputs) @ self._weight
        return mapped.T.reshape(1, -1, *inputs.shape[2:])


def _rows(feature):
    """(1, C, H, W) -> (H * W, C + 1), with ones for the bias."""
    import torch

    rows = feature[0].double().flatten(1).T
    return torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)


def measure_angles(
    algorithm,
    checkpoints: dict[str, dict],
    dataset,
    shown: Sequence[int],
    advance: Callable[[int, int], None],
) -> list[PairAngles]:
    """Compare the features of students with the teacher's.

    Args:
        algorithm (FrozenTeacherDistill): With the teacher's weights, in eval mode.
        checkpoints (dict): DISTILLED and, if there is one, ALONE to a checkpoint, as loaded.
        dataset: Of validation images.
        shown (Sequence[int]): Indices of the images to show.
        advance (Callable): Called with the number of images done, and of all.

    Returns:
        list[PairAngles]: For each pair of feature maps; pairs of other features are left out.
    """
    from ..training import load_all_weights

    fit = _images_to_fit(len(dataset), shown)
    connectors = algorithm.distiller.connectors
    mapped = {p.name for p in algorithm.distiller.pairs if p.key in connectors}
    fit = fit if mapped else []
    done, total = 0, len(checkpoints) * (len(fit) + len(shown))
    maps: dict[str, dict[str, list]] = {}
    for kind, checkpoint in checkpoints.items():
        if kind == DISTILLED:  # with its connectors
            load_all_weights(algorithm, checkpoint)
        else:
            load_all_weights(algorithm.student, checkpoint)
        solutions = {name: LeastSquaresMap() for name in mapped}
        for number, index in enumerate([*fit, *shown]):
            if number == len(fit):
                for solution in solutions.values():
                    solution.fit()
            for name, (raw, aligned, teacher) in _features(algorithm, dataset[index]).items():
                if teacher.dim() != 4 or raw.dim() != 4:
                    solutions.pop(name, None)
                    continue
                if name in solutions:
                    raw = _resize(raw, teacher)
                    if number < len(fit):
                        solutions[name].add(raw, teacher)
                        continue
                elif number < len(fit):
                    continue
                entry = maps.setdefault(name, {})
                student = solutions[name](raw) if name in solutions else aligned
                entry.setdefault(kind, []).append(angle_map(student, teacher))
                if kind == DISTILLED and name in solutions:
                    entry.setdefault(CONNECTOR, []).append(angle_map(aligned, teacher))
            done += 1
            advance(done, total)
    return [PairAngles(name, len(fit) * (name in mapped), entry) for name, entry in maps.items()]


def _images_to_fit(length: int, shown: Sequence[int]) -> list[int]:
    """Choose images evenly, not those that are shown; those if there are no others."""
    others = [i for i in range(length) if i not in set(shown)] or list(shown)
    count = min(FIT_IMAGES, len(others))
    return [others[i * len(others) // count] for i in range(count)]


def _features(algorithm, item: dict) -> dict:
    from mmengine.dataset import pseudo_collate

    data = algorithm.data_preprocessor(pseudo_collate([item]), False)
    return algorithm.extract_features(data['inputs'], data['data_samples'])


def _resize(feature, like):
    import torch.nn.functional as F

    if feature.shape[2:] == like.shape[2:]:
        return feature
    return F.interpolate(feature, size=like.shape[2:], mode='bilinear', align_corners=False)
