"""What the configs of student and teacher import is imported wherever the distillation is used.

Public source: open-mmlab/mmsegmentation#3582, open-mmlab/mmyolo#738 and #984 (a backbone of one's own,
registered by ``custom_imports``).
"""

import json
import os
import subprocess
import sys

import pytest
import torch
from calling import call
from helpers import pair, pspnet
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from zoo import ROOT

from rawkd_mm.training import inline_models, join_imports, student_config, teacher_config

sys.path.insert(0, str(ROOT / 'tools'))
import dump_config  # noqa: E402
import make_distill_config  # noqa: E402

BACKBONE = """
from mmseg.models.backbones import ResNetV1c
from mmseg.registry import MODELS

@MODELS.register_module(force=True)
class {name}(ResNetV1c):
    pass
"""

# The student's custom_imports and the teacher's, in the ways in which MMEngine takes them.
SPELLINGS = {
    'lists': (
        dict(imports=['their_student'], allow_failed_imports=False),
        dict(imports=['their_teacher'], allow_failed_imports=False),
    ),
    'strings': (dict(imports='their_student'), dict(imports='their_teacher')),
    'lenient': (
        dict(imports=['their_student', 'not_there'], allow_failed_imports=True),
        dict(imports='their_teacher'),
    ),
    'with us': (
        dict(imports=['rawkd_mm', 'their_student']),
        dict(imports=['their_teacher', 'rawkd_mm'], allow_failed_imports=True),
    ),
}


@pytest.mark.parametrize(
    ('given', 'expected'),
    [
        ((None, None), ([], False)),
        ((dict(imports=None), dict(imports=[])), ([], False)),
        ((dict(imports='a'), None), (['a'], False)),
        ((dict(imports=['a', 'b']), dict(imports='b')), (['a', 'b'], False)),
        ((dict(imports='a', allow_failed_imports=True), dict(imports=['b'])), (['a', 'b'], True)),
    ],
)
def test_join_imports(given, expected):
    assert join_imports(*given) == dict(imports=expected[0], allow_failed_imports=expected[1])


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A project whose models have backbones of their own, each in a module of its own."""
    folder = tmp_path_factory.mktemp('project')
    for role in ('student', 'teacher'):
        name = f'Their{role.title()}'
        (folder / f'their_{role}.py').write_text(BACKBONE.format(name=name))
    sys.path.insert(0, str(folder))
    for spelling, both in SPELLINGS.items():
        for role, imports, model in zip(('student', 'teacher'), both, (pspnet(), pspnet(8, 16))):
            model['backbone']['type'] = f'Their{role.title()}'
            content = dict(
                model=model,
                default_scope='mmseg',
                custom_imports=imports,
                optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01)),
                # never loaded, but without a config is none of a training
                train_dataloader=dict(batch_size=2, dataset=dict(type='BaseSegDataset')),
                train_cfg=dict(type='IterBasedTrainLoop', max_iters=1),
            )
            (folder / f'{role}_{spelling}.py').write_text(Config(content).pretty_text)
    cfg = Config.fromfile(folder / 'teacher_lists.py')
    with DefaultScope.overwrite_default_scope('mmseg'):
        torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), folder / 'teacher.pth')
    yield folder
    sys.path.remove(str(folder))


def hand_written(folder, spelling):
    """A distillation that names both by their files."""
    content = dict(
        default_scope='mmseg',
        custom_imports=dict(imports=['rawkd_mm']),
        model=dict(
            type='FrozenTeacherDistill',
            architecture=dict(cfg_path=str(folder / f'student_{spelling}.py')),
            teacher=dict(cfg_path=str(folder / f'teacher_{spelling}.py')),
            teacher_ckpt=str(folder / 'teacher.pth'),
            distiller=dict(type='FeatureDistiller', loss=dict(type='CADLoss'), pairs=[pair()]),
        ),
    )
    return Config(content)


IN_A_NEW_PROCESS = """
import json, os, sys
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
found = {}
for number, path in enumerate(sys.argv[1:]):
    # Each in a process that has imported none of the project's modules, and the first, which is
    # made_lists.py, not even rawkd_mm: that takes seconds.
    if number == 1:
        import rawkd_mm
    read, write = os.pipe()
    if os.fork() == 0:
        cfg = Config.fromfile(path)
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            model = MODELS.build(cfg.model)
        models = [getattr(model, n) for n in ('student', 'teacher') if hasattr(model, n)] or [model]
        os.write(write, json.dumps([type(m.backbone).__name__ for m in models]).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        found[path] = json.loads(pipe.read() or 'null')
    os.wait()
print('FOUND', json.dumps(found))
"""


@pytest.fixture(scope='module')
def in_new_processes(folder):
    """The backbones that new processes build from what the tools write, by file."""
    files = {}
    for spelling in SPELLINGS:
        made = folder / f'made_{spelling}.py'
        call(
            make_distill_config, '--method', 'cad', '-o', made, '--no-check',
            '--student', folder / f'student_{spelling}.py',
            '--teacher', folder / f'teacher_{spelling}.py',
            '--teacher-ckpt', folder / 'teacher.pth',
        )  # fmt: skip
        hand = folder / f'hand_{spelling}.py'
        cfg = hand_written(folder, spelling)
        hand.write_text(cfg.pretty_text)
        dumped = folder / f'dumped_{spelling}.py'
        call(dump_config, hand, dumped)
        reduced = {
            'student': folder / f'alone_{spelling}.py',
            'teacher': folder / f'their_teacher_{spelling}.py',
        }
        for role, reduce in (('student', student_config), ('teacher', teacher_config)):
            reduced[role].write_text(reduce(cfg).pretty_text)
        both = ['TheirStudent', 'TheirTeacher']
        files |= {made: both, hand: both, dumped: both}
        files |= {reduced['student']: both[:1], reduced['teacher']: both[1:]}
    done = subprocess.run(
        [sys.executable, '-c', IN_A_NEW_PROCESS, *map(str, files)],
        env={**os.environ, 'PYTHONPATH': os.pathsep.join((str(ROOT), str(folder)))},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    (line,) = [x for x in done.stdout.splitlines() if x.startswith('FOUND')] or [done.stderr]
    return {str(k): v for k, v in files.items()}, json.loads(line.removeprefix('FOUND'))


@pytest.mark.parametrize('spelling', SPELLINGS)
def test_built_in_a_new_process(in_new_processes, spelling):
    """Made, written by hand, dumped, the student alone, the teacher: all build."""
    expected, found = in_new_processes
    files = [name for name in expected if name.endswith(f'_{spelling}.py')]
    assert len(files) == 5
    assert {name: found[name] for name in files} == {name: expected[name] for name in files}


@pytest.mark.parametrize('spelling', SPELLINGS)
def test_what_is_written(in_new_processes, folder, spelling):
    """Every module once; a failed import is allowed where one of the configs allows it."""
    lenient = any(x.get('allow_failed_imports') for x in SPELLINGS[spelling])
    for name in ('made', 'dumped'):
        imports = Config.fromfile(folder / f'{name}_{spelling}.py').custom_imports
        assert {'rawkd_mm', 'their_student', 'their_teacher'} <= set(imports['imports'])
        assert len(set(imports['imports'])) == len(imports['imports'])
        assert imports['allow_failed_imports'] is lenient


def test_nothing_is_added_without_need():
    cfg = Config(dict(model=dict(architecture=pspnet(), teacher=pspnet(), distiller=dict())))
    assert 'custom_imports' not in inline_models(cfg)
    assert 'custom_imports' not in student_config(cfg)
