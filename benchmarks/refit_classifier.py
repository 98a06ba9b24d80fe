#!/usr/bin/env python
"""Fit the classifier of trained students anew, and evaluate them with it.

Is a student bad because its features are, or because its classifier did not learn? For each training of
a segmentor, the features of its labelled images are kept as they are, and the weights of the last 1x1
convolution are fitted to the labels of these images: cross entropy, L-BFGS in float64, from zero, with
whitened features, so that their norm does not matter. The student is then evaluated with them.

    python benchmarks/refit_classifier.py work_dirs/evidence/pspnet-1000/{naive-w10,cad-w3}-seed0
"""

import argparse
import contextlib
import csv
import io
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

CLASSIFIER = 'decode_head.conv_seg'
FIELDS = ('training', 'as_trained', 'refitted', 'cross_entropy', 'feature_rms')


def collect(model, dataset, indices) -> tuple:
    """Run a segmentor in eval mode.

    Returns:
        tuple[Tensor, Tensor]: What its classifier gets, (N, C, h, w) in float64, and the labels,
        (N, H, W).
    """
    import torch
    from mmengine.dataset import pseudo_collate

    inputs, labels = [], []
    handle = model.get_submodule(CLASSIFIER).register_forward_pre_hook(
        lambda _, args: inputs.append(args[0].double())
    )
    try:
        with torch.no_grad():
            for index in indices:
                data = model.data_preprocessor(pseudo_collate([dataset[index]]), False)
                model(**data, mode='tensor')
                labels.append(data['data_samples'][0].gt_sem_seg.data)
    finally:
        handle.remove()
    return torch.cat(inputs), torch.cat(labels)


def fit(features, labels, classes: int, align_corners: bool, iterations: int) -> tuple:
    """Fit a classifier of positions.

    Args:
        features (Tensor): Shape (N, C, h, w).
        labels (Tensor): Shape (N, H, W); 255 is ignored.
        classes (int): How many.
        align_corners (bool): Of the resizing of scores to the size of labels.
        iterations (int): Of L-BFGS, at most.

    Returns:
        tuple[Tensor, Tensor, float]: Weight (classes, C), bias (classes,), and the cross entropy.
    """
    import torch
    import torch.nn.functional as F

    # Directions in which features hardly vary are as easy to use as all others.
    rows = features.movedim(1, -1).flatten(0, -2)
    values, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
    kept = values > 1e-12 * values[-1]
    whitening = (vectors[:, kept] / values[kept].sqrt()).T
    features = F.conv2d(features, whitening[..., None, None])
    weight = features.new_zeros(classes, features.shape[1], requires_grad=True)
    bias = features.new_zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=iterations, line_search_fn='strong_wolfe'
    )

    def closure():
        optimizer.zero_grad()
        scores = F.conv2d(features, weight[..., None, None], bias)
        scores = F.interpolate(
            scores, labels.shape[1:], mode='bilinear', align_corners=align_corners
        )
        loss = F.cross_entropy(scores, labels, ignore_index=255)
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.enable_grad():
        loss = closure().item()
    return weight.detach() @ whitening, bias.detach(), loss


def refit(folder: Path, iterations: int) -> dict:
    """Refit one training; gives a row of the CSV."""
    import torch
    from mmengine.registry import DATASETS

    from rawkd_mm.analysis.evaluation import evaluate
    from rawkd_mm.analysis.pictures import load_model
    from rawkd_mm.training import load_config, student_config

    (file,) = folder.glob('*.py')
    cfg = student_config(load_config(str(file)))
    checkpoint = str(folder / Path((folder / 'last_checkpoint').read_text().strip()).name)
    with contextlib.redirect_stdout(io.StringIO()):
        model = load_model(cfg, checkpoint)
    pipeline = cfg.val_dataloader.dataset.pipeline  # changes no image
    dataset = DATASETS.build(dict(cfg.train_dataloader.dataset, pipeline=pipeline))
    features, labels = collect(model, dataset, range(len(dataset)))
    head = model.decode_head
    weight, bias, loss = fit(features, labels, head.num_classes, head.align_corners, iterations)
    with torch.no_grad():
        head.conv_seg.weight.copy_(weight[..., None, None])
        head.conv_seg.bias.copy_(bias)
    before = evaluate(cfg, checkpoint, 'cpu', lambda *_: None).metrics['mIoU']
    with tempfile.TemporaryDirectory() as temporary:
        refitted = str(Path(temporary) / 'refitted.pth')
        torch.save(dict(state_dict=model.state_dict()), refitted)
        after = evaluate(cfg, refitted, 'cpu', lambda *_: None).metrics['mIoU']
    values = (folder.name, before, after, loss, features.square().mean().sqrt().item())
    return dict(zip(FIELDS, values))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('trainings', nargs='+', type=Path, metavar='FOLDER', help='of a training')
    parser.add_argument(
        '--iterations', type=int, default=500, metavar='N', help='of L-BFGS, at most (default: 500)'
    )
    parser.add_argument('--csv', type=Path, metavar='FILE', help='write the numbers there')
    args = parser.parse_args()
    rows = []
    print('| training | as trained | refitted | cross entropy | RMS of the feature |')
    print('|---|---|---|---|---|')
    for folder in args.trainings:
        if not (folder / 'last_checkpoint').is_file():
            sys.exit(f'refit_classifier.py: error: {folder} is no folder of a finished training')
        rows.append(row := refit(folder, args.iterations))
        values = (f'{row[name]:.2f}' for name in FIELDS[1:3])
        rest = (f'{row[name]:.4f}' for name in FIELDS[3:])
        print(f'| {row["training"]} | {" | ".join([*values, *rest])} |', flush=True)
    if args.csv:
        with args.csv.open('w', newline='', encoding='utf-8') as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows(rows)


if __name__ == '__main__':
    main()
