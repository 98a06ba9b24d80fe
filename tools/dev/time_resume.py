#!/usr/bin/env python
"""Time how long a training that resumes at a late iteration takes to begin.

Makes images of Cityscapes' size, trains one iteration of a model of one parameter on them, says in
its checkpoint that it is at --iteration, resumes from there and tells when the next iteration begins.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def make_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--iteration', type=int, default=10000, metavar='N', help='default: 10000')
    parser.add_argument('--batch-size', type=int, default=2, metavar='N', help='default: 2')
    parser.add_argument('--workers', type=int, default=2, metavar='N', help='default: 2')
    parser.add_argument('--images', type=int, default=20, metavar='N', help='default: 20')
    parser.add_argument(
        '--hook',
        default='ResumableCheckpointHook',
        help="or CheckpointHook, to time MMEngine's own way; default: ResumableCheckpointHook",
    )
    parser.add_argument(
        '--sampler',
        default='InfiniteSampler',
        help='or DefaultSampler, which ends after each pass; default: InfiniteSampler',
    )
    return parser.parse_args()


def main() -> None:
    args = make_arguments()

    import cv2
    import numpy as np
    import torch
    from mmengine.dataset import BaseDataset
    from mmengine.hooks import Hook
    from mmengine.model import BaseModel
    from mmengine.registry import DATASETS
    from mmengine.runner import Runner

    import rawkd_mm  # noqa: F401 (registers)

    class Model(BaseModel):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(()))

        def forward(self, inputs, data_samples, mode):
            return dict(loss=self.weight * inputs[0].float().mean())

    @DATASETS.register_module()
    class Images(BaseDataset):
        def load_data_list(self):
            return [
                dict(img_path=path, seg_map_path=path.replace('.jpg', '.png'), seg_fields=[])
                | dict(label_map=None, reduce_zero_label=False)
                for path in sorted(map(str, Path(self.data_root).glob('*.jpg')))
            ]

    class Clock(Hook):
        """Takes the time from the begin of the training to that of its first iteration."""

        def before_train(self, runner):
            self.begin = time.perf_counter()

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            self.seconds = time.perf_counter() - self.begin
            self.iteration = runner.iter

    with tempfile.TemporaryDirectory() as folder:
        random = np.random.default_rng(0)
        for i in range(args.images):
            # as hard to decode as photographs, roughly
            image = cv2.resize(random.integers(0, 256, (256, 512, 3), np.uint8), (2048, 1024))
            cv2.imwrite(f'{folder}/{i}.jpg', image)
            cv2.imwrite(f'{folder}/{i}.png', image[..., 0] // 16)

        def train(iterations, **kwargs):
            clock = Clock()
            runner = Runner(
                model=Model(),
                work_dir=f'{folder}/work_dir',
                train_cfg=dict(by_epoch=False, max_iters=iterations),
                train_dataloader=dict(
                    batch_size=args.batch_size,
                    num_workers=args.workers,
                    sampler=dict(type=args.sampler),
                    dataset=dict(
                        type='Images',
                        data_root=folder,
                        pipeline=[
                            dict(type='LoadImageFromFile'),
                            dict(type='LoadAnnotations'),
                            dict(
                                type='RandomResize',
                                scale=(2048, 1024),
                                ratio_range=(0.5, 2.0),
                                keep_ratio=True,
                            ),
                            dict(type='RandomCrop', crop_size=(512, 1024)),
                            dict(type='RandomFlip', prob=0.5),
                            dict(type='PhotoMetricDistortion'),
                            dict(type='PackSegInputs'),
                        ],
                    ),
                ),
                optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.0)),
                default_hooks=dict(checkpoint=dict(type=args.hook, by_epoch=False, interval=1)),
                custom_hooks=[clock],
                randomness=dict(seed=0),
                experiment_name=f'iteration{iterations}',
                log_level='ERROR',
                default_scope='mmseg',
                **kwargs,
            )
            runner.train()
            return clock

        first = train(1)
        path = f'{folder}/work_dir/iter_1.pth'
        checkpoint = torch.load(path, weights_only=False)
        checkpoint['meta']['iter'] = args.iteration
        torch.save(checkpoint, path)
        late = train(args.iteration + 1, resume=True)
    assert late.iteration == args.iteration
    print(
        f'{args.hook}, {args.sampler}, {args.workers} workers, {args.batch_size} images a batch: '
        f'iteration {args.iteration} begins {late.seconds:.1f} s after the training, '
        f'that of a new one {first.seconds:.1f} s'
    )


if __name__ == '__main__':
    main()
