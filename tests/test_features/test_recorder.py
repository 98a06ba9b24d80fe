"""The recorder: what it records, and that it refuses to give anything else."""

import copy

import pytest
import torch
from helpers import Watch, build, distill, images, pair, pspnet, samples, total
from mmrazor.registry import TASK_UTILS
from torch import nn

from rawkd_mm.features import FeatureCapture, FeatureRecorder, FeatureSource, dry_run


@pytest.mark.parametrize(
    ('text', 'module', 'index', 'is_input', 'label'),
    [
        ('neck', 'neck', None, False, 'neck'),
        ('decode_head.bottleneck', 'decode_head.bottleneck', None, False, 'decode_head.bottleneck'),
        ('backbone.layer4.1.bn2', 'backbone.layer4.1.bn2', None, False, 'backbone.layer4.1.bn2'),
        ('neck[0]', 'neck', 0, False, 'neck.0'),
        (
            'neck.fpn_convs.3.conv[12]',
            'neck.fpn_convs.3.conv',
            12,
            False,
            'neck.fpn_convs.3.conv.12',
        ),
        ('a-b_c', 'a-b_c', None, False, 'a-b_c'),
        ('head.dropout:input', 'head.dropout', None, True, 'head.dropout.input'),
        ('head:input[1]', 'head', 1, True, 'head.input.1'),
    ],
)
def test_source_is_parsed(text, module, index, is_input, label):
    source = FeatureSource.parse(text)
    assert source == FeatureSource(module, index, is_input)
    assert source.label == label
    assert source.text == text


@pytest.mark.parametrize(
    'text',
    [
        '',
        ':input',
        'neck[0]:input',
        'neck:output',
        'neck[',
        'neck[]',
        'neck[-1]',
        'neck[a]',
        'a b',
        'neck[0].x',
        3,
        None,
    ],
)
def test_malformed_source_is_shown(text):
    with pytest.raises(ValueError, match='path of a module') as error:
        FeatureSource.parse(text)
    assert repr(text) in str(error.value)


class Several(nn.Module):
    """Modules that output a tuple, a list, a dict, one of them twice, and one never."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.pair = _Outputs(tuple)
        self.items = _Outputs(list)
        self.mapping = _Outputs(lambda x: {'x': x[0]})
        self.number = _Outputs(len)
        self.shared = nn.ReLU()
        self.idle = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = self.conv(x)
        self.pair(x)
        self.items(x)
        self.mapping(x)
        self.number(x)
        return self.shared(self.shared(x) + 1)


class _Outputs(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, x):
        return self.kind((x, x + 1))


def recorded(model, source, *inputs):
    recorder = FeatureRecorder(source)
    recorder.initialize(model)
    with recorder:
        model(*(inputs or (images(),)))
    return recorder


def test_records_the_output():
    model = Several()
    with Watch(model, 'conv') as watch:
        recorder = recorded(model, 'conv')
    assert torch.equal(recorder.get_record_data(), watch['conv'])
    assert recorder.get_record_data().requires_grad


def test_records_the_last_forward_only():
    model, recorder = Several(), FeatureRecorder('conv')
    recorder.initialize(model)
    for seed in (1, 2):
        with recorder:
            model(images(seed=seed))
        model(images(seed=9))  # outside of the context
    assert torch.equal(recorder.get_record_data(), model.conv(images(seed=2)))


@pytest.mark.parametrize('source', ['pair', 'items'])
@pytest.mark.parametrize('index', [0, 1])
def test_index_chooses_of_a_tuple(source, index):
    model = Several()
    expected = model.conv(images()) + index
    assert torch.equal(recorded(model, source).get_record_data(data_idx=index), expected)


@pytest.mark.parametrize(
    ('source', 'index', 'error', 'message'),
    [
        ('pair', None, TypeError, r"'pair' outputs a tuple of 2.*'pair\[0\]'"),
        ('items', None, TypeError, r"'items' outputs a list of 2.*'items\[0\]'"),
        ('pair', 2, IndexError, r"'pair' outputs 2 features.*0\.\.1, got 2"),
        ('conv', 0, TypeError, r"'conv' outputs a Tensor, not a tuple: leave out \[0\]"),
        ('mapping', None, TypeError, "'mapping' outputs a dict, not a tensor"),
        ('number', None, TypeError, "'number' outputs a int, not a tensor"),
        ('idle', None, RuntimeError, "'idle' produced no feature"),
        ('shared', None, RuntimeError, "'shared' produced 2 features in one forward"),
    ],
)
def test_refuses_what_is_no_single_feature(source, index, error, message):
    recorder = recorded(Several(), source)
    with pytest.raises(error, match=message):
        recorder.get_record_data(data_idx=index)


def test_has_one_record_only():
    with pytest.raises(IndexError, match='record_idx must be 0, got 1'):
        recorded(Several(), 'conv').get_record_data(record_idx=1)


@pytest.mark.parametrize(
    ('path', 'close'),
    [
        ('decode_head.botleneck', "'decode_head.bottleneck'"),
        ('decode_head.bottleneck.relu', "'decode_head.bottleneck"),
        ('backbone.layer4.2', "'backbone.layer4.1'"),
        ('head.bottleneck', "'decode_head.bottleneck'"),
        ('zzzzzzzz', "'backbone'"),
    ],
)
def test_missing_module_names_the_closest(path, close):
    with pytest.raises(ValueError, match=f"EncoderDecoder has no module '{path}'") as error:
        FeatureRecorder(path).initialize(build(pspnet()))
    assert close in str(error.value)


def test_is_a_recorder_type_of_mmrazor():
    recorder = TASK_UTILS.build(dict(type='FeatureRecorder', source='conv'))
    assert isinstance(recorder, FeatureRecorder)


class Overwriting(nn.Module):
    """Overwrites its convolution's output by an in-place module, always or in training only."""

    def __init__(self, inplace=True, training_only=False):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.relu = nn.ReLU(inplace=inplace)
        self.training_only = training_only

    def forward(self, x, data_samples=None, mode='tensor'):
        x = self.conv(x)
        return x if self.training_only and not self.training else self.relu(x)


def captured_by(model, path):
    """How the distiller records a feature, once it has been built."""
    return dry_run(model, (3, 32, 32), [FeatureSource(path)], 'student').capture


def capture_once(capture, model, *args, **kwargs):
    with capture.record(model) as recording:
        output = model(*args, **kwargs)
    return capture.features(recording, 'student')[capture.sources[0]], output


def test_overwriting_module_makes_it_keep_a_copy():
    model = Overwriting()
    capture = captured_by(model, 'conv')
    assert capture.copied == {'conv'}
    feature, output = capture_once(capture, model, images())
    output.sum().backward()
    assert torch.equal(feature, model.conv(images()))
    assert (feature < 0).any()


def test_nothing_is_copied_without_need():
    model = Overwriting(inplace=False)
    capture = captured_by(model, 'conv')
    assert not capture.copied
    outputs = []
    model.conv.register_forward_hook(lambda *args: outputs.append(args[-1]))
    feature, _ = capture_once(capture, model, images())
    assert feature is outputs[0]


def test_overwritten_only_in_training_is_an_error():
    model = Overwriting(training_only=True)
    capture = captured_by(model, 'conv')
    assert not capture.copied
    with pytest.raises(
        RuntimeError, match="student: the feature of 'conv' was overwritten in place"
    ):
        capture_once(capture, model, images())


def test_a_recorder_of_mmrazor_refuses_what_was_overwritten():
    with pytest.raises(RuntimeError, match="'conv' was overwritten in place"):
        recorded(Overwriting(), 'conv').get_record_data()


def test_no_hook_stays_behind_after_an_error():
    model = Several()
    capture = FeatureCapture((FeatureSource('conv'), FeatureSource('pair', 1)))
    with pytest.raises(RuntimeError, match='size'):
        capture_once(capture, model, images()[:, :2])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_one_capture_serves_several_models_at_once():
    model, twin = Several(), Several()
    capture = FeatureCapture((FeatureSource('conv'),))
    with capture.record(model) as first, capture.record(twin) as second:
        model(images())
        twin(images())
    found = [capture.features(x, 'student')[capture.sources[0]] for x in (first, second)]
    for feature, owner in zip(found, (model, twin)):
        assert torch.equal(feature, owner.conv(images()))


@pytest.mark.parametrize(
    'path',
    [
        'backbone.layer4.1.bn2',  # out += identity
        'backbone.layer4.1.conv2',
        'backbone.layer3.0.bn1',  # an in-place ReLU
        'backbone.layer3.0.downsample.1',
        'decode_head.bottleneck.bn',
        'decode_head.bottleneck',
    ],
)
def test_values_in_a_resnet_are_those_before_overwriting(path):
    model = build(pspnet()).train()
    capture = captured_by(model, path)
    twin = copy.deepcopy(model)
    with Watch(twin, path) as watch:
        torch.manual_seed(0)
        twin(images(), samples(), mode='loss')
    torch.manual_seed(0)
    feature, losses = capture_once(capture, model, images(), samples(), mode='loss')
    assert torch.equal(feature, watch[path])
    (total(losses) + feature.square().mean()).backward()
    assert all(p.grad.isfinite().all() for p in model.backbone.parameters())


def test_module_that_was_replaced_is_hooked_again():
    model, recorder = Several(), FeatureRecorder('conv')
    recorder.initialize(model)
    model.conv = nn.Conv2d(3, 5, 1)  # as convert_sync_batchnorm does
    with recorder:
        model_output = model.conv(images())
    assert torch.equal(recorder.get_record_data(), model_output)


def test_copy_of_a_model_records_its_own():
    model, recorder = Several(), FeatureRecorder('conv')
    recorder.initialize(model)
    twin, other = copy.deepcopy((model, recorder))
    nn.init.zeros_(twin.conv.weight)
    with recorder, other:
        model(images())
        twin(images())
    assert torch.equal(recorder.get_record_data(), model.conv(images()))
    assert torch.equal(other.get_record_data(), twin.conv(images()))


class Adds(nn.Module):
    """Adds to what it is given, in place, after it was given it."""

    def forward(self, x, others=()):
        return x.add_(1)


def test_an_input_is_what_a_module_is_given():
    model = nn.Sequential(nn.Identity(), nn.ReLU())
    recorder = FeatureRecorder('1', is_input=True)
    recorder.initialize(model)
    image = torch.tensor([-1.0, 2.0])
    with recorder:
        model(image)
    assert recorder.get_record_data() is image
    with pytest.raises(TypeError, match=r"'1' is given a Tensor, not a tuple: leave out \[0\]"):
        recorder.get_record_data(data_idx=0)


def test_an_input_that_the_module_overwrites_is_refused():
    model = nn.Sequential(nn.Identity(), Adds())
    recorder = FeatureRecorder('1', is_input=True)
    recorder.initialize(model)
    with recorder:
        model(torch.zeros(2))
    with pytest.raises(RuntimeError, match='overwritten in place'):
        recorder.get_record_data()


def test_a_module_that_is_given_nothing_by_position_is_refused():
    class Calls(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Adds()

        def forward(self, x):
            return self.inner(x=x)

    model = Calls()
    recorder = FeatureRecorder('inner', is_input=True)
    recorder.initialize(model)
    with recorder:
        model(torch.zeros(2))
    with pytest.raises(TypeError, match="'inner' is given a NoneType, not a tensor"):
        recorder.get_record_data()


def test_head_that_is_called_by_its_methods():
    """``decode_head`` did run, by ``decode_head.forward(...)``, which no hook sees: say so."""
    with pytest.raises(RuntimeError) as error:
        distill(pair('decode_head'))
    message = str(error.value)
    assert "'decode_head' produced no feature: nothing called it as a module" in message
    assert 'called one of its methods (forward, loss, predict)' in message
    suggested = message.partition('such as ')[2].partition(', or')[0].replace("'", '').split(', ')
    assert 'decode_head.bottleneck' in suggested and 'decode_head.conv_seg' in suggested
    distill(pair('decode_head.conv_seg'))


def test_module_that_did_not_run():
    """A single layer has no methods by which a model would call it."""
    recorder = FeatureRecorder('decode_head.conv_seg')
    recorder.initialize(build(pspnet()))
    with recorder, pytest.raises(RuntimeError, match=r'no feature: it was not called in this forw'):
        recorder.get_record_data()
