"""Files that are no checkpoint of the teacher: each is refused with what it is."""

import functools
import http.server
import os
import pickle
import re
import threading
import zipfile
from contextlib import contextmanager

import pytest
import torch
from helpers import BOTTLENECK, build, distill, pair, pspnet, run, upernet_swin
from mmengine.logging import HistoryBuffer
from mmengine.optim import OneCycleLR

from rawkd_mm import compat
from rawkd_mm.training.checkpoint import CheckpointError
from rawkd_mm.training.checkpoint_loading import HARMLESS, load_checkpoint, weights_only

HTML = b'\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>'
LFS = b'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n'
DENIED = b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code></Error>'
LOGITS = 'decode_head.conv_seg'
_RAN = []


def _run_by_a_pickle(what):
    _RAN.append(what)
    return what


class RunsCode:
    def __reduce__(self):
        return _run_by_a_pickle, ('code',)


NAME = f'{_run_by_a_pickle.__module__}._run_by_a_pickle'


@functools.cache
def state(width=8, channels=16, classes=5):
    torch.manual_seed(5)
    return dict(build(pspnet(width, channels, classes)).state_dict())


def saved(path, content, **kwargs):
    torch.save(content, path, **kwargs)
    return path


def whole(path, **kwargs):
    return saved(path, dict(state_dict=state(), meta={}), **kwargs)


def written(path, data):
    path.write_bytes(data)
    return path


def cut(path, share, **kwargs):
    data = whole(path, **kwargs).read_bytes()
    return written(path, data[: int(len(data) * share)])


def damaged(path):
    data = bytearray(whole(path).read_bytes())
    begin = data.index(b'data.pkl') + 200
    data[begin : begin + 300] = bytes(300)
    return written(path, bytes(data))


def near(path):
    whole(path.with_name('teacher_40k.pth'))
    return path.with_name('teacher_4k.pth')


def folder(path):
    path.mkdir()
    whole(path / 'iter_4000.pth')
    return path


def pickled(path, protocol):
    with open(path, 'wb') as file:
        pickle.dump(dict(state_dict=RunsCode()), file, protocol=protocol)
    return path


def other_zip(path):
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('images/1.png', b'no weights')
    return path


def with_code(path, **kwargs):
    return saved(path, dict(state_dict=state(), hooks=RunsCode()), **kwargs)


OLD = dict(_use_new_zipfile_serialization=False)
CODE = rf'is not loaded: .*asks for .*{re.escape(NAME)}.*RAWKD_MM_TRUST_CHECKPOINTS=1'
UNREADABLE = r'teacher\.pth. cannot be read as a checkpoint'

BAD_FILES = [
    pytest.param(lambda p: p, "pth' does not exist .*nothing of a similar name", id='missing'),
    pytest.param(near, r"closest names there are \['teacher_40k.pth'\]", id='misspelt'),
    pytest.param(
        lambda p: p.parent / 'runs' / p.name, 'its folder does not exist', id='missing folder'
    ),
    pytest.param(folder, 'is a folder; give .*iter_4000.pth', id='folder'),
    pytest.param(lambda p: written(p, b''), r'is empty \(0 bytes\): copy or', id='empty file'),
    pytest.param(lambda p: cut(p, 0.5), r'was cut off \(\d+ bytes', id='cut in the middle'),
    pytest.param(lambda p: cut(p, 0.999), r'was cut off \(\d+ bytes', id='cut at the end'),
    pytest.param(lambda p: cut(p, 0.001), r'was cut off \(\d+ bytes', id='only the beginning'),
    pytest.param(lambda p: cut(p, 0.5, **OLD), UNREADABLE, id='old format, cut'),
    pytest.param(damaged, UNREADABLE, id='damaged within'),
    pytest.param(lambda p: written(p, HTML), r'is a web page \(it begins with', id='HTML page'),
    pytest.param(lambda p: written(p, DENIED), 'is a web page .*login, error', id='XML error page'),
    pytest.param(lambda p: written(p, LFS), 'Git LFS pointer.*git lfs pull', id='LFS pointer'),
    pytest.param(lambda p: written(p, b'\x89PNG\r\n' * 50), UNREADABLE, id='image'),
    pytest.param(lambda p: written(p, b'model = dict()\n'), UNREADABLE, id='text file'),
    pytest.param(other_zip, UNREADABLE, id='zip of something else'),
    pytest.param(with_code, CODE, id='code, torch.save'),
    pytest.param(lambda p: with_code(p, **OLD), CODE, id='code, old format'),
    pytest.param(lambda p: pickled(p, 2), CODE, id='code, plain pickle'),
    pytest.param(lambda p: pickled(p, 4), CODE, id='code, newer pickle'),
    pytest.param(
        lambda p: saved(p, build(pspnet(8, 16))),
        r'is not loaded.*asks for .*EncoderDecoder.*state_dict',
        id='pickled model',
    ),
    pytest.param(lambda p: saved(p, [state()]), 'is no checkpoint: .*got list', id='list'),
    pytest.param(lambda p: saved(p, dict(meta={})), 'is no checkpoint|No state', id='no weights'),
    pytest.param(
        lambda p: saved(p, dict(state_dict=build(upernet_swin()).state_dict())),
        r'does not fit EncoderDecoder: .*are missing.*it begins with backbone\.patch_embed',
        id='another architecture',
    ),
    pytest.param(
        lambda p: saved(p, dict(state_dict=state(4, 8))),
        r'0 are missing and \d+ have another shape.*belongs to the teacher.s config',
        id='another width',
    ),
]


@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
@pytest.mark.parametrize(('make', 'message'), BAD_FILES)
def test_bad_file_is_refused_with_what_it_is(tmp_path, make, message):
    path = str(make(tmp_path / 'teacher.pth'))
    with pytest.raises((CheckpointError, FileNotFoundError)) as error:
        distill(teacher_ckpt=path)
    assert re.search(message, str(error.value), re.DOTALL), str(error.value)
    assert path in str(error.value)
    assert _RAN == []


# Classes


@pytest.mark.parametrize(
    ('meta', 'told'),
    [
        pytest.param({}, 'another number of classes', id='classes by shape'),
        pytest.param(
            dict(dataset_meta=dict(classes=tuple('abcdefg'))), '7 classes', id='classes by name'
        ),
        pytest.param(dict(CLASSES=tuple('abcdefg')), '7 classes', id='classes of older versions'),
    ],
)
def test_another_number_of_classes_is_told_from_another_architecture(tmp_path, meta, told):
    path = saved(tmp_path / 'teacher.pth', dict(state_dict=state(classes=7), meta=meta))
    with pytest.raises(CheckpointError) as error:
        distill(pair(LOGITS), teacher_ckpt=str(path))
    message = str(error.value)
    assert f"The rest fits: it was trained with {told}, and the teacher's config has 5." in message
    assert 'decode_head.conv_seg.weight: (7, 16, 1, 1), the model has (5, 16, 1, 1)' in message
    # the feature before the classifier does not need it
    distill(pair(BOTTLENECK), teacher_ckpt=str(path))


def test_another_width_of_the_classifier_is_no_matter_of_classes(tmp_path):
    content = dict(state(), **{'decode_head.conv_seg.weight': torch.zeros(5, 12, 1, 1)})
    path = saved(tmp_path / 'teacher.pth', content)
    with pytest.raises(CheckpointError) as error:
        distill(pair(LOGITS), teacher_ckpt=str(path))
    assert 'classes' not in str(error.value)


# Downloads


@contextmanager
def served(folder):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_address[1]}'
        server.shutdown()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    return tmp_path / 'cache'


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        pytest.param(lambda p: p, 'could not be downloaded: .*404', id='URL, not found'),
        pytest.param(lambda p: written(p, HTML), 'is a web page', id='URL, HTML page'),
        pytest.param(with_code, CODE, id='URL, code'),
        pytest.param(lambda p: cut(p, 0.5), 'was cut off', id='URL, cut'),
    ],
)
def test_bad_download(tmp_path, cache, make, message):
    (tmp_path / 'served').mkdir()
    make(tmp_path / 'served' / 'teacher.pth')
    with served(tmp_path / 'served') as url, pytest.raises(CheckpointError) as error:
        distill(teacher_ckpt=f'{url}/teacher.pth')
    assert re.search(message, str(error.value), re.DOTALL), str(error.value)
    assert _RAN == []


def test_nobody_answers(cache):
    with pytest.raises(CheckpointError, match='could not be downloaded.*give its path'):
        distill(teacher_ckpt='http://127.0.0.1:9/teacher.pth')


def test_unknown_name_of_mmengines():
    with pytest.raises(CheckpointError, match="no weights of the name 'resnet19_v1c'"):
        distill(teacher_ckpt='open-mmlab://resnet19_v1c')


# What may be in a checkpoint


def test_checkpoint_of_a_training_is_data(tmp_path):
    """With the logs and numpy values of MMEngine's message hub, EMA, schedule and optimizer."""
    run(
        distill(),
        tmp_path,
        iters=2,
        hooks=[dict(type='EMAHook')],
        param_scheduler=[dict(type='PolyLR', power=0.9, begin=0, end=8, by_epoch=False)],
    )
    path = str(tmp_path / 'iter_2.pth')
    checkpoint = load_checkpoint(path)
    logs = checkpoint['message_hub']['log_scalars']
    assert all(isinstance(values, HistoryBuffer) for values in logs.values())
    history, _ = logs['train/loss'].data
    assert len(history) == 2 and logs['train/loss'].mean() == pytest.approx(history.mean())
    assert checkpoint['meta']['iter'] == 2
    with weights_only():  # as the tools resume
        assert torch.load(path)['optimizer'].keys() == checkpoint['optimizer'].keys()
    assert load_checkpoint(str(with_history(tmp_path)))['x'].mean() == 2


@pytest.mark.parametrize('strategy', ['cos', 'linear'])
def test_the_state_of_a_one_cycle_schedule_is_no_reason_to_refuse(tmp_path, strategy):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = OneCycleLR(optimizer, eta_max=1.0, total_steps=4, anneal_strategy=strategy)
    state = schedule.state_dict()
    path = tmp_path / 'schedule.pth'
    torch.save(dict(param_schedulers=[state]), path)
    (loaded,) = load_checkpoint(str(path))['param_schedulers']
    assert loaded['anneal_func'] is state['anneal_func']
    assert loaded['_global_step'] == state['_global_step']


def with_history(folder):
    return saved(folder / 'history.pth', dict(x=HistoryBuffer([1.0, 3.0], [1, 1])), **OLD)


class Reaches:
    """A pickle that asks getattr for something else than a HistoryBuffer's own statistics."""

    def __init__(self, name):
        self.name = name

    def __reduce__(self):
        return getattr, (HistoryBuffer, self.name)


@pytest.mark.parametrize('name', ['update', '__init__', '__subclasses__'])
def test_getattr_reaches_nothing_else(tmp_path, name):
    path = saved(tmp_path / 'x.pth', dict(state_dict=Reaches(name)))
    with pytest.raises(CheckpointError, match='cannot be read as a checkpoint'):
        load_checkpoint(str(path))


@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
@pytest.mark.parametrize('kwargs', [{}, OLD])
def test_older_torch_is_as_strict(tmp_path, monkeypatch, kwargs):
    """The way for torch before 2.6, which cannot be told what to allow; it works on any."""
    monkeypatch.setattr(compat.torch, 'has_safe_globals', lambda: False)
    path = tmp_path / 'x.pth'
    whole(path, **kwargs)
    loaded = load_checkpoint(str(path))['state_dict']
    assert all(torch.equal(loaded[name], value) for name, value in state().items())
    history = load_checkpoint(str(with_history(tmp_path)))['x']
    assert history.mean() == 2
    with pytest.raises(CheckpointError, match=CODE):
        load_checkpoint(str(with_code(path, **kwargs)))
    for protocol in (2, 4):
        with pytest.raises(CheckpointError, match=CODE):
            load_checkpoint(str(pickled(path, protocol)))
    assert _RAN == []


def test_trust_is_asked_for_explicitly(tmp_path, monkeypatch):
    path = str(with_code(tmp_path / 'teacher.pth'))
    for value in ('0', ''):
        monkeypatch.setenv('RAWKD_MM_TRUST_CHECKPOINTS', value)
        with pytest.raises(CheckpointError, match=CODE):
            distill(teacher_ckpt=path)
    monkeypatch.setenv('RAWKD_MM_TRUST_CHECKPOINTS', '1')
    try:
        distill(teacher_ckpt=path)
        assert _RAN == ['code']
    finally:
        _RAN.clear()


def test_what_torch_was_told_to_allow_counts_and_stays(tmp_path):
    if not compat.torch.has_safe_globals():
        pytest.skip('this torch cannot be told')
    path = str(with_code(tmp_path / 'x.pth'))
    before = set(torch.serialization.get_safe_globals())
    try:
        with torch.serialization.safe_globals([_run_by_a_pickle]):
            assert load_checkpoint(path)['hooks'] == 'code'
            assert _run_by_a_pickle in torch.serialization.get_safe_globals()
    finally:
        _RAN.clear()
    assert set(torch.serialization.get_safe_globals()) == before
    assert torch.load.__module__ == 'torch.serialization'


def test_nothing_that_is_allowed_runs_what_it_is_given():
    """No function that calls, imports, opens or evaluates is on the list."""
    names = {name.rpartition('.')[2] for name in HARMLESS}
    assert not names & {'eval', 'exec', 'open', '__import__', 'system', 'apply', 'ObjectDType'}
    assert HARMLESS['builtins.getattr'] is not getattr
    with pytest.raises(pickle.UnpicklingError, match='getattr'):
        HARMLESS['builtins.getattr'](os, 'system')
