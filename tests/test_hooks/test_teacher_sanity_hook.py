"""A wrong teacher is found before the training; the labels are what the right one says."""

import json
import re

import pytest
import torch
from helpers import build, capture_log, distill, pair, pspnet, retinanet, run, teachers, validation
from mmengine.config import ConfigDict
from mmengine.hooks import Hook
from mmengine.registry import DefaultScope
from mmengine.runner.checkpoint import _load_checkpoint
from small_networks import IMAGENET, EightConvs, own_teacher, random_state, save, trained_state
from torch import nn

from rawkd_mm.hooks import TeacherSanityHook, WrongTeacherError
from rawkd_mm.teachers import initial_vectors, participation_ratio, shuffled_weights

EXPECTED = dict(mIoU=100.0)


@pytest.fixture
def checkpoints(tmp_path):
    return teachers(tmp_path)


@pytest.fixture
def log(monkeypatch):
    """What is printed to MMEngine's log."""
    return capture_log(monkeypatch)


def train(tmp_path, algorithm, iters=1, hooks=(), given=None, **kwargs):
    hook = dict(type='TeacherSanityHook', **{'images': 4, 'expected': EXPECTED, **kwargs})
    given = validation() if given is None else given
    return run(algorithm, tmp_path, iters=iters, hooks=[*hooks, hook], **given)


def of_the_teacher(log):
    return [line for line in log if line.startswith('The teacher on')]


@pytest.mark.parametrize(
    ('images', 'which'), [(3, 'the first 3 of 8'), (8, 'all 8'), (64, 'all 8'), (None, 'all 8')]
)
def test_right_teacher(tmp_path, checkpoints, log, images, which):
    train(tmp_path, distill(teacher_ckpt=checkpoints[0]), images=images)
    (line,) = of_the_teacher(log)
    assert line.startswith(f'The teacher on {which} validation images: ')
    assert 'mIoU 100 (expected 100)' in line and 'aAcc 100' in line


def test_its_images_are_converted(tmp_path, checkpoints, log):
    """The student's preprocessor makes them; the metric is that of the teacher's own."""
    from helpers import preprocessor

    other = preprocessor(mean=[90.0, 80.0, 70.0], std=[50.0, 60.0, 70.0], bgr_to_rgb=False)
    student = pspnet(data_preprocessor=other)
    train(tmp_path, distill(student=student, teacher_ckpt=checkpoints[0]))
    (line,) = of_the_teacher(log)
    accuracy = float(re.search(r'aAcc ([\d.]+)', line)[1])
    assert accuracy > 99.5, 'but for the last digits'


def test_wrong_teacher_stops_before_the_first_iteration(tmp_path, checkpoints, log):
    seen = []

    class Iterations(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            seen.append(runner.iter)

    algorithm = distill(teacher_ckpt=checkpoints[1])
    with pytest.raises(WrongTeacherError) as error:
        train(tmp_path, algorithm, hooks=[Iterations()])
    message = str(error.value)
    assert re.match(
        r'the teacher on the first 4 of 8 validation images: mIoU [\d.]+ \(expected 100\), '
        r'which is below 0.5 of the expected. Check that teacher_ckpt',
        message,
    ), message
    assert seen == []
    assert of_the_teacher(log), 'logged all the same'


def test_wrong_order_of_channels_is_found_by_the_numbers(tmp_path, checkpoints, log):
    """The teacher's config says what its weights were not trained with."""
    from helpers import preprocessor

    swapped = pspnet(8, 16, data_preprocessor=preprocessor(std=[0.02, 200.0, 200.0]))
    algorithm = distill(teacher=swapped, teacher_ckpt=checkpoints[0])
    with pytest.raises(WrongTeacherError, match='its data_preprocessor'):
        train(tmp_path, algorithm, fraction=0.9)


def test_without_expectation_it_is_only_logged(tmp_path, checkpoints, log):
    runner = train(tmp_path, distill(teacher_ckpt=checkpoints[1]), expected=None)
    assert runner.iter == 1
    (line,) = of_the_teacher(log)
    assert 'mIoU' in line and 'expected' not in line


def test_not_repeated_when_resumed(tmp_path, checkpoints, log):
    train(tmp_path, distill(teacher_ckpt=checkpoints[0]), iters=2)
    assert len(of_the_teacher(log)) == 1
    given = dict(validation(), resume=True)
    runner = train(tmp_path, distill(teacher_ckpt=checkpoints[1]), iters=3, given=given)
    assert runner.iter == 3
    assert len(of_the_teacher(log)) == 1


def test_the_training_is_the_same_with_and_without(tmp_path, checkpoints):
    weights = []
    for name, hooks in (('with', True), ('without', False)):
        algorithm = distill(teacher_ckpt=checkpoints[0])
        if hooks:
            train(tmp_path / name, algorithm, iters=2)
        else:
            run(algorithm, tmp_path / name, iters=2, **validation())
        weights.append(algorithm.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_random_teacher_is_not_evaluated(tmp_path, log):
    assert train(tmp_path, distill(), given={}).iter == 1
    assert not of_the_teacher(log)
    assert any('no checkpoint was loaded into the teacher' in line for line in log)


def test_head_must_be_in_the_checkpoint(tmp_path, checkpoints, log):
    content = _load_checkpoint(checkpoints[0])
    state = {k: v for k, v in content['state_dict'].items() if 'conv_seg' not in k}
    torch.save(dict(state_dict=state), checkpoints[0])
    algorithm = distill(teacher_ckpt=checkpoints[0])  # which needs no classifier
    with pytest.raises(WrongTeacherError) as error:
        train(tmp_path, algorithm)
    assert '2 parameters of the teacher EncoderDecoder were not in its checkpoint' in str(
        error.value
    )
    assert 'decode_head.conv_seg.weight' in str(error.value)
    # the auxiliary head has no part in an evaluation
    state = {k: v for k, v in content['state_dict'].items() if 'auxiliary' not in k}
    torch.save(dict(state_dict=state), checkpoints[0])
    train(tmp_path, distill(teacher_ckpt=checkpoints[0]))
    assert of_the_teacher(log)


def test_other_number_of_classes_than_the_validation_set(tmp_path, checkpoints):
    algorithm = distill(teacher_ckpt=checkpoints[0])
    with pytest.raises(WrongTeacherError, match='teacher has 5 classes, the validation set 4'):
        train(tmp_path, algorithm, given=validation(classes='abcd'))


def test_other_names_of_classes(tmp_path, log):
    meta = dict(dataset_meta=dict(classes=['a', 'c', 'b', 'd', 'e']))
    path = teachers(tmp_path, meta=meta)[0]
    train(tmp_path, distill(teacher_ckpt=path))
    (line,) = [line for line in log if 'names other classes' in line]
    assert "1: 'c' and 'b'; 2: 'b' and 'c'" in line


def test_unknown_metric(tmp_path, checkpoints):
    algorithm = distill(teacher_ckpt=checkpoints[0])
    with pytest.raises(
        WrongTeacherError, match=r"expected has \['miou'\], the evaluator gives .*mIoU"
    ):
        train(tmp_path, algorithm, expected=dict(miou=80.0))


def test_validation_is_needed(tmp_path, checkpoints):
    algorithm = distill(teacher_ckpt=checkpoints[0])
    with pytest.raises(WrongTeacherError, match='val_dataloader, val_evaluator and val_cfg'):
        train(tmp_path, algorithm, given={})


def test_distillation_is_needed(tmp_path):
    with pytest.raises(TypeError, match='needs a FrozenTeacherDistill, got EncoderDecoder'):
        train(tmp_path, build(pspnet()))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(images=0), 'at least 1, or None for all, got 0'),
        (dict(fraction=0), 'above 0 and at most 1, got 0'),
        (dict(fraction=1.5), 'above 0 and at most 1, got 1.5'),
        (dict(min_rank=-1), 'min_rank must be at least 0, got -1'),
        (dict(expected=dict(mIoU=0.0)), "must be above 0, got {'mIoU': 0.0}"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        TeacherSanityHook(**options)


def test_two_processes_evaluate_together(two_processes):
    """5 images, of which one process has 3 and the other 2."""
    good, wrong = two_processes[0]['sanity']
    assert good == ''
    assert 'the first 5 of 8 validation images: mIoU' in wrong and 'below 0.5' in wrong
    assert two_processes[1]['sanity'] == [good, wrong]


# Teachers without a head


def headless(tmp_path, state=None, end='', **kwargs):
    """A distillation from a network of one's own."""
    state = trained_state() if state is None else state
    given = dict(teacher=own_teacher(end=end), teacher_ckpt=save(state, tmp_path))
    return distill(pair(teacher='features[0]'), **{**given, **kwargs})


def check(tmp_path, algorithm, given=None, **kwargs):
    """Train an iteration with the hook."""
    return train(tmp_path / 'run', algorithm, given=given, **{'expected': None, **kwargs})


def numbers(state, count):
    """Effective rank and mean cosine, from the eigenvalues and from all pairs of positions."""
    from helpers import RandomScenes

    network, columns = EightConvs().eval(), []
    network.load_state_dict(state)
    for i in range(count):
        # the student's preprocessor swaps the channels of BGR images, the teacher's too
        image = RandomScenes()[i]['inputs'].flip(0).float() / 255
        image = image - torch.tensor(IMAGENET['mean']).view(3, 1, 1)
        image = image / torch.tensor(IMAGENET['std']).view(3, 1, 1)
        with torch.no_grad():
            columns.append(network(image[None])[0].flatten(1).double())
    columns = torch.cat(columns, 1)
    eigenvalues = torch.linalg.eigvalsh(torch.cov(columns, correction=0))
    units = nn.functional.normalize(columns, dim=0)
    return float(eigenvalues.sum() ** 2 / eigenvalues.square().sum()), float(
        (units.T @ units).mean()
    )


def described(log):
    """Effective rank and mean cosine as the log has them."""
    (line,) = [line for line in log if 'has 16 channels, effective rank' in line]
    return line, [float(x) for x in re.findall(r'(?:rank|cosine) ([\d.]+)', line)]


@pytest.mark.parametrize('given', ['validation', 'training'])
def test_features_of_a_trained_teacher(tmp_path, log, given):
    algorithm = headless(tmp_path)
    runner = check(tmp_path, algorithm, images=5, given=None if given == 'validation' else {})
    assert runner.iter == 1
    line, found = described(log)
    assert line.startswith(f'The teacher on 5 {given} images: features[0] has 16 channels')
    assert found == pytest.approx(numbers(trained_state(), 5), rel=6e-3), 'three digits'
    (line,) = [line for line in log if 'copies of the teacher with shuffled weights' in line]
    assert line.startswith('The teacher is none with random weights: features[0]: effective rank')


@pytest.mark.parametrize('seed', range(3))
def test_weights_that_were_never_trained(tmp_path, seed):
    with pytest.raises(
        WrongTeacherError, match='were never trained: all of its 32 vectors'
    ) as error:
        check(tmp_path, headless(tmp_path, random_state(seed)))
    assert 'network.layers.1.weight' in str(error.value)
    assert 'Give the checkpoint of a trained teacher' in str(error.value)


def test_features_like_those_of_random_weights(tmp_path, log):
    """What a step of a training changes of norms and biases does not hide it."""
    check(tmp_path, headless(tmp_path, random_state(touched=True)))
    (line,) = [line for line in log if 'may have random weights' in line]
    assert 'Both are within 4 standard deviations' in line and 'Check that teacher_ckpt' in line


def broken(name, change):
    """Trained weights with another value of one parameter."""
    state = trained_state()
    return {**state, name: change(state[name].clone())}


def one_nan(weight):
    weight[0] = float('nan')
    return weight


@pytest.mark.parametrize(
    ('state', 'end', 'message'),
    [
        (lambda: broken('layers.22.weight', one_nan), '', r'64 of its 1024 values are NaN .*, in 4'),
        (trained_state, 'flat', r'it is the same at all positions of each image\.'),
        (trained_state, 'map', r'it is the same for all images\.'),
        (lambda: broken('layers.22.weight', torch.zeros_like), '', r'the same for all images'),
        (trained_state, 'line', r'its 16 channels have the effective rank 1, below 1.1 \(min_rank\)'),
    ],
)  # fmt: skip
def test_wrong_features(tmp_path, state, end, message):
    algorithm = headless(tmp_path, state(), end)
    with pytest.raises(WrongTeacherError, match=message) as error:
        check(tmp_path, algorithm)
    assert str(error.value).startswith('the teacher on 4 validation images: features[0]: ')
    assert 'mean, std, max_value, channel_order' in str(error.value)


def test_floor_of_the_rank(tmp_path):
    assert check(tmp_path, headless(tmp_path, end='line'), min_rank=0.9).iter == 1
    with pytest.raises(WrongTeacherError, match=r'below 8 \(min_rank\)'):  # half the channels
        check(tmp_path, headless(tmp_path), min_rank=15)


def test_features_are_not_evaluated(tmp_path):
    with pytest.raises(WrongTeacherError, match='a TorchTeacher has no head .* Leave out expected'):
        train(tmp_path, headless(tmp_path))


def test_random_teacher_without_a_head_is_not_checked(tmp_path, log):
    algorithm = distill(pair(teacher='features[0]'), teacher=own_teacher())
    assert check(tmp_path, algorithm).iter == 1
    assert any('no checkpoint was loaded into the teacher' in line for line in log)
    assert not any('effective rank' in line for line in log)


def test_checking_features_changes_nothing(tmp_path):
    """Neither the training nor the teacher, bit by bit; its random numbers are its own."""
    weights, drawn = [], []

    class Draw(Hook):
        priority = 'VERY_LOW'

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            drawn.append(torch.rand(()).item())
            modes.append([m.training for m in runner.model.modules()])

    modes = []
    for name, hook in (('with', dict(type='TeacherSanityHook')), ('without', None)):
        algorithm = headless(tmp_path)
        run(
            algorithm,
            tmp_path / name,
            iters=2,
            hooks=[Draw(), *filter(None, [hook])],
            **validation(),
        )
        weights.append({**algorithm.state_dict(), **algorithm.teacher.state_dict()})
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert drawn[:2] == drawn[2:] and modes[:2] == modes[2:]


def test_features_are_not_checked_again_when_resumed(tmp_path, log):
    check(tmp_path, headless(tmp_path))
    given = dict(validation(), resume=True)
    hook = dict(type='TeacherSanityHook')
    run(headless(tmp_path, random_state()), tmp_path / 'run', iters=2, hooks=[hook], **given)
    described(log)


def test_two_processes_check_features_together(two_processes):
    """5 images, of which one process has 3 and the other 2, and none twice."""
    (good, untrained, wrong), looked_at = two_processes[0]['headless']
    assert good == '' and 'were never trained' in untrained
    assert 'the teacher on 5 validation images: features[0]: 1280 of its 1280 values' in wrong
    assert looked_at[0][0] == 5
    assert looked_at[0][1:] == pytest.approx(numbers(trained_state(), 5), rel=1e-4)
    for messages, seen in (process['headless'] for process in two_processes):
        assert messages == [good, untrained, wrong] and seen[0] == looked_at[0]


def test_participation_ratio():
    rows = torch.randn(50, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    covariance = torch.cov(rows.T)
    eigenvalues = torch.linalg.eigvals(covariance).real
    expected = float(eigenvalues.sum() ** 2 / eigenvalues.square().sum())
    assert participation_ratio(covariance) == pytest.approx(expected, rel=1e-12)
    assert participation_ratio(torch.eye(9)) == 9 and participation_ratio(torch.zeros(3, 3)) == 0


def state_names(model):
    return [name for name in model.state_dict() if 'num_batches' not in name]


def convs(bias, *more):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), *more, nn.Conv2d(8, 8, 3))
    if bias is not None:
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.constant_(module.bias, bias)
    return model


@pytest.mark.parametrize(
    ('model', 'change', 'vectors'),
    [
        (convs(None, nn.BatchNorm2d(8)), None, 4),
        (convs(0.0, nn.BatchNorm2d(8)), None, 4),
        (convs(None, nn.GroupNorm(2, 8)), None, 2),
        (convs(None, nn.BatchNorm2d(8, affine=False)), None, 2),
        (convs(None, nn.BatchNorm2d(8)), '1.bias', 0),
        (convs(None, nn.BatchNorm2d(8)), '1.running_mean', 0),
        # a norm that was merged into its convolution, and left as an identity
        (convs(None, nn.BatchNorm2d(8)), '0.bias', 0),
        # without norms the biases tell it if they are all the same
        (convs(0.0), None, 2),
        (convs(0.0), '1.bias', 0),
        (convs(None), None, 0),
        (nn.Conv2d(3, 8, 3, bias=False), None, 0),
    ],
)
def test_vectors_of_an_initialisation(model, change, vectors):
    if change is not None:
        kept = model.state_dict()[change]
        with torch.no_grad():
            kept[0] += 1
    assert len(initial_vectors(model, state_names(model))) == vectors


def test_what_does_not_run_does_not_count():
    model = convs(None, nn.BatchNorm2d(8))
    with torch.no_grad():
        model[2].bias += 1
    assert not initial_vectors(model, state_names(model))
    in_use = [name for name in state_names(model) if not name.startswith('2.')]
    assert initial_vectors(model, in_use) == [
        '1.weight',
        '1.bias',
        '1.running_mean',
        '1.running_var',
    ]


@pytest.mark.parametrize('name', ['resnet', 'vit', 'convnext', 'efficientnet', 'nfnet'])
def test_initialisations_of_timm(name):
    timm = pytest.importorskip('timm')
    model = timm.create_model(f'test_{name}')
    assert initial_vectors(model, state_names(model))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    size = timm.data.resolve_model_data_config(model)['input_size']
    model(torch.randn(2, *size)).square().mean().backward()
    optimizer.step()
    assert not initial_vectors(model, state_names(model)), 'one step is seen'


def test_shuffled_weights():
    model = EightConvs()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state, shuffled = torch.random.get_rng_state(), []
    for seed in (0, 0, 1):
        with shuffled_weights(model, seed):
            shuffled.append({name: value.clone() for name, value in model.state_dict().items()})
    with pytest.raises(RuntimeError, match='meanwhile'), shuffled_weights(model, 2):
        raise RuntimeError('meanwhile')
    assert torch.equal(torch.random.get_rng_state(), state)
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before), 'bit by bit'
    name = 'layers.3.weight'
    assert torch.equal(shuffled[0][name], shuffled[1][name])
    assert not torch.equal(shuffled[0][name], shuffled[2][name])
    assert not torch.equal(shuffled[0][name], before[name])
    values = [x[name].flatten().sort().values for x in (shuffled[0], before)]
    assert torch.equal(*values)


# Detectors


def cascade_mask_rcnn():
    """Config of a small Cascade Mask R-CNN."""
    from helpers import faster_rcnn

    config = faster_rcnn()
    head = config['roi_head']
    bbox = head['bbox_head']
    bbox['reg_class_agnostic'] = True
    extractor = head['bbox_roi_extractor']
    config['type'] = 'CascadeRCNN'
    config['roi_head'] = dict(
        type='CascadeRoIHead',
        num_stages=2,
        stage_loss_weights=[1, 0.5],
        bbox_roi_extractor=extractor,
        bbox_head=[bbox, bbox],
        mask_roi_extractor=dict(
            extractor, roi_layer=dict(type='RoIAlign', output_size=14, sampling_ratio=0)
        ),
        mask_head=dict(
            type='FCNMaskHead',
            num_convs=1,
            in_channels=16,
            conv_out_channels=16,
            num_classes=bbox['num_classes'],
            loss_mask=dict(type='CrossEntropyLoss', use_mask=True),
        ),
    )
    config['train_cfg']['rcnn'] = [dict(config['train_cfg']['rcnn'], mask_size=28)] * 2
    config['test_cfg']['rcnn'].update(score_thr=0.0, max_per_img=3, mask_thr_binary=0.5)
    return ConfigDict(config)


def lenient_retinanet():
    config = retinanet()
    config['test_cfg'].update(score_thr=0.0, max_per_img=3)
    return ConfigDict(config)


def coco_of(teacher, folder, images=6, size=64):
    """A folder with random images, in which the boxes are those that a detector finds."""
    import cv2
    import numpy as np

    (folder / 'images').mkdir()
    rng = np.random.default_rng(0)
    annotations = []
    for i in range(images):
        cv2.imwrite(
            str(folder / f'images/{i}.png'), rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
        )
    (folder / 'empty.json').write_text(json.dumps(coco_json(images, size, [])))
    dataset = coco_loader(folder, 'empty.json')['dataset']
    from mmengine.dataset import pseudo_collate
    from mmengine.registry import DATASETS

    for i, item in enumerate(DATASETS.build(dataset)):
        with torch.no_grad():
            (found,) = teacher.val_step(pseudo_collate([item]))
        for box, label in zip(found.pred_instances.bboxes, found.pred_instances.labels):
            x, y, right, bottom = box.tolist()
            annotations.append(
                dict(
                    id=len(annotations) + 1, image_id=i, category_id=int(label) + 1, iscrowd=0,
                    bbox=[x, y, right - x, bottom - y], area=(right - x) * (bottom - y),
                )
            )  # fmt: skip
    assert len(annotations) >= images
    (folder / 'found.json').write_text(json.dumps(coco_json(images, size, annotations)))


def coco_json(images, size, annotations):
    return dict(
        images=[dict(id=i, file_name=f'{i}.png', height=size, width=size) for i in range(images)],
        categories=[dict(id=i + 1, name=name) for i, name in enumerate('abcde')],
        annotations=annotations,
    )


def coco_loader(folder, file):
    meta = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
    return dict(
        batch_size=1,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(
            type='CocoDataset',
            _scope_='mmdet',
            data_root=str(folder),
            ann_file=file,
            data_prefix=dict(img='images/'),
            metainfo=dict(classes=tuple('abcde')),
            test_mode=True,
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='Resize', scale=(64, 64), keep_ratio=True),
                dict(type='LoadAnnotations', with_bbox=True),
                dict(type='PackDetInputs', meta_keys=meta),
            ],
        ),
    )


@pytest.mark.parametrize('config', [lenient_retinanet, cascade_mask_rcnn])
def test_detector_with_boxes_alone(mmdet, tmp_path, log, config):
    """A teacher with masks too; of COCO's images only those that were looked at count."""
    from helpers import train_statistics

    with DefaultScope.overwrite_default_scope('mmdet'):
        torch.manual_seed(0)
        model = train_statistics(build(config())).eval()
        for name, parameter in model.requires_grad_(False).named_parameters():
            if name.endswith(('_reg.weight', '_reg.bias')):
                parameter.zero_()  # boxes that are no lines
        coco_of(model, tmp_path)
        torch.save(dict(state_dict=model.state_dict()), tmp_path / 'teacher.pth')
        algorithm = distill(
            dict(student='neck[0]', teacher='neck[0]'),
            student=retinanet(),
            teacher=config(),
            teacher_ckpt=str(tmp_path / 'teacher.pth'),
        )
        from mmengine.evaluator import Evaluator
        from mmengine.registry import DATASETS

        loader = coco_loader(tmp_path, 'found.json')
        dataset = DATASETS.build(loader['dataset'])
        metric = dict(
            type='mmdet.CocoMetric', ann_file=str(tmp_path / 'found.json'), metric='bbox',
            format_only=False,
        )  # fmt: skip

        class Runner:
            iter = 0
            model = algorithm
            val_loop = type(
                'Loop',
                (),
                dict(
                    dataloader=torch.utils.data.DataLoader(
                        dataset, batch_size=1, collate_fn=_collate
                    ),
                    evaluator=Evaluator(metric),
                ),
            )

        Runner.val_loop.evaluator.dataset_meta = dataset.metainfo
        TeacherSanityHook(images=2, expected={'coco/bbox_mAP': 1.0}, fraction=0.95).before_train(
            Runner
        )
        (line,) = of_the_teacher(log)
        assert 'the first 2 of 6' in line
        assert Runner.val_loop.evaluator.metrics[0].img_ids is None
        hook = TeacherSanityHook(images=2, expected={'coco/bbox_mAP': 1.0})
        for name, parameter in algorithm.teacher.named_parameters():
            if name.endswith(('_reg.weight', '_reg.bias')):
                parameter.fill_(0.05)
        with pytest.raises(WrongTeacherError, match=r'coco/bbox_mAP .*\(expected 1\)'):
            hook.before_train(Runner)
        for parameter in algorithm.teacher.parameters():
            parameter.fill_(float('nan'))
        with pytest.raises(WrongTeacherError, match='finds nothing on the first 2 of 6.*expected'):
            hook.before_train(Runner)


def _collate(items):
    from mmengine.dataset import pseudo_collate

    return pseudo_collate(items)
