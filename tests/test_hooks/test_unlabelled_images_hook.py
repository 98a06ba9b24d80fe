"""Images without labels beside labelled ones, in real trainings of small models."""

import copy
import itertools
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import (
    CLASSES,
    _counter,
    bitwise_equal,
    distill,
    feature_distiller,
    images,
    pair,
    preprocessor,
    pspnet,
    retinanet,
    samples,
    total,
)
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import DATASETS
from mmseg.models import SegDataPreProcessor
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch.utils.data import dataloader

from rawkd_mm.features import UnlabelledBatch
from rawkd_mm.hooks import UnlabelledImagesHook
from rawkd_mm.training import build_runner, student_config

NAME = 'loss_cad_decode_head.bottleneck'
ITERATIONS = 6


@DATASETS.register_module(force=True)
class Augmented(torch.utils.data.Dataset):
    """Image i without labels, with random numbers of three kinds added; the first pixel is i."""

    def __init__(self, length=20, size=32, offset=1000):
        self.length, self.size, self.offset = length, size, offset

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index + self.offset)
        image = torch.randint(0, 128, (3, self.size, self.size), generator=generator)
        image = image + 40 * (np.random.rand() + random.random() + torch.rand(3, 1, 1))
        image[:, 0, 0] = index
        shape = (self.size, self.size)
        sample = SegDataSample(metainfo=dict(img_shape=shape, ori_shape=shape))
        return dict(inputs=image.to(torch.uint8), data_samples=sample)


@MODELS.register_module(force=True)
class RandomPreProcessor(SegDataPreProcessor):
    """Dims the images of a batch by chance, as batch augmentations do."""

    def forward(self, data, training=False):
        data = super().forward(data, training)
        data['inputs'] = data['inputs'] * (0.5 + 0.5 * np.random.rand() * torch.rand(()))
        return data


class Record(Hook):
    """Keeps what the model was given in each iteration, and what it made of it."""

    priority = 'LOWEST'

    def __init__(self, kill_at=None):
        self.batches, self.losses = [], []
        self.kill_at = kill_at

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        model = getattr(runner.model, 'module', runner.model)
        batch = model.unlabelled
        self.batches.append(None if batch is None else batch.inputs.clone())
        if runner.iter + 1 == self.kill_at:
            raise Killed

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append({k: v.clone() for k, v in outputs.items() if 'loss' in k})


class Killed(Exception):
    """In place of the death of the process."""


@pytest.fixture(autouse=True)
def _workers(monkeypatch):
    """Ends the workers: those of a runner that is garbage have lost their queues and take 5 s each."""
    started = []

    class Iterator(dataloader._MultiProcessingDataLoaderIter):
        def __init__(self, loader):
            super().__init__(loader)
            started.append(self)

    monkeypatch.setattr(dataloader, '_MultiProcessingDataLoaderIter', Iterator)
    yield
    for iterator in started:
        iterator._shutdown_workers()


def model_config(weight=1.0, student=None, **kwargs):
    return dict(
        type='FrozenTeacherDistill',
        architecture=student or pspnet(),
        teacher=pspnet(8, 16),
        distiller=feature_distiller(loss=dict(type='CADLoss', loss_weight=weight)),
        allow_random_teacher=True,
        **kwargs,
    )


def dimming():
    """A model whose data_preprocessor draws random numbers."""
    return model_config(
        student=pspnet(data_preprocessor=dict(preprocessor(), type='RandomPreProcessor'))
    )


def hook_config(size=32, batch_size=3, num_workers=0, length=20, **kwargs):
    return dict(
        type='UnlabelledImagesHook',
        dataset=dict(type='Augmented', size=size, length=length),
        batch_size=batch_size,
        num_workers=num_workers,
        **kwargs,
    )


def config(folder, *hooks, model=None, epochs=0, accumulate=1, seed=0, **kwargs):
    """A training with the tools' Runner, whose checkpoints go on bit by bit."""
    schedule = (
        dict(type='EpochBasedTrainLoop', max_epochs=epochs)
        if epochs
        else dict(type='IterBasedTrainLoop', max_iters=ITERATIONS, val_interval=1000)
    )
    return Config(
        dict(
            model=model or model_config(),
            work_dir=str(folder),
            launcher=kwargs.pop('launcher', 'none'),
            train_cfg=schedule,
            train_dataloader=dict(
                batch_size=2,
                num_workers=0,
                sampler=dict(type='DefaultSampler' if epochs else 'InfiniteSampler', shuffle=True),
                dataset=kwargs.pop('dataset', dict(type='RandomScenes', length=6)),
            ),
            optim_wrapper=dict(
                optimizer=dict(type='SGD', lr=0.02, momentum=0.9), accumulative_counts=accumulate
            ),
            default_hooks=dict(
                checkpoint=dict(type='ResumableCheckpointHook', by_epoch=False, interval=2),
                logger=None,
            ),
            custom_hooks=list(hooks),
            default_scope='mmseg',
            experiment_name=f'unlabelled{next(_counter)}',
            randomness=dict(seed=seed),
            log_level='WARNING',
            **kwargs,
        )
    )


def train(folder, *hooks, kill_at=None, resume=False, watch=(), **kwargs):
    cfg = config(folder, *hooks, **kwargs)
    cfg.resume = resume
    runner = build_runner(cfg)
    record = Record(kill_at)
    for hook in (record, *watch):
        runner.register_hook(hook)
    if kill_at:
        with pytest.raises(Killed):
            runner.train()
    else:
        runner.train()
    return runner, record


# The losses of one iteration


def given(algorithm, unlabelled=True, keeps=False, size=32, count=3):
    torch.manual_seed(5)
    if unlabelled:
        algorithm.unlabelled = UnlabelledBatch(images(count, size, seed=9), None, keeps)
    return algorithm(images(), samples(), mode='loss')


@pytest.mark.parametrize('size', [32, 48])
def test_losses_are_the_means_over_all_images(size):
    """The reference runs each of the two batches alone, in models of their own."""
    labelled = given(distill(), unlabelled=False)
    alone = distill(calculate_student_loss=False)
    others = alone(images(3, size, seed=9), None, mode='loss')[f'distill.{NAME}']
    losses = given(distill(), size=size)
    own = [k for k in labelled if k.startswith('student')]
    assert set(losses) == {*labelled, f'distill_unlabelled.{NAME}'}
    assert all(torch.equal(losses[k], labelled[k]) for k in own), (
        'as without the others, bit by bit'
    )
    torch.testing.assert_close(losses[f'distill.{NAME}'], labelled[f'distill.{NAME}'] * 2 / 5)
    torch.testing.assert_close(losses[f'distill_unlabelled.{NAME}'], others * 3 / 5)


def test_distillation_of_all_is_that_of_one_batch():
    """With norms that take the batch's images one by one, all in one batch give the same loss."""
    head = dict(norm_cfg=dict(type='GN', num_groups=2))

    def model(**kwargs):
        student = pspnet()
        student['backbone']['norm_eval'] = True
        for part in ('decode_head', 'auxiliary_head'):
            student[part].update(head)
        return distill(student=student, **kwargs).train()  # which turns on norm_eval

    losses = given(model())
    both = torch.cat([images(), images(3, seed=9)])
    (expected,) = model(calculate_student_loss=False)(both, None, mode='loss').values()
    found = losses[f'distill.{NAME}'] + losses[f'distill_unlabelled.{NAME}']
    torch.testing.assert_close(found, expected)


def test_gradients_are_those_of_both_parts():
    both, first, second = distill(), distill(), distill(calculate_student_loss=False)
    total(given(both)).backward()
    losses = given(first, unlabelled=False)
    sum(
        v * (0.4 if k.startswith('distill') else 1) for k, v in losses.items() if 'loss' in k
    ).backward()
    (0.6 * total(second(images(3, seed=9), None, mode='loss'))).backward()
    for (name, a), b, c in zip(both.named_parameters(), first.parameters(), second.parameters()):
        expected = b.grad if c.grad is None else b.grad + c.grad
        torch.testing.assert_close(a.grad, expected, msg=lambda text, name=name: f'{name}: {text}')


def statistics(algorithm):
    names = ('running_mean', 'running_var', 'num_batches_tracked')
    return {k: v for k, v in algorithm.student.state_dict().items() if k.endswith(names)}


def test_statistics_of_norms():
    labelled, both, kept = distill(), distill(), distill()
    given(labelled, unlabelled=False)
    given(both)
    total(given(kept, keeps=True)).backward()
    assert bitwise_equal(statistics(kept), statistics(labelled))
    stem = 'backbone.stem.1.'
    assert statistics(both)[f'{stem}num_batches_tracked'] == 2
    assert statistics(kept)[f'{stem}num_batches_tracked'] == 1
    # by hand: the momentum is 0.1
    values = labelled.student.backbone.stem[0](images(3, seed=9))
    expected = 0.9 * statistics(labelled)[f'{stem}running_mean'] + 0.1 * values.mean((0, 2, 3))
    torch.testing.assert_close(statistics(both)[f'{stem}running_mean'], expected)


def test_gradients_do_not_depend_on_whose_statistics_are_kept():
    both, kept = distill(), distill()
    for algorithm, keeps in ((both, False), (kept, True)):
        total(given(algorithm, keeps=keeps)).backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(both.parameters(), kept.parameters()))


def test_random_numbers_are_those_without_the_others():
    states = []
    for unlabelled in (False, True):
        given(distill(pair('decode_head.dropout')), unlabelled=unlabelled)
        states.append((torch.rand(4), np.random.get_state()[1].tolist(), random.getstate()))
    assert torch.equal(states[0][0], states[1][0])
    assert states[0][1:] == states[1][1:]


def test_images_are_taken_once_and_hooks_see_the_labelled():
    algorithm = distill()
    given(algorithm)
    assert algorithm.unlabelled is None and 'unlabelled' not in vars(algorithm.student)
    (features,) = algorithm.distiller.last_comparison.pairs.values()
    assert len(features.student) == 2
    assert set(given(algorithm, unlabelled=False)) == {
        k for k in given(algorithm) if not k.startswith('distill_unlabelled')
    }
    algorithm.unlabelled = UnlabelledBatch(images(3))
    with pytest.raises(ValueError, match='the batch is empty'):
        algorithm(images(0), [], mode='loss')
    assert algorithm.unlabelled is None


def test_recorders_of_mmrazor_record_both():
    logits = dict(type='ModuleOutputs', source='decode_head.bottleneck')
    distiller = dict(
        type='mmrazor.ConfigurableDistiller',
        student_recorders=dict(f=logits),
        teacher_recorders=dict(f=logits),
        distill_losses=dict(loss=dict(type='CADLoss')),
        loss_forward_mappings=dict(
            loss=dict(
                student=dict(from_student=True, recorder='f'),
                teacher=dict(from_student=False, recorder='f'),
            )
        ),
    )
    import inspect

    from rawkd_mm.losses import CADLoss

    first, second = list(inspect.signature(CADLoss.forward).parameters)[1:3]
    mapping = distiller['loss_forward_mappings']['loss']
    distiller['loss_forward_mappings']['loss'] = dict(zip((first, second), mapping.values()))
    student = dict(student=pspnet(4, 16))
    losses = given(distill(distiller=distiller, **student))
    expected = given(distill(**student))
    for kind in ('distill', 'distill_unlabelled'):
        torch.testing.assert_close(losses[f'{kind}.loss'], expected[f'{kind}.{NAME}'])


# Trainings


def test_labelled_part_of_a_training_is_untouched(tmp_path):
    """With a distillation of weight 0 the student is the one of a training without these images."""
    model = model_config(weight=0.0)
    plain, _ = train(tmp_path / 'a', model=model)
    mixed, record = train(tmp_path / 'b', hook_config(norm='labelled'), model=model)
    assert all(batch is not None for batch in record.batches)
    assert bitwise_equal(plain.model.student.state_dict(), mixed.model.student.state_dict())


def test_labelled_part_without_a_resumable_hook(tmp_path):
    """Also where nothing seeds the iterations: MMEngine's own hooks, and no data workers."""
    model, states = model_config(weight=0.0), []
    for number, hooks in enumerate(((), (hook_config(norm='labelled'),))):
        cfg = config(tmp_path / str(number), *hooks, model=model)
        cfg.default_hooks.checkpoint = dict(type='CheckpointHook', by_epoch=False)
        runner = build_runner(cfg)
        runner.train()
        states.append(runner.model.student.state_dict())
    assert bitwise_equal(*states)


def test_order_and_augmentation_follow_from_seed_and_number(tmp_path):
    runs = [
        train(tmp_path / str(number), hook_config(num_workers=workers, **kwargs), seed=seed)
        for number, (workers, seed, kwargs) in enumerate(
            [(0, 0, {}), (2, 0, {}), (0, 1, {}), (0, 0, dict(length=6))]
        )
    ]
    batches = [torch.stack(record.batches) for _, record in runs]
    assert torch.equal(batches[0], batches[1]), 'whatever the number of workers'
    dimmed = [
        train(tmp_path / f'dimmed{workers}', hook_config(num_workers=workers), model=dimming())[1]
        for workers in (0, 2)
    ]
    for a, b in zip(dimmed[0].batches, dimmed[1].batches, strict=True):
        assert torch.equal(a, b), 'what the data_preprocessor draws'
    assert not torch.equal(batches[0], batches[2]), 'another seed'
    first = [round(float(x)) for x in raw(batches[0])]
    assert len(first) == 18 and len(set(first)) == 18, 'no image twice before each was seen once'


def raw(batches):
    """Which images batches have: the preprocessor's mean and standard deviation undone."""
    return batches[:, :, 0, 0, 0].flatten() * 2 + 1


def test_the_same_images_come_in_another_order_than_the_labelled(tmp_path):
    """Of a data set that both loaders have, an iteration does not see the same images twice."""
    labelled = []

    class Watch(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            labelled.append([round(float(x[0, 0, 0])) for x in data_batch['inputs']])

    class Both(Augmented):
        def __getitem__(self, index):
            item = super().__getitem__(index)
            item['data_samples'].gt_sem_seg = samples(1, self.size, seed=index)[0].gt_sem_seg
            return item

    DATASETS.register_module(module=Both, force=True)
    dataset = dict(type='Both', length=20)
    hook = hook_config(batch_size=2)
    _, record = train(tmp_path, hook, watch=[Watch()], dataset=dataset)
    others = [[round(float(x)) for x in raw(batch[None])] for batch in record.batches]
    assert len(labelled) == len(others) == ITERATIONS
    assert sum(sorted(a) == sorted(b) for a, b in zip(labelled, others)) <= 1


@pytest.mark.parametrize(
    ('kwargs', 'hook'),
    [
        pytest.param({}, {}, id='iterations'),
        pytest.param({}, dict(num_workers=2), id='workers'),
        pytest.param(dict(epochs=2), dict(norm='labelled', size=48), id='epochs and another size'),
        pytest.param(dict(accumulate=2), {}, id='accumulation'),
        pytest.param(
            dict(model=dimming()),
            {},
            id='random data_preprocessor',
        ),
    ],
)
def test_resumed_training_is_the_uninterrupted_one(tmp_path, kwargs, hook):
    whole, record = train(tmp_path / 'whole', hook_config(**hook), **kwargs)
    train(tmp_path / 'killed', hook_config(**hook), kill_at=4, **kwargs)
    resumed, rest = train(tmp_path / 'killed', hook_config(**hook), resume=True, **kwargs)
    assert whole.iter == resumed.iter == ITERATIONS
    assert all(torch.equal(a, b) for a, b in zip(rest.batches, record.batches[2:], strict=True))
    assert bitwise_equal(whole.model.state_dict(), resumed.model.state_dict())
    for a, b in zip(rest.losses, record.losses[2:], strict=True):
        assert bitwise_equal(a, b)
    assert f'distill_unlabelled.{NAME}' in a


def test_accumulated_gradients_have_both_parts(tmp_path):
    """Each of the iterations that are accumulated has images of its own."""
    runner, record = train(tmp_path, hook_config(), accumulate=2)
    assert len(record.batches) == ITERATIONS
    assert len({float(batch.sum()) for batch in record.batches}) == ITERATIONS


def test_stopped_distillation_loads_no_more(tmp_path):
    stop = dict(type='mmrazor.StopDistillHook', stop_iter=3)
    for order in itertools.permutations([hook_config(num_workers=1), stop]):
        _, record = train(tmp_path / str(order[0]['type'])[:5], *copy.deepcopy(order))
        assert [batch is not None for batch in record.batches] == [True] * 3 + [False] * 3
        names = [set(losses) for losses in record.losses]
        assert f'distill_unlabelled.{NAME}' in names[2]
        assert not any(name.startswith('distill_unl') for name in names[3])


def test_student_alone_leaves_the_hook_out(tmp_path):
    cfg = config(tmp_path, hook_config())
    assert cfg.custom_hooks
    assert not student_config(cfg).get('custom_hooks')


def test_ema_copies_the_model(tmp_path):
    runner, _ = train(tmp_path, hook_config(), dict(type='EMAHook'))
    assert runner.iter == ITERATIONS


def test_amp_runs_both_parts(tmp_path):
    cfg = config(tmp_path, hook_config(size=48))
    cfg.optim_wrapper.type = 'Bf16OptimWrapper'
    runner = build_runner(cfg)
    record = Record()
    runner.register_hook(record)
    runner.train()
    assert all(v.isfinite() for losses in record.losses for v in losses.values())


@DATASETS.register_module(force=True)
class Boxed(torch.utils.data.Dataset):
    """Images of two boxes each, as PackDetInputs gives them, or without."""

    metainfo = dict(classes=tuple('abcde'))

    def __init__(self, length=6, size=64, is_labelled=True):
        self.length, self.size, self.is_labelled = length, size, is_labelled

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        from mmdet.structures import DetDataSample
        from mmengine.structures import InstanceData

        generator = torch.Generator().manual_seed(index)
        shape = (self.size, self.size)
        image = torch.randint(0, 256, (3, *shape), generator=generator).to(torch.uint8)
        meta = dict(img_shape=shape, ori_shape=shape, scale_factor=(1.0, 1.0))
        sample = DetDataSample(metainfo=meta)
        sample.gt_instances = InstanceData()
        if self.is_labelled:
            sample.gt_instances.bboxes = torch.tensor([[4.0, 4, 30, 30], [20, 10, 60, 50]])
            sample.gt_instances.labels = torch.tensor([index % 5, 1])
        return dict(inputs=image, data_samples=sample)


def test_detector(tmp_path, mmdet):
    """Boxes of labelled images, none of the others, which have another size."""
    statistics = dict(mean=[127.0] * 3, std=[70.0] * 3, pad_size_divisor=32)
    normalise = dict(type='DetDataPreprocessor', **statistics)
    model = dict(
        type='FrozenTeacherDistill',
        architecture=retinanet(data_preprocessor=normalise),
        teacher=retinanet(width=16, data_preprocessor=normalise),
        distiller=feature_distiller(pair('neck[0]'), loss=dict(type='LADLoss')),
        allow_random_teacher=True,
    )
    hook = hook_config()
    hook['dataset'] = dict(type='Boxed', size=96, is_labelled=False)
    kwargs = dict(model=model, dataset=dict(type='Boxed'))
    whole, record = train(tmp_path / 'mixed', hook, **kwargs)
    assert record.batches[0].shape == (3, 3, 96, 96)
    name = 'loss_lad_neck.0'
    assert {f'distill.{name}', f'distill_unlabelled.{name}', 'student.loss_bbox'} <= {
        *record.losses[0]
    }
    _, plain = train(tmp_path / 'plain', **kwargs)
    first, expected = record.losses[0], plain.losses[0]
    assert all(torch.equal(first[k], expected[k]) for k in expected if k.startswith('student'))
    torch.testing.assert_close(first[f'distill.{name}'], expected[f'distill.{name}'] * 2 / 5)
    train(tmp_path / 'killed', hook, kill_at=4, **kwargs)
    resumed, _ = train(tmp_path / 'killed', hook, resume=True, **kwargs)
    assert bitwise_equal(whole.model.state_dict(), resumed.model.state_dict())


# Two processes


def main(folder):
    """Train in each of two processes; a test compares what they found."""
    from rawkd_mm.training import leave_processes

    rank = int(os.environ['RANK'])
    student = _without_sync(pspnet(classes=CLASSES))
    runner, record = train(
        Path(folder) / 'run', hook_config(), model=model_config(student=student), launcher='pytorch'
    )
    found = dict(
        batches=record.batches, losses=record.losses, state=runner.model.module.state_dict(),
        wrapper=type(runner.model).__name__,
    )  # fmt: skip
    torch.save(found, Path(folder) / f'rank{rank}.pth')
    leave_processes()


def _without_sync(value):
    if isinstance(value, dict):
        return type(value)((k, _without_sync(v)) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return type(value)(_without_sync(v) for v in value)
    return 'BN' if value == 'SyncBN' else value


def test_two_processes(run_processes, tmp_path):
    """Each has its share, in the order that one process has; the weights stay the same in both."""
    ranks = run_processes(Path(__file__), 2)
    assert {rank['wrapper'] for rank in ranks} == {'MMDistributedDataParallel'}
    weights = [{k: v for k, v in r['state'].items() if 'running' not in k} for r in ranks]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    numbers = [[round(float(x)) for x in raw(torch.stack(rank['batches']))] for rank in ranks]
    _, record = train(tmp_path, hook_config(batch_size=6))
    whole = [round(float(x)) for x in raw(torch.stack(record.batches))]
    assert [x for both in zip(*numbers) for x in both] == whole
    assert not torch.equal(ranks[0]['batches'][0], ranks[1]['batches'][0])


# Bad input; rows of tests/bad_input/README.md


def test_plain_model_is_refused(tmp_path):
    with pytest.raises(TypeError) as error:
        train(tmp_path, hook_config(), model=pspnet())
    for part in ('EncoderDecoder', 'distillation alone', 'leave out the hook'):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ('kwargs', 'parts'),
    [
        pytest.param(dict(batch_size=0), ['batch_size', 'from 1 on', '0'], id='batch_size'),
        pytest.param(dict(num_workers=-1), ['num_workers', '-1'], id='num_workers'),
        pytest.param(dict(norm='none'), ["norm='none'", "'both' or 'labelled'"], id='norm'),
    ],
)
def test_bad_argument(kwargs, parts):
    given = {k: v for k, v in hook_config().items() if k != 'type'}
    with pytest.raises(ValueError) as error:
        UnlabelledImagesHook(**{**given, **kwargs})
    for part in parts:
        assert part in str(error.value)


def test_data_set_without_images(tmp_path):
    with pytest.raises(ValueError, match='the data set Augmented has no images'):
        train(tmp_path, hook_config(length=0))


def test_deliveries_need_labels(tmp_path):
    deliveries = dict(out=dict(type='FunctionOutputs', max_keep_data=1, func_path='torch.relu'))
    model = model_config()
    model['distiller']['distill_deliveries'] = deliveries
    with pytest.raises(ValueError, match='deliveries'):
        train(tmp_path, hook_config(), model=model)


def test_loss_that_needs_labels_stops_before_the_first_iteration(tmp_path, mmdet):
    model = dict(
        type='FrozenTeacherDistill',
        architecture=retinanet(),
        teacher=retinanet(width=16),
        distiller=feature_distiller(pair('neck[0]'), loss=dict(type='FGDLoss')),
        allow_random_teacher=True,
    )
    with pytest.raises(ValueError, match=r'loss_fgd_neck\S* FGDLoss needs the labels'):
        train(tmp_path, hook_config(), model=model)


if __name__ == '__main__':
    import sys

    main(sys.argv[1])
