"""MMRazor's own hooks, loops and other parts around a distillation: they work, or are refused.

docs/mmrazor.md has the table of all of them, which is held to what MMRazor registers.
"""

import copy
import importlib
import re
from pathlib import Path

import mmengine.registry
import numpy as np
import pytest
import torch
from helpers import (
    BOTTLENECK,
    bitwise_equal,
    build,
    count_runs,
    distill,
    feature_distiller,
    images,
    preprocessor,
    pspnet,
    run,
    samples,
    teachers,
    total,
    train_statistics,
    validation,
)
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from PIL import Image

from rawkd_mm.hooks import StopDistillHook, WrongTeacherError
from rawkd_mm.loops import SingleTeacherDistillValLoop
from rawkd_mm.training import build_runner
from rawkd_mm.training.mmrazor_parts import REFUSED, refuse_mmrazor_parts

ROOT = Path(__file__).parents[2]
REGISTRIES = ('HOOKS', 'LOOPS', 'OPTIM_WRAPPER_CONSTRUCTORS', 'MODEL_WRAPPERS', 'MODELS')
OTHER_IMAGES = preprocessor(mean=[100.0] * 3, std=[50.0] * 3, bgr_to_rgb=False)


# The table


def registered():
    """What MMRazor registers that a config can put around a model, by name, and our own in its place."""
    razor = importlib.import_module('mmrazor.registry')
    for name in ('hook', 'algorithm'):
        importlib.import_module(f'mmrazor.implementations.pruning.group_fisher.{name}')
    found = {}
    for registry in REGISTRIES:
        for where in (getattr(razor, registry), getattr(mmengine.registry, registry)):
            for name, kind in where.module_dict.items():
                above = getattr(kind, '__mro__', ())  # some are functions
                theirs = any(k.__module__.startswith('mmrazor.') for k in above)
                is_distiller = any('.distillers.' in k.__module__ for k in above)
                if theirs and (registry != 'MODELS' or is_distiller):
                    found[name] = kind
    # new ones of ours that stand in nobody's place
    return {n: k for n, k in found.items() if n not in ('FeatureDistiller',)}


def table():
    text = (ROOT / 'docs/mmrazor.md').read_text()
    return dict(re.findall(r'^\| `(\w+)` \| (works|works, ours|refused) \|', text, re.MULTILINE))


def test_table_has_every_part_of_mmrazor():
    parts = registered()
    assert set(table()) == set(parts)
    for name, verdict in table().items():
        is_ours = parts[name].__module__.startswith('rawkd_mm.')
        assert verdict == ('refused' if name in REFUSED else 'works, ours' if is_ours else 'works')


# Refused


def config(tmp_path, **kwargs):
    """Config of a short distillation on four real images."""
    generator = np.random.default_rng(0)
    for folder, shape, high in (('img', (32, 32, 3), 256), ('ann', (32, 32), 5)):
        (tmp_path / folder).mkdir(exist_ok=True)
        for i in range(4):
            values = generator.integers(0, high, shape).astype(np.uint8)
            Image.fromarray(values).save(tmp_path / folder / f'{i}.png')
    load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
    dataset = dict(
        type='BaseSegDataset',
        data_root=str(tmp_path),
        data_prefix=dict(img_path='img', seg_map_path='ann'),
        img_suffix='.png',
        seg_map_suffix='.png',
        metainfo=dict(classes=tuple('abcde'), palette=[[i] * 3 for i in range(5)]),
        pipeline=[*load, dict(type='PackSegInputs')],
    )
    loader = dict(
        batch_size=2,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dataset,
    )
    evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
    base = dict(
        model=dict(
            type='FrozenTeacherDistill',
            architecture=pspnet(),
            teacher=pspnet(8, 16),
            distiller=feature_distiller(),
            allow_random_teacher=True,
        ),
        work_dir=str(tmp_path / 'work'),
        train_cfg=dict(by_epoch=True, max_epochs=2, val_interval=1),
        train_dataloader=loader,
        val_dataloader=loader,
        val_evaluator=evaluator,
        val_cfg=dict(type='ValLoop'),
        test_dataloader=loader,
        test_evaluator=evaluator,
        test_cfg=dict(type='TestLoop'),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
        default_hooks=dict(checkpoint=None),
        default_scope='mmseg',
        visualizer=dict(type='SegLocalVisualizer', vis_backends=[], name=str(tmp_path)),
        experiment_name=str(tmp_path),
        randomness=dict(seed=0),
        log_level='WARNING',
    )
    return Config({**base, **kwargs})


def around(tmp_path, name, spelled):
    """A config with a refused part where such a part stands, and what the error calls the place."""
    kind = registered()[name]
    part = dict(
        scope=dict(type=f'mmrazor.{name}'),
        below=dict(_scope_='mmrazor', type=name),
        kind=dict(type=kind),
    )[spelled]
    if name.endswith('Hook'):
        return config(tmp_path, custom_hooks=[dict(type='EMAHook'), part]), r'custom_hooks\[1\]'
    if name.endswith('ValLoop'):
        return config(tmp_path, val_cfg=part), 'val_cfg'
    if name.endswith('Loop'):
        return config(tmp_path, train_cfg=part), 'train_cfg'
    if name.endswith('Constructor'):
        wrapper = dict(constructor=part['type'], optimizer=dict(type='SGD', lr=0.01))
        return config(tmp_path, optim_wrapper=wrapper), 'optim_wrapper.constructor'
    if name.endswith('DDP'):
        return config(tmp_path, model_wrapper_cfg=part), 'model_wrapper_cfg'
    made = config(tmp_path)
    made.model.distiller = part
    return made, 'model.distiller'


@pytest.mark.parametrize('name', sorted(REFUSED))
def test_refused_when_the_training_is_built(tmp_path, name):
    """Before anything else: no work dir, no model."""
    made, where = around(tmp_path, name, 'scope')
    pattern = rf"^{where}: MMRazor's {name} does not work with FrozenTeacherDistill\. \w.*\.$"
    with pytest.raises(ValueError, match=pattern):
        build_runner(made)
    assert not (tmp_path / 'work').exists()


@pytest.mark.parametrize('spelled', ['below', 'kind'])
@pytest.mark.parametrize('name', ['DumpSubnetHook', 'SubnetValLoop', 'OFDDistiller'])
def test_refused_however_it_is_spelled(tmp_path, name, spelled):
    """Also among the default hooks."""
    made, where = around(tmp_path, name, spelled)
    with pytest.raises(ValueError, match=f"{where}: MMRazor's {name} does not work"):
        refuse_mmrazor_parts(made)
    if name.endswith('Hook'):
        made = config(tmp_path, default_hooks=dict(subnets=made.custom_hooks[1]))
        with pytest.raises(ValueError, match="default_hooks.subnets: MMRazor's DumpSubnetHook"):
            refuse_mmrazor_parts(made)


@HOOKS.register_module(name='ResourceInfoHook', force=True)
class _ResourceInfoHook(Hook):
    """A user's own hook that has the name of one of MMRazor's."""


def test_what_is_not_refused(tmp_path):
    """A user's own hook of the same name, MMRazor's own algorithm, a student alone."""
    refuse_mmrazor_parts(config(tmp_path, custom_hooks=[dict(type='ResourceInfoHook')]))
    made, _ = around(tmp_path, 'DumpSubnetHook', 'scope')
    made.model.type = 'mmrazor.SingleTeacherDistill'
    refuse_mmrazor_parts(made)
    made.model = pspnet()
    refuse_mmrazor_parts(made)


# SingleTeacherDistillValLoop


RAZORS_LOOP = SingleTeacherDistillValLoop.__mro__[1]


def validated(tmp_path, algorithm, loop='mmrazor.SingleTeacherDistillValLoop', hooks=(), **kwargs):
    """Train for an iteration, then validate; gives the runner and the metrics."""
    arguments = validation(**kwargs)
    arguments['val_cfg'] = dict(type=loop)
    runner = run(algorithm, tmp_path, iters=1, hooks=hooks, **arguments)
    seen = []

    class Metrics(Hook):
        def after_val_epoch(self, runner, metrics=None):
            seen.append(dict(metrics))

    runner.register_hook(Metrics())
    runner.val_loop.run()
    assert len(seen) == 1
    return runner, seen[0]


def other_student(**kwargs):
    """A distillation whose student's images are made otherwise than its teacher's."""
    return distill(student=pspnet(data_preprocessor=OTHER_IMAGES), **kwargs)


def test_teachers_accuracy_is_its_own(tmp_path):
    """The labels are what the teacher says of its own images, so that it has 100 (mmrazor#360)."""
    path, _ = teachers(tmp_path)
    algorithm = other_student(teacher_ckpt=path)
    own = algorithm.teacher.data_preprocessor
    _, metrics = validated(tmp_path / 'ours', algorithm)
    assert metrics['teacher.mIoU'] == 100.0
    assert metrics['mIoU'] < 90
    assert algorithm.teacher.data_preprocessor is own, 'the teacher is not changed'
    # MMRazor's own loop, without a word; else this shows nothing
    _, wrong = validated(tmp_path / 'theirs', other_student(teacher_ckpt=path), RAZORS_LOOP)
    assert wrong['teacher.mIoU'] < 90
    assert wrong['mIoU'] == metrics['mIoU'], "the student's is the same"


def test_teacher_computes_in_its_own_precision(tmp_path):
    """bfloat16 where the config says so, and the accuracy hardly differs."""
    path, _ = teachers(tmp_path)
    algorithm = other_student(teacher_ckpt=path, teacher_precision='bf16')
    types = set()
    algorithm.teacher.decode_head.conv_seg.register_forward_hook(
        lambda module, inputs, output: types.add(output.dtype)
    )
    _, metrics = validated(tmp_path, algorithm)
    assert types == {torch.bfloat16}
    assert metrics['teacher.mIoU'] > 95


class Counting(Hook):
    """How often the hooks of a validation are called."""

    def __init__(self):
        self.calls = []

    def before_val_epoch(self, runner):
        self.calls.append('epoch')

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.calls.append(batch_idx)


def test_hooks_see_one_validation_of_the_student(tmp_path):
    """MMRazor's calls before_val_epoch twice, and shows the teacher's predictions as outputs."""
    path, _ = teachers(tmp_path)
    runner, _ = validated(tmp_path, other_student(teacher_ckpt=path), length=3)
    counting = Counting()
    runner.register_hook(counting)
    runner.val_loop.run()
    assert counting.calls == ['epoch', 0, 1, 2]


def test_ema_is_swapped_back(tmp_path):
    """After the validation the student has its own weights, not their average."""
    path, _ = teachers(tmp_path)
    algorithm = other_student(teacher_ckpt=path)
    ema = dict(type='EMAHook', momentum=0.5)
    arguments = validation()
    arguments['val_cfg'] = dict(type='mmrazor.SingleTeacherDistillValLoop')
    runner = run(algorithm, tmp_path, iters=2, hooks=[ema], **arguments)
    before = copy.deepcopy(algorithm.state_dict())
    runner.val_loop.run()
    assert bitwise_equal(algorithm.state_dict(), before)


def test_random_numbers_are_those_without_the_teacher(tmp_path):
    path, _ = teachers(tmp_path)
    states = []
    for loop in ('ValLoop', 'mmrazor.SingleTeacherDistillValLoop'):
        torch.manual_seed(0)
        validated(tmp_path / loop, other_student(teacher_ckpt=path), loop)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_teacher_that_cannot_be_evaluated_is_refused(tmp_path):
    """When the loop is built, before the first iteration: random parts, other classes."""
    path, _ = teachers(tmp_path)
    checkpoint = torch.load(path)
    head = [n for n in checkpoint['state_dict'] if n.startswith('decode_head.conv_seg')]
    for name in head:
        del checkpoint['state_dict'][name]
    torch.save(checkpoint, tmp_path / 'headless.pth')
    headless = distill(teacher_ckpt=str(tmp_path / 'headless.pth'))
    ran = count_runs(headless.student)
    with pytest.raises(WrongTeacherError) as error:
        validated(tmp_path / 'a', headless)
    assert str(error.value).startswith('SingleTeacherDistillValLoop: 2 parameters of the teacher')
    assert "or validate with 'ValLoop'." in str(error.value)
    with pytest.raises(WrongTeacherError, match='has 5 classes, the validation set 3'):
        validated(tmp_path / 'b', distill(teacher_ckpt=path), classes='abc')
    assert not ran


def test_imports_from_mmrazor_give_ours():
    for module in ('mmrazor.engine', 'mmrazor.engine.runner'):
        found = importlib.import_module(module).SingleTeacherDistillValLoop
        assert found is SingleTeacherDistillValLoop
    for module in ('mmrazor.engine', 'mmrazor.engine.hooks'):
        assert importlib.import_module(module).StopDistillHook is StopDistillHook


def test_mmrazors_own_algorithm_is_validated_as_before(tmp_path):
    found = []
    for name, loop in (('a', 'mmrazor.SingleTeacherDistillValLoop'), ('b', RAZORS_LOOP)):
        torch.manual_seed(0)
        algorithm = build(
            dict(
                type='mmrazor.SingleTeacherDistill',
                architecture=pspnet(),
                teacher=pspnet(8, 16),
                distiller=dict(_scope_='mmrazor', **feature_distiller()),
            )
        )
        train_statistics(algorithm.teacher, seed=21)
        found.append(validated(tmp_path / name, algorithm, loop)[1])
    assert found[0] == found[1] and 'teacher.mIoU' in found[0]


def test_student_alone_by_self_distill_val_loop(tmp_path):
    """MMRazor's other loop: the student's metrics under another name."""
    path, _ = teachers(tmp_path)
    found = [
        validated(tmp_path / loop, other_student(teacher_ckpt=path), loop)[1]
        for loop in ('ValLoop', 'mmrazor.SelfDistillValLoop')
    ]
    assert found[1] == {f'student.{name}': value for name, value in found[0].items()}


# StopDistillHook


def test_stops_in_an_epoch(tmp_path):
    """Two of three epochs of 4 iterations have a teacher."""
    algorithm = distill()
    runs = count_runs(algorithm.teacher)
    hook = dict(type='mmrazor.StopDistillHook', stop_epoch=2)
    run(algorithm, tmp_path, epochs=3, length=8, hooks=[hook])
    assert len(runs) == 8 and algorithm.distillation_stopped


def test_stops_in_an_iteration(tmp_path):
    """Trainings that count iterations, as all of MMSegmentation's do."""
    algorithm = distill()
    runs = count_runs(algorithm.teacher)
    run(algorithm, tmp_path, iters=5, hooks=[dict(type='mmrazor.StopDistillHook', stop_iter=3)])
    assert len(runs) == 3 and algorithm.distillation_stopped


def test_epoch_of_a_training_that_counts_iterations_is_refused(tmp_path):
    """It is one epoch to MMEngine, so that MMRazor's hook would never stop it, without a word."""
    algorithm = distill()
    ran = count_runs(algorithm.student)
    with pytest.raises(
        ValueError, match=r'would never stop .*Use StopDistillHook\(stop_iter=...\)'
    ):
        run(algorithm, tmp_path, hooks=[dict(type='mmrazor.StopDistillHook', stop_epoch=1)])
    assert not ran


def test_student_without_a_teacher_is_refused(tmp_path):
    student = distill().student
    ran = count_runs(student)
    with pytest.raises(TypeError, match='StopDistillHook needs a distillation, got EncoderDecoder'):
        run(student, tmp_path, hooks=[dict(type='mmrazor.StopDistillHook', stop_iter=1)])
    assert not ran


@pytest.mark.parametrize('given', [{}, dict(stop_epoch=1, stop_iter=3), dict(stop_iter=-1)])
def test_when_to_stop_must_be_clear(given):
    with pytest.raises(ValueError, match='either stop_epoch or stop_iter, not negative, got'):
        StopDistillHook(**given)


# Other hooks


def pictures(tmp_path, *sources):
    """RazorVisualizationHook of modules, each of which gives one map."""
    recorders = {s: dict(_scope_='mmrazor', type='ModuleOutputs', source=s) for s in sources}
    return dict(
        type='mmrazor.RazorVisualizationHook',
        enabled=True,
        recorders=recorders,
        mappings={s.replace('.', '_'): dict(recorder=s) for s in sources},
        out_dir='pictures',
    )


def trained(tmp_path, *hooks):
    """A training, its teacher with other images; gives the runner and the state at the end."""
    made = config(tmp_path, custom_hooks=list(hooks))
    made.model.architecture.data_preprocessor = OTHER_IMAGES
    runner = build_runner(made)
    runner.train()
    return runner, copy.deepcopy(runner.model.state_dict())


def test_pictures_of_features_change_nothing(tmp_path):
    """Of the student and of the teacher; weights and statistics are bit by bit those without.

    MMRazor's takes them in training mode: dropout is in them, and each BatchNorm moves.
    """
    sources = (f'architecture.{BOTTLENECK}', f'teacher.{BOTTLENECK}')
    runner, state = trained(tmp_path, pictures(tmp_path, *sources))
    found = sorted(path.name for path in (tmp_path / 'work').glob('**/pictures/*.jpg'))
    expected = [
        f'{stage}_data_idx_0_{source.replace(".", "_")}_0.jpg'
        for stage in ('before_run', 'epoch_0', 'epoch_1')
        for source in sources
    ]
    assert found == sorted(expected)
    (tmp_path / 'without').mkdir()
    _, without = trained(tmp_path / 'without')
    assert bitwise_equal(state, without)


def test_picture_of_what_does_not_exist_is_refused_before_the_training(tmp_path):
    made = config(tmp_path, custom_hooks=[pictures(tmp_path, 'teacher.decode_head.nothing')])
    runner = build_runner(made)
    ran = count_runs(runner.model)
    with pytest.raises(AssertionError, match='"teacher.decode_head.nothing" is not in the model'):
        runner.train()
    assert not ran


def test_resources_are_the_students(tmp_path):
    """EstimateResourcesHook counts the student; the training goes on and can be copied."""
    shape = dict(flops_params_cfg=dict(input_shape=(1, 3, 64, 64)))
    hook = dict(
        type='mmrazor.EstimateResourcesHook', interval=1, by_epoch=True, estimator_cfg=shape
    )
    runner, state = trained(tmp_path, hook)
    (estimate,) = [h for h in runner.hooks if type(h).__name__ == 'EstimateResourcesHook']
    algorithm = runner.model
    found = estimate.estimator.estimate(algorithm)
    assert found == estimate.estimator.estimate(algorithm.student)
    assert found['flops'] > 0 and found['params'] > 0
    assert bitwise_equal(copy.deepcopy(algorithm).state_dict(), state)


# Distillers


def mapped(kind):
    recorders = dict(last=dict(type='ModuleOutputs', source='decode_head.conv_seg'))
    return dict(
        type=kind,
        student_recorders=recorders,
        teacher_recorders=recorders,
        distill_losses=dict(loss_x=dict(type='ChannelWiseDivergence')),
        loss_forward_mappings=dict(
            loss_x=dict(
                preds_S=dict(from_student=True, recorder='last'),
                preds_T=dict(from_student=False, recorder='last'),
            )
        ),
    )


def test_byot_distiller_is_a_configurable_distiller():
    values = []
    for kind in ('ConfigurableDistiller', 'BYOTDistiller'):
        algorithm = distill(distiller=mapped(kind)).eval()
        losses = algorithm(images(), samples(), mode='loss')
        total(losses).backward()
        values.append(losses['distill.loss_x'].item())
    assert values[0] == values[1] > 0
