"""A small RetinaNet with LAD, trained by two processes, tested by our tool and by mmdet's own."""

import json
import pickle
import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from tool_project import ROOT, TOOLS

from rawkd_mm.analysis import collect_results
from rawkd_mm.training import load_config

sys.path.insert(0, str(TOOLS / 'dataset_converters'))

from digit_scenes_drawing import DigitScenesOptions  # noqa: E402
from digit_scenes_generator import generate  # noqa: E402

QUICKSTART = ROOT / 'configs/quickstart'
STUDENT = 'retinanet_r18-w8_1xb16-3k_digit-scenes-64x64.py'
TEACHER = 'retinanet_r18-w32_1xb16-3k_digit-scenes-64x64.py'
ITERATIONS = 60

# The student learns eight images by heart: a few iterations give more than a few detections.
# GN, as nothing may depend on how a batch is split over processes.
CONFIG = f"""
_base_ = '{QUICKSTART / STUDENT}'
model = dict(backbone=dict(norm_cfg=dict(type='GN', num_groups=4)))
data = dict(data_root='digits', ann_file='coco/train.json', data_prefix=dict(img='images/train'))
train_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False, dataset=data)
val_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=data)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file='digits/coco/train.json')
test_evaluator = val_evaluator
optim_wrapper = dict(optimizer=dict(lr=5e-3))
param_scheduler = [
    dict(type='PolyLR', power=0.9, eta_min=0, begin=0, end={ITERATIONS}, by_epoch=False)]
train_cfg = dict(max_iters={ITERATIONS}, val_interval={ITERATIONS})
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval={ITERATIONS}))
"""

DISTILLATION = f"""
_base_ = './detector.py'
model = dict(
    _delete_=True,
    type='FrozenTeacherDistill',
    architecture=_base_.model,
    teacher=dict(cfg_path='{QUICKSTART / TEACHER}', pretrained=False),
    teacher_ckpt='runs/detector_teacher.pth',
    distiller=dict(
        type='FeatureDistiller',
        loss=dict(type='LADLoss', loss_weight=3.0),
        pairs=[dict(student=f'neck[{{i}}]', teacher=f'neck[{{i}}]') for i in range(3)]))
"""

# without rawkd_mm: for mmdet the checkpoint is a RetinaNet
PLAIN = """
_base_ = './detector.py'
custom_imports = None
"""


def make_detector(folder):
    """Write the configs, the images and the weights of a teacher."""
    generate(folder / 'digits', DigitScenesOptions(train=8, val=1))
    texts = dict(detector=CONFIG, detector_lad=DISTILLATION, detector_plain=PLAIN)
    for name, text in texts.items():
        (folder / f'{name}.py').write_text(text)
    with DefaultScope.overwrite_default_scope('mmdet'):
        teacher = MODELS.build(load_config(str(QUICKSTART / TEACHER)).model)
    (folder / 'runs').mkdir(exist_ok=True)
    torch.save(teacher.state_dict(), folder / 'runs/detector_teacher.pth')


@pytest.fixture(scope='module')
def log(mmdet, project, once):
    """The log of the training."""
    once('detector', lambda: make_detector(project.folder))
    return project.run(
        TOOLS / 'dist_train.sh', 'detector_lad.py', '2', '--work-dir', 'runs/detector'
    )


@pytest.fixture(scope='module')
def checkpoint(log):
    return f'runs/detector/iter_{ITERATIONS}.pth'


def test_two_processes_train_all_levels(project, log):
    assert 'No GPU: the processes talk through gloo' in log
    entries = [entry for entry in project.scalars('runs/detector') if 'loss' in entry]
    names = {f'distill.loss_lad_neck.{i}' for i in range(3)} | {
        'student.loss_cls', 'student.loss_bbox'
    }  # fmt: skip
    assert names < set(entries[0])
    for name in names:
        assert 0 < entries[-1][name] < entries[0][name], name


@pytest.fixture(scope='module')
def detections(project, checkpoint):
    """What our tool finds with the config of the distillation, and what it dumps."""
    project.run(
        TOOLS / 'test.py', 'detector_lad.py', checkpoint, '--work-dir', 'runs/det_ours',
        '--out', 'runs/ours.pkl', '--cfg-options', 'model.teacher_ckpt=nowhere.pth',
    )  # fmt: skip
    return project.metrics('runs/det_ours'), read_detections(project, 'runs/ours.pkl')


def read_detections(project, file):
    with (project.folder / file).open('rb') as stream:
        dumped = pickle.load(stream)
    return {image['img_id']: image['pred_instances'] for image in dumped}


def test_detections_are_dumped(project, detections):
    metrics, found = detections
    assert sorted(found) == list(range(1, 9))
    assert all(len(image['scores']) for image in found.values())
    boxes = torch.cat([image['bboxes'] for image in found.values()])
    assert boxes.min() >= 0 and boxes.max() <= 64
    (validation,) = [e for e in project.scalars('runs/detector') if 'coco/bbox_mAP' in e]
    assert metrics['coco/bbox_mAP'] == validation['coco/bbox_mAP'] > 0.03


def test_mmdets_own_tool_finds_the_same(project, checkpoint, detections):
    """AP and every single detection, with the plain config of the student."""
    project.run_mmdet(
        'test.py', 'detector_plain.py', checkpoint, '--work-dir', 'runs/det_theirs',
        '--out', 'runs/theirs.pkl', fresh=True,
    )  # fmt: skip
    (file,) = (project.folder / 'runs/det_theirs').glob('*/*.json')
    theirs = json.loads(file.read_text())
    ours, found = detections
    assert {name: theirs[name] for name in ours} == ours
    for image, expected in read_detections(project, 'runs/theirs.pkl').items():
        for name in ('bboxes', 'scores', 'labels'):
            assert torch.equal(found[image][name], expected[name]), (image, name)


def test_the_work_dir_is_no_row_of_the_papers_tables(project, checkpoint):
    """That of a real training: see test_collect_results.py for those which are."""
    folder, entry = collect_results.last_validation(project.folder / 'runs/detector')
    assert entry['step'] == ITERATIONS and entry['coco/bbox_mAP'] > 0
    assert Config.fromfile(folder / 'config.py').model.type == 'FrozenTeacherDistill'
    paper = json.loads(collect_results.PAPER.read_text())
    with pytest.raises(
        collect_results.NoRowError, match=r'its student is a RetinaNet \(ResNet-18\)'
    ):
        collect_results.read_run(project.folder / 'runs/detector', paper)
