"""The page docs/distil_your_own_model.md: its commands, as they stand there."""

import json
import os
import re
import subprocess

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from tool_project import ROOT

from rawkd_mm.training import load_config


def blocks():
    """The shell commands of the page."""
    page = (ROOT / 'docs/distil_your_own_model.md').read_text()
    found = re.findall(r'```bash\n(.*?)```', page, re.DOTALL)
    assert len(found) == page.count('```') // 2
    return found


def clone(folder):
    """A folder that looks like a checkout."""
    for name in ('configs', 'tools', 'rawkd_mm'):
        (folder / name).symlink_to(ROOT / name)
    return folder


def run(python, folder, commands):
    """Run shell commands; their ``python`` has everything imported already."""
    environment = {
        **os.environ,
        'PATH': f'{python.parent}:{os.environ["PATH"]}',
        'OMP_NUM_THREADS': '1',
        **dict(ITERS='4', TRAIN='32', VAL='8'),
    }
    done = subprocess.run(
        ['bash', '-euo', 'pipefail', '-c', '\n'.join(commands)],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def split_at_detectors():
    found = blocks()
    at = next(i for i, block in enumerate(found) if 'my_pair/gfl.py' in block)
    schedule = next(block for block in found if 'my_pair/schedule.py <<' in block)
    return found[:at], [found[0], schedule, *found[at:]]


def check_training(folder, log, name):
    assert (folder / f'work_dirs/{name}/iter_4.pth').is_file()
    (file,) = (folder / f'work_dirs/{name}').glob('*/vis_data/scalars.json')
    entries = [json.loads(line) for line in file.read_text().splitlines()]
    assert any('distill.' in key for entry in entries for key in entry)
    assert any(key.endswith('/cos_theta') for entry in entries for key in entry)


@pytest.mark.slow
def test_segmentors(tmp_path, fast_python):
    log = run(fast_python, clone(tmp_path), split_at_detectors()[0])
    assert 'decode_head.sep_bottleneck' in log and '1x1 convolution 32 -> 64' in log
    assert 'One iteration on 2 made-up images of 48x48 ran' in log
    assert 'WARNING' not in log.partition('Features, of an image')[2].partition('is written')[0]
    check_training(tmp_path, log, 'my_cad')
    assert (tmp_path / 'work_dirs/my_test/test_metrics.json').is_file()


@pytest.mark.slow
@pytest.mark.usefixtures('mmdet')
def test_detectors(tmp_path, fast_python):
    log = run(fast_python, clone(tmp_path), split_at_detectors()[1])
    assert '1x1 convolution 32 -> 48' in log and 'neck[2]' in log
    check_training(tmp_path, log, 'my_fcos_cad')


def test_its_config_trains_after_it_was_moved(tmp_path, fast_python):
    """The quick half: random weights in the place of a trained teacher's, and one more training."""
    found = blocks()
    folder = clone(tmp_path)
    written = [b for b in found if 'my_pair/teacher.py <<' in b or 'digit_scenes.py --size 48' in b]
    run(fast_python, folder, [found[0], *written])
    cfg = load_config(str(folder / 'my_pair/teacher.py'))
    (folder / 'work_dirs/my_teacher').mkdir(parents=True)
    with DefaultScope.overwrite_default_scope('mmseg'):
        state = MODELS.build(cfg.model).state_dict()
    torch.save(dict(state_dict=state), folder / 'work_dirs/my_teacher/iter_4.pth')
    (make,) = [b for b in found if 'make_distill_config.py' in b and 'my_pair/cad.py' in b]
    (train,) = [b for b in found if 'train.py my_pair/cad.py' in b]
    move = 'mkdir -p elsewhere\nmv my_pair/cad.py elsewhere\nrm -r my_pair\n'
    log = run(fast_python, folder, [make, move, train.replace('my_pair', 'elsewhere')])
    assert 'my_pair/cad.py is written' in log
    check_training(folder, log, 'my_cad')
