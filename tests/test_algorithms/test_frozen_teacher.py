"""The teacher: frozen, run as far as needed, loaded completely, fed with its own images."""

import copy
import functools
import http.server
import threading

import pytest
import torch
from helpers import (
    BOTTLENECK,
    Watch,
    build,
    distill,
    faster_rcnn,
    images,
    pair,
    preprocessor,
    pspnet,
    retinanet,
    samples,
    total,
    train_statistics,
    upernet_swin,
)
from mmengine.model import BaseDataPreprocessor, BaseModel, ImgDataPreprocessor
from mmengine.structures import InstanceData, PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

AUX = 'auxiliary_head.convs.0'
FPN = 'decode_head.fpn_bottleneck'


def step(algorithm, inputs=None, data_samples=None):
    inputs = images() if inputs is None else inputs
    return algorithm(inputs, samples() if data_samples is None else data_samples, mode='loss')


def detection_samples(n=2, size=64):
    from mmdet.structures import DetDataSample

    result = []
    for _ in range(n):
        shape = (size, size)
        meta = dict(img_shape=shape, ori_shape=shape, pad_shape=shape, batch_input_shape=shape)
        sample = DetDataSample(metainfo=dict(meta, scale_factor=(1.0, 1.0)))
        boxes = torch.tensor([[4.0, 4.0, 40.0, 40.0]])
        sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([1]))
        result.append(sample)
    return result


def detectors(student=None, teacher=None, *paths):
    pairs = [pair(path) for path in paths or [f'neck[{i}]' for i in range(5)]]
    return distill(*pairs, student=student or retinanet(), teacher=teacher or retinanet(24))


# Frozen


@pytest.mark.parametrize('calls', [[True], [False, True], [True, False]])
def test_every_module_is_in_eval_mode_always(calls):
    algorithm = distill(pair(FPN), student=upernet_swin(), teacher=upernet_swin())
    for mode in calls:
        assert algorithm.train(mode) is algorithm
    assert not any(m.training for m in algorithm.teacher.modules())
    assert all(m.training == calls[-1] for m in algorithm.student.modules())
    assert algorithm.distiller.training == calls[-1]
    step(algorithm.train())
    assert not any(m.training for m in algorithm.teacher.modules())


def test_dropout_and_drop_path_are_inactive():
    algorithm = distill(
        pair(FPN), pair('backbone[1]'), student=upernet_swin(), teacher=upernet_swin(16, 12)
    ).train()
    features = []
    for _ in range(2):
        with Watch(algorithm.teacher, FPN, 'backbone') as watch:
            step(algorithm)
        features.append((watch[FPN], *watch['backbone']))
    assert all(torch.equal(a, b) for a, b in zip(*features))
    # they would differ if drop path were active
    teacher = copy.deepcopy(algorithm.teacher).train().backbone
    assert not torch.equal(teacher(images())[1], teacher(images())[1])


@pytest.mark.parametrize(
    ('teacher', 'path'),
    [
        (pspnet(8, 16), BOTTLENECK),
        (pspnet(8, 16), 'backbone.layer4.1.bn2'),
        (pspnet(8, 16), 'backbone.layer3.0.bn1'),
        (pspnet(8, 16), AUX),
        (upernet_swin(16, 12), FPN),
        (upernet_swin(16, 12), 'backbone.stages.1.blocks.1'),
    ],
)
def test_features_are_those_of_the_whole_teacher_in_eval_mode(teacher, path):
    teacher = train_statistics(build(teacher))
    with torch.no_grad(), Watch(copy.deepcopy(teacher).eval(), path) as expected_by:
        expected_by.model(images(), samples(), mode='loss')
    student = upernet_swin(16) if 'stages' in path or path == FPN else pspnet()
    # a loss that takes tokens, too
    lad = dict(type='LADLoss')
    algorithm = distill(pair(path, loss=lad), student=student, teacher=teacher).train()
    with Watch(algorithm.teacher, path) as watch:
        step(algorithm)
    assert torch.equal(watch.outputs[path][-1], expected_by[path])


def test_detector_features_are_those_of_the_whole_teacher(mmdet):
    teacher = train_statistics(build(retinanet(24)))
    with torch.no_grad(), Watch(copy.deepcopy(teacher).eval(), 'neck') as expected:
        expected.model(images(size=64), mode='tensor')
    algorithm = detectors(teacher=teacher).train()
    with Watch(algorithm.teacher, 'neck') as watch:
        losses = step(algorithm, images(size=64), detection_samples())
    assert all(torch.equal(a, b) for a, b in zip(watch['neck'], expected['neck']))
    assert sum('distill' in name for name in losses) == 5
    total(losses).backward()
    assert algorithm.student.backbone.conv1.weight.grad.abs().sum() > 0


def test_nothing_of_the_teacher_is_trained():
    algorithm = distill(pair(), pair(AUX))
    teacher = {id(p) for p in algorithm.teacher.parameters()}
    assert not any(p.requires_grad for p in algorithm.teacher.parameters())
    assert not teacher & {id(p) for p in algorithm.parameters()}
    assert not {id(m) for m in algorithm.teacher.modules()} & {id(m) for m in algorithm.modules()}
    assert not {id(b) for b in algorithm.teacher.buffers()} & {id(b) for b in algorithm.buffers()}
    before = copy.deepcopy(algorithm.teacher.state_dict())
    algorithm.train()
    for _ in range(2):
        total(step(algorithm)).backward()
    algorithm.init_weights()
    assert all(torch.equal(before[k], v) for k, v in algorithm.teacher.state_dict().items())
    assert all(p.grad is None for p in algorithm.teacher.parameters())


def test_moves_and_converts_with_the_algorithm():
    teacher = pspnet(8, 16, data_preprocessor=preprocessor(mean=[0.0, 0.0, 0.0]))
    algorithm = distill(teacher=teacher).double()
    assert all(p.dtype == torch.float64 for p in algorithm.teacher.parameters())
    losses = step(algorithm, images().double())
    assert losses['distill.loss_cad_decode_head.bottleneck'].dtype == torch.float64


# How far it runs


def ran(model, *args, **kwargs):
    with torch.no_grad(), Watch(model) as watch:
        model(*args, **kwargs)
    return watch.ran


def up_to(names, path):
    """Names of the modules that run until a module has ended, in their order."""
    inside = [i for i, name in enumerate(names) if f'{name}.'.startswith(f'{path}.')]
    return names[: inside[-1] + 1]


@pytest.mark.parametrize(
    ('paths', 'last'),
    [
        (['backbone.stem'], 'backbone.stem'),
        (['backbone.layer2'], 'backbone.layer2'),
        (['backbone.layer2.1.bn1'], 'backbone.layer2.1.bn1'),
        (['backbone[0]'], 'backbone'),
        (['decode_head.psp_modules[1]'], 'decode_head.psp_modules'),
        ([BOTTLENECK], BOTTLENECK),
        ([f'{BOTTLENECK}.conv'], f'{BOTTLENECK}.conv'),
        (['backbone.layer3', 'backbone.stem'], 'backbone.layer3'),
        ([BOTTLENECK, 'backbone.layer3', 'backbone[1]'], BOTTLENECK),
        (['decode_head.conv_seg'], 'decode_head.conv_seg'),
    ],
)
def test_stops_right_after_the_last_feature(paths, last):
    teacher = build(pspnet(8, 16))
    whole = ran(copy.deepcopy(teacher).eval(), images(), mode='tensor')
    algorithm = distill(*[pair(path) for path in paths], teacher=teacher).train()
    for _ in range(2):
        with Watch(algorithm.teacher) as watch:
            step(algorithm)
        assert watch.ran == up_to(whole, last)
    assert len(watch.ran) < len(whole) or last == 'decode_head.conv_seg'


@pytest.mark.parametrize('teacher', [retinanet, faster_rcnn])
def test_detector_stops_right_after_the_neck(mmdet, teacher):
    algorithm = detectors(teacher=teacher(24)).train()
    with Watch(algorithm.teacher) as watch:
        step(algorithm, images(size=64), detection_samples())
    assert {name.partition('.')[0] for name in watch.ran} == {'', 'backbone', 'neck'}


def test_detector_of_another_kind_may_be_the_student(mmdet):
    algorithm = detectors(student=faster_rcnn()).train()
    losses = step(algorithm, images(size=64), detection_samples())
    assert sum('distill' in name for name in losses) == 5
    total(losses).backward()


def test_auxiliary_head_runs_without_the_other_head_and_without_losses():
    algorithm = distill(pair(AUX)).train()
    step(algorithm)
    with Watch(algorithm.teacher) as watch:
        step(algorithm)
    assert AUX in watch.ran
    assert not [name for name in watch.ran if name.startswith('decode_head')]
    assert not [name for name in watch.ran if 'loss' in name or 'conv_seg' in name]


def test_auxiliary_head_of_a_teacher_with_fewer_classes():
    # its losses could not be computed from the student's labels
    algorithm = distill(pair(AUX), teacher=pspnet(8, 16, classes=2)).train()
    assert step(algorithm)[f'distill.loss_cad_{AUX}'].isfinite()


def _mmrazor_distiller(kind, source, **record):
    recorder = dict(x=dict(type=kind, source=source))
    return dict(
        type='ConfigurableDistiller',
        student_recorders=recorder,
        teacher_recorders=recorder,
        distill_losses=dict(loss_x=dict(type='NaiveFeatureLoss')),
        loss_forward_mappings=dict(
            loss_x=dict(
                preds_S=dict(from_student=True, recorder='x', **record),
                preds_T=dict(from_student=False, recorder='x', **record),
            )
        ),
    )


@pytest.mark.parametrize('index', [0, 1])
def test_runs_until_the_record_that_a_mapping_asks_for(index):
    path = 'backbone.layer1.0.relu'
    distiller = _mmrazor_distiller('ModuleOutputs', path, record_idx=index)
    algorithm = distill(distiller=distiller, teacher=pspnet()).train()
    with Watch(algorithm.teacher) as watch:
        losses = step(algorithm)
    assert watch.ran.count(path) == index + 1
    assert watch.ran[-1] == path
    assert losses['distill.loss_x'].isfinite()


@pytest.mark.parametrize(
    ('kind', 'source', 'record'),
    [
        ('ModuleInputs', 'decode_head.conv_seg', dict(data_idx=0)),
        ('MethodOutputs', 'mmseg.models.decode_heads.psp_head.PSPHead.cls_seg', {}),
        ('Parameter', 'decode_head.conv_seg.weight', {}),
    ],
)
def test_other_recorders_of_mmrazor_work(kind, source, record):
    algorithm = distill(
        distiller=_mmrazor_distiller(kind, source, **record), teacher=pspnet(8, 8)
    ).train()
    for _ in range(2):
        losses = step(algorithm)
    assert losses['distill.loss_x'].isfinite()
    assert losses['distill.loss_x'] > 0


# Loading


def save(folder, state, key='state_dict'):
    path = folder / 'teacher.pth'
    torch.save(state if key is None else {key: state, 'meta': {}}, path)
    return str(path)


def state_of(config, seed=5):
    torch.manual_seed(seed)
    return dict(train_statistics(build(config)).state_dict())


def with_prefix(state, prefix):
    return {f'{prefix}{name}': value for name, value in state.items()}


def loaded(path, *pairs, **kwargs):
    return distill(*pairs, teacher_ckpt=path, **kwargs)


def assert_loaded(algorithm, state):
    own = algorithm.teacher.state_dict()
    assert all(torch.equal(own[name], state[name]) for name in own)


@pytest.mark.parametrize('ckpt', [None, ''])
def test_weights_are_required(ckpt):
    with pytest.raises(ValueError, match='teacher_ckpt.*allow_random_teacher=True'):
        distill(teacher_ckpt=ckpt)


def test_random_teacher_must_be_allowed_explicitly():
    assert distill(teacher_ckpt=None, allow_random_teacher=True).teacher is not None


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'nowhere\.pth'):
        loaded(str(tmp_path / 'nowhere.pth'))


@pytest.mark.parametrize(
    'prefix', ['', 'module.', 'architecture.', 'module.architecture.', 'teacher.', 'student.']
)
def test_prefixes_are_understood(tmp_path, prefix):
    state = state_of(pspnet(8, 16))
    assert_loaded(loaded(save(tmp_path, with_prefix(state, prefix))), state)


def test_plain_state_dict_without_key(tmp_path):
    state = state_of(pspnet(8, 16))
    assert_loaded(loaded(save(tmp_path, state, key=None)), state)


def test_url(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    (tmp_path / 'served').mkdir()
    state = state_of(pspnet(8, 16))
    save(tmp_path / 'served', state)
    handler = functools.partial(
        http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / 'served')
    )
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        algorithm = loaded(f'http://127.0.0.1:{server.server_address[1]}/teacher.pth')
        server.shutdown()
    assert_loaded(algorithm, state)


def test_checkpoint_of_mmrazors_distillation_has_the_teacher_too(tmp_path):
    state = state_of(pspnet(8, 16))
    student = with_prefix(state_of(pspnet()), 'architecture.')
    assert_loaded(loaded(save(tmp_path, {**student, **with_prefix(state, 'teacher.')})), state)


def test_our_own_checkpoint_can_be_a_teacher(tmp_path):
    trained = distill(student=pspnet(8, 16), teacher=pspnet(8, 12))
    state = trained.state_dict()
    assert any(name.startswith('distiller.') for name in state)
    assert_loaded(loaded(save(tmp_path, state)), trained.student.state_dict())


@pytest.mark.parametrize(
    'missing',
    [
        'backbone.layer4.1.bn2.running_mean',
        'decode_head.bottleneck.conv.weight',
        'backbone.stem.0.weight',
    ],
)
def test_missing_parameter_is_listed(tmp_path, missing):
    state = state_of(pspnet(8, 16))
    del state[missing]
    with pytest.raises(ValueError, match='1 are missing') as error:
        loaded(save(tmp_path, state))
    assert missing in str(error.value)


def test_num_batches_tracked_may_be_missing(tmp_path):
    state = state_of(pspnet(8, 16))
    kept = {k: v for k, v in state.items() if 'num_batches_tracked' not in k}
    algorithm = loaded(save(tmp_path, kept))
    own = algorithm.teacher.state_dict()
    assert all(torch.equal(own[name], kept[name]) for name in kept)


def test_wrong_shape_is_listed(tmp_path):
    state = state_of(pspnet(8, 16))
    state['backbone.layer4.1.conv2.weight'] = torch.zeros(64, 64, 1, 1)
    with pytest.raises(ValueError, match='1 have another shape') as error:
        loaded(save(tmp_path, state))
    for part in ('backbone.layer4.1.conv2.weight', '(64, 64, 1, 1)', '(64, 64, 3, 3)'):
        assert part in str(error.value)


@pytest.mark.parametrize('other', [upernet_swin(), pspnet(4, 8), pspnet(8, 12)])
def test_another_architecture_does_not_fit(tmp_path, other):
    with pytest.raises(ValueError, match='does not fit EncoderDecoder'):
        loaded(save(tmp_path, state_of(other)))


@pytest.mark.parametrize('content', [[], {}, {'meta': {}}, torch.zeros(3), {'state_dict': {}}])
def test_what_is_no_checkpoint(tmp_path, content):
    path = save(tmp_path, content, key=None)
    with pytest.raises((ValueError, RuntimeError), match='no checkpoint|No state_dict'):
        loaded(path)


@pytest.mark.parametrize('path', [BOTTLENECK, AUX, 'backbone[2]'])
def test_number_of_classes_does_not_matter_behind_the_feature(tmp_path, path):
    state = state_of(pspnet(8, 16, classes=7))
    algorithm = loaded(save(tmp_path, state), pair(path))
    own = algorithm.teacher.state_dict()
    names = [name for name in own if 'conv_seg' not in name]
    assert all(torch.equal(own[name], state[name]) for name in names)


def test_number_of_classes_matters_for_the_logits(tmp_path):
    path = save(tmp_path, state_of(pspnet(8, 16, classes=7)))
    with pytest.raises(ValueError, match=r'decode_head\.conv_seg\.weight'):
        loaded(path, pair('decode_head.conv_seg'))


@pytest.mark.parametrize(
    ('path', 'parts'),
    [
        ('backbone.stem', ['stem']),
        ('backbone.layer2', ['stem', 'layer1', 'layer2']),
        ('backbone.layer2.0', ['stem', 'layer1', 'layer2.0']),
        ('backbone[0]', ['stem', 'layer1', 'layer2', 'layer3', 'layer4']),
    ],
)
def test_only_what_runs_must_be_in_the_checkpoint(tmp_path, path, parts):
    state = state_of(pspnet(8, 16))
    prefixes = tuple(f'backbone.{part}.' for part in parts)
    needed = {name: value for name, value in state.items() if name.startswith(prefixes)}
    algorithm = loaded(save(tmp_path, needed), pair(path))
    own = algorithm.teacher.state_dict()
    assert all(torch.equal(own[name], needed[name]) for name in needed)
    for name in [n for n in needed if 'num_batches' not in n][:: len(needed) // 6]:
        rest = {k: v for k, v in needed.items() if k != name}
        with pytest.raises(ValueError, match='1 are missing') as error:
            loaded(save(tmp_path, rest), pair(path))
        assert name in str(error.value)


def test_detector_needs_backbone_and_neck_only(tmp_path, mmdet):
    state = state_of(retinanet(24, classes=9))
    kept = {k: v for k, v in state.items() if not k.startswith('bbox_head')}
    pairs = [pair(f'neck[{i}]') for i in range(5)]
    models = dict(student=retinanet(), teacher=retinanet(24))
    for content in (state, kept):
        algorithm = loaded(save(tmp_path, content), *pairs, **models)
        own = algorithm.teacher.state_dict()
        assert all(torch.equal(own[name], kept[name]) for name in kept)
    del kept['neck.fpn_convs.4.conv.weight']
    with pytest.raises(ValueError, match=r'neck\.fpn_convs\.4\.conv\.weight'):
        loaded(save(tmp_path, kept), *pairs, **models)


@MODELS.register_module(force=True)
class WithEmbedding(BaseModel):
    """Uses the weight of a submodule without running that submodule, as transformer heads do."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(1, 4)
        self.conv = torch.nn.Conv2d(3, 4, 1)
        self.norm = torch.nn.BatchNorm2d(4)
        self.head = torch.nn.Conv2d(4, 2, 1)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = self.norm(self.conv(inputs) + self.embedding.weight[..., None, None])
        x = self.head(x)
        return dict(loss=x.mean()) if mode == 'loss' else x


def test_weight_that_is_used_without_its_module_is_needed_too(tmp_path):
    config = dict(type='WithEmbedding')
    state = state_of(config)
    algorithm = loaded(save(tmp_path, state), pair('norm'), student=config, teacher=config)
    assert_loaded(algorithm, state)
    del state['embedding.weight']
    with pytest.raises(ValueError, match=r'embedding\.weight'):
        loaded(save(tmp_path, state), pair('norm'), student=config, teacher=config)


# The images


def raw_batch(sizes=((32, 32), (32, 32)), seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs, data_samples = [], []
    for height, width in sizes:
        image = torch.randint(0, 256, (3, height, width), generator=generator)
        inputs.append(image.to(torch.uint8))
        labels = torch.zeros(1, height, width, dtype=torch.long)
        sample = SegDataSample(metainfo=dict(img_shape=(height, width)))
        sample.gt_sem_seg = PixelData(data=labels)
        data_samples.append(sample)
    return dict(inputs=inputs, data_samples=data_samples)


IMAGENET = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
CAFFE = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], bgr_to_rgb=False)
PADDED = dict(size=None, size_divisor=32)


def assert_teacher_sees_its_own_images(algorithm, teacher, path, data, **kwargs):
    """Compare with the teacher run on what its own data_preprocessor makes of the raw images."""
    twin = copy.deepcopy(teacher).eval()
    expected_data = twin.data_preprocessor(copy.deepcopy(data), True)
    with torch.no_grad(), Watch(twin, path) as expected:
        twin(expected_data['inputs'], mode='tensor')
    given = algorithm.data_preprocessor(copy.deepcopy(data), True)
    before = given['inputs'].clone()
    with Watch(algorithm.teacher, path) as watch:
        algorithm.loss(given['inputs'], given['data_samples'])
    assert torch.equal(given['inputs'], before)
    outputs, references = watch[path], expected[path]
    if not isinstance(outputs, tuple):
        outputs, references = [outputs], [references]
    for output, reference in zip(outputs, references):
        torch.testing.assert_close(output, reference, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ('student', 'teacher'),
    [
        (IMAGENET, dict(IMAGENET, mean=[127.5, 127.5, 127.5])),
        (IMAGENET, dict(IMAGENET, std=[127.5, 60.0, 255.0])),
        (IMAGENET, dict(IMAGENET, bgr_to_rgb=False)),
        (IMAGENET, dict(IMAGENET, bgr_to_rgb=False, rgb_to_bgr=True)),
        (IMAGENET, CAFFE),
        (CAFFE, IMAGENET),
        (dict(mean=None, std=None), IMAGENET),
        (IMAGENET, dict(mean=None, std=None)),
        (dict(mean=None, std=None, bgr_to_rgb=False), dict(mean=None, std=None)),
        (IMAGENET, dict(IMAGENET, **PADDED)),
    ],
)
@pytest.mark.parametrize('padded', [False, True])
def test_images_are_converted_to_the_teachers(student, teacher, padded):
    padding = PADDED if padded else {}
    sizes = ((20, 28), (32, 18)) if padded else ((32, 32), (32, 32))
    model = train_statistics(
        build(pspnet(8, 16, data_preprocessor=preprocessor(**{**teacher, **padding})))
    )
    algorithm = distill(
        student=pspnet(data_preprocessor=preprocessor(**{**student, **padding})), teacher=model
    ).train()
    assert_teacher_sees_its_own_images(algorithm, model, BOTTLENECK, raw_batch(sizes))


@pytest.mark.parametrize('mean', [[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]])
def test_padding_has_the_teachers_value(mean):
    padding = dict(PADDED, pad_val=7)
    teacher = preprocessor(**padding)
    model = build(pspnet(8, 16, data_preprocessor=teacher))
    student = pspnet(data_preprocessor=preprocessor(mean=mean, **PADDED))
    algorithm = distill(student=student, teacher=model)
    data = raw_batch(((20, 28), (32, 18)))
    assert_teacher_sees_its_own_images(algorithm, model, BOTTLENECK, data)


def test_images_come_from_the_algorithms_own_preprocessor():
    # Where a config has a data_preprocessor beside the model, as mmseg's have, the runner gives it
    # to the algorithm, and the student need not have one.
    student = pspnet()
    student.pop('data_preprocessor')
    model = train_statistics(build(pspnet(8, 16, data_preprocessor=preprocessor(**CAFFE))))
    algorithm = distill(
        student=student,
        teacher=model,
        data_preprocessor=preprocessor(**IMAGENET),
    )
    assert_teacher_sees_its_own_images(algorithm, model, BOTTLENECK, raw_batch())


@pytest.mark.parametrize('teacher', [None, preprocessor(**IMAGENET)])
def test_same_images_are_not_touched(teacher):
    algorithm = distill(
        student=pspnet(data_preprocessor=preprocessor(**IMAGENET)),
        teacher=pspnet(8, 16, data_preprocessor=teacher),
    )
    seen = []
    algorithm.teacher.backbone.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0]))
    inputs = images()
    step(algorithm, inputs)
    assert seen[0] is inputs


@pytest.mark.parametrize('divisor', [1, 32])
def test_detectors_images_are_converted(mmdet, divisor):
    from mmdet.structures import DetDataSample

    def det(**kwargs):
        return dict(type='DetDataPreprocessor', pad_size_divisor=divisor, **kwargs)

    model = train_statistics(build(retinanet(24, data_preprocessor=det(**CAFFE))))
    student = retinanet(data_preprocessor=det(bgr_to_rgb=True, **IMAGENET))
    algorithm = detectors(student, model).train()
    data = raw_batch(((40, 56), (64, 36)))
    data['data_samples'] = []
    for image in data['inputs']:
        sample = DetDataSample(metainfo=dict(img_shape=tuple(image.shape[1:])))
        boxes = torch.tensor([[4.0, 4.0, 20.0, 20.0]])
        sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([1]))
        data['data_samples'].append(sample)
    assert_teacher_sees_its_own_images(algorithm, model, 'neck', data)


@MODELS.register_module(force=True)
class SecretPreprocessor(BaseDataPreprocessor):
    """Does something to images, and does not tell what."""


def test_unknown_preprocessor_is_an_error():
    secret = dict(type='SecretPreprocessor')
    with pytest.raises(ValueError, match="teacher's data_preprocessor SecretPreprocessor"):
        distill(teacher=pspnet(8, 16, data_preprocessor=secret))
    with pytest.raises(ValueError, match="student's data_preprocessor SecretPreprocessor"):
        distill(student=pspnet(data_preprocessor=secret))


@MODELS.register_module(force=True)
class FourChannels(ImgDataPreprocessor):
    """Normalises images of four channels, which MMEngine's own refuses to."""

    def __init__(self):
        super().__init__(mean=[1.0] * 3, std=[1.0] * 3)
        self.mean = torch.ones(4, 1, 1)


def test_images_of_another_number_of_channels_are_an_error():
    student = pspnet(data_preprocessor=preprocessor(**IMAGENET))
    with pytest.raises(ValueError, match="3 channels.*teacher's 4"):
        distill(student=student, teacher=pspnet(8, 16, data_preprocessor=dict(type='FourChannels')))


def test_std_of_zero_is_an_error():
    zero = preprocessor(mean=[0.0] * 3, std=[1.0, 0.0, 1.0])
    with pytest.raises(ValueError, match="teacher's std.*must not contain 0"):
        distill(teacher=pspnet(8, 16, data_preprocessor=zero))


def test_samples_without_a_shape_are_taken_as_full():
    algorithm = distill(
        student=pspnet(data_preprocessor=preprocessor(**IMAGENET)),
        teacher=pspnet(8, 16, data_preprocessor=preprocessor(**CAFFE)),
    )
    unknown = [SegDataSample(gt_sem_seg=s.gt_sem_seg) for s in samples()]
    expected, losses = step(algorithm), step(algorithm, data_samples=unknown)
    name = 'distill.loss_cad_decode_head.bottleneck'
    assert torch.equal(losses[name], expected[name])
