"""The page docs/foundation_model_teacher.md: its commands, as they stand there."""

import os
import re
import subprocess

import pytest
import torch
from tool_project import ROOT

PAGE = ROOT / 'docs/foundation_model_teacher.md'


def test_its_commands(tmp_path, fast_python):
    timm = pytest.importorskip('timm')
    # what follows says how the page's tables were made
    guide, heading, _ = PAGE.read_text().partition('\n## Which loss\n')
    blocks = re.findall(r'```bash\n(.*?)```', guide, re.DOTALL)
    assert heading and len(blocks) == guide.count('```') // 2 == 6
    for name in ('configs', 'tools', 'rawkd_mm'):
        (tmp_path / name).symlink_to(ROOT / name)
    torch.manual_seed(0)
    torch.save(timm.create_model('test_vit').state_dict(), tmp_path / 'vit.pth')
    small = dict(ITERS='4', TRAIN='16', VAL='8', TEACHER='timm::test_vit', TEACHER_CKPT='vit.pth')
    done = subprocess.run(
        ['bash', '-euo', 'pipefail', '-c', '\n'.join(blocks)],
        cwd=tmp_path,
        env={
            **os.environ,
            'PATH': f'{fast_python.parent}:{os.environ["PATH"]}',
            'OMP_NUM_THREADS': '1',
            **small,
        },
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert 'Strides that differ by a factor of 4.0' in done.stdout
    assert 'model.teacher_input=dict(scale=4)' in done.stdout
    assert (tmp_path / 'work_dirs/my_foundation/report.html').is_file()
    assert (tmp_path / 'work_dirs/my_foundation_test/test_metrics.json').is_file()
    unlabelled = (tmp_path / 'my_foundation/unlabelled.py').read_text()
    assert 'UnlabelledImagesHook' in unlabelled


def test_the_default_teacher_exists():
    timm = pytest.importorskip('timm')
    (name,) = re.findall(r'TEACHER:-timm::([\w.]+)}', PAGE.read_text())
    assert timm.is_model_pretrained(name)
