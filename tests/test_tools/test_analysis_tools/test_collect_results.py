"""The tables of COCO, from work dirs as a finished training of the zoo leaves them."""

import copy
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from rawkd_mm.training import inline_models, load_config

ROOT = Path(__file__).resolve().parents[3]
TOOL = ROOT / 'tools/analysis_tools/collect_results.py'
RETINANET = 'retinanet-x101_retinanet-r50_8xb2-2x_coco'
MASK = 'cascade-mask-rcnn-x101_mask-rcnn-r50_8xb2-2x_coco'

read = cache(lambda config: load_config(str(ROOT / 'configs' / f'{config}.py')))

pytestmark = pytest.mark.usefixtures('mmdet')


def leave(work_dir, config, bbox, segm=None, epochs=24, inline=False, session=1, **options):
    """What MMEngine leaves in a work dir: the config and the log of a session."""
    cfg = copy.deepcopy(read(config))
    cfg.merge_from_dict(options)
    cfg = inline_models(cfg) if inline else cfg
    folder = work_dir / f'20260101_00000{session}' / 'vis_data'
    folder.mkdir(parents=True)
    # cfg.dump() formats it, too, which takes a second
    text = '\n'.join(f'{key} = {value!r}' for key, value in cfg.to_dict().items())
    (folder / 'config.py').write_text(text)
    lines = [dict(loss=1.5, lr=0.01, epoch=1, step=50)]
    for epoch in range(1, epochs + 1):
        # worse before, so that it matters which one is taken
        values = {
            f'coco/{kind}_{name}': value / 100 if epoch == epochs else value / 200
            for kind, given in (('bbox', bbox), ('segm', segm))
            for name, value in zip(('mAP', 'mAP_s', 'mAP_m', 'mAP_l'), given or ())
        }
        lines.append({**values, 'data_time': 0.1, 'time': 0.2, 'step': epoch})
    (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, lines)) + '\n')


@pytest.fixture(scope='module')
def work_dirs(tmp_path_factory):
    """Under names that say nothing."""
    root = tmp_path_factory.mktemp('runs')
    leave(root / 'a', 'students/retinanet_r50_fpn_8xb2-2x_coco', (37.5, 20.0, 41.0, 50.0))
    leave(root / 'b', f'lad/lad_neck_{RETINANET}', (40.8, 23.0, 45.0, 55.0))
    leave(root / 'c', f'lad/lad_neck_{RETINANET}', (41.4, 23.4, 45.6, 55.4), inline=True)
    leave(root / 'd', f'fgd/fgd_fpn-convs_{RETINANET}', (40.1, 22.0, 44.0, 54.0))
    leave(root / 'e', f'fkd/fkd_fpn-convs_{MASK}', (41.0, 1.0, 2.0, 3.0), (37.0, 17.0, 40.0, 56.0))
    # interrupted after 3 epochs and resumed
    leave(root / 'f', f'mgd/mgd_fpn-convs_{RETINANET}', (9.0, 9.0, 9.0, 9.0), epochs=3)
    leave(root / 'f', f'mgd/mgd_fpn-convs_{RETINANET}', (40.5, 23.0, 45.0, 55.0), session=2)
    # no rows
    leave(root / 'unfinished', f'cad/cad_neck_{RETINANET}', (30.0, 1.0, 1.0, 1.0), epochs=12)
    leave(
        root / 'weight',
        f'cad/cad_neck_{RETINANET}',
        (30.0, 1.0, 1.0, 1.0),
        **{'model.distiller.loss.loss_weight': 1.0},
    )
    leave(
        root / 'short',
        f'cwd/cwd_neck_{RETINANET}',
        (30.0, 1.0, 1.0, 1.0),
        epochs=12,
        **{'train_cfg.max_epochs': 12},
    )
    digits = 'quickstart/retinanet_r18-w8_1xb16-3k_digit-scenes-64x64'
    leave(root / 'digits', digits, (30.0, 1.0, 1.0, 1.0))
    leave(
        root / 'subset',
        'students/faster-rcnn_r50_fpn_8xb2-2x_coco',
        (30.0, 1.0, 1.0, 1.0),
        **{'val_evaluator.ann_file': 'data/coco/annotations/instances_minival.json'},
    )
    leave(
        root / 'teacher',
        f'lad/lad_neck_{RETINANET}',
        (30.0, 1.0, 1.0, 1.0),
        **{'model.teacher.cfg_path': 'mmdet::retinanet/retinanet_r50_fpn_2x_coco.py'},
    )
    (root / 'empty').mkdir()
    return root


@pytest.fixture(scope='module')
def run(fast_python):
    def run(*args, python=fast_python):
        command = [str(python), str(TOOL), *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True)

    return run


@pytest.fixture(scope='module')
def report(work_dirs, run):
    file = work_dirs.parent / 'new' / 'tables.md'
    done = run(*sorted(work_dirs.iterdir()), '-o', file)
    assert done.returncode == 0, done.stderr
    assert f'{file}: 6 of 13 work dirs are rows of the tables' in done.stdout
    return file.read_text()


@pytest.fixture(scope='module')
def tables(report):
    """{heading of the pair: {method: cells}}"""
    found, heading = {}, None
    for line in report.splitlines():
        if line.startswith('### '):
            heading = line.removeprefix('### ')
        elif line.startswith('| ') and heading:
            first, *cells = [part.strip() for part in line.strip('|').split('|')]
            found.setdefault(heading, {})[first] = cells
    return found


def test_every_row_of_the_paper_is_there(tables):
    methods = ['method', 'student alone', 'FKD', 'CWD', 'FGD', 'MGD', 'LAD', 'CAD']
    for heading, rows in tables.items():
        assert [name.partition(' (ours')[0] for name in rows] == methods, heading
        columns = ['mAP', 'AP_S', 'AP_M', 'AP_L']
        assert rows['method'] == [f'{c}, {w}' for c in columns for w in ('paper', 'ours')]
    assert list(tables) == [
        'RetinaNet-X101 (41.0) -> RetinaNet-R50',
        'Cascade Mask R-CNN-X101 (47.3) -> Faster R-CNN-R50',
        'Cascade Mask R-CNN-X101 (41.1) -> Mask R-CNN-R50',
    ]


def test_papers_numbers_stand_beside_ours(tables):
    retinanet, faster, mask = tables.values()
    assert retinanet['student alone'] == [
        '37.4', '37.5', '20.6', '20.0', '40.7', '41.0', '49.7', '50.0'
    ]  # fmt: skip
    assert retinanet['FGD'][:4] == ['40.7 (+3.3)', '40.1 (+2.6)', '22.9 (+2.3)', '22.0 (+2.0)']
    assert retinanet['MGD'][:2] == ['41.0 (+3.6)', '40.5 (+3.0)']
    # two trainings
    assert retinanet['LAD (ours: mean of 2)'] == [
        '41.0 (+3.6)', '41.1 (+3.6)', '23.3 (+2.7)', '23.2 (+3.2)',
        '45.2 (+4.5)', '45.3 (+4.3)', '55.1 (+5.4)', '55.2 (+5.2)',
    ]  # fmt: skip
    for method in ('FKD', 'CWD', 'CAD'):
        assert retinanet[method][1::2] == ['not run'] * 4
    assert all(cells[1::2] == ['not run'] * 4 for n, cells in faster.items() if n != 'method')
    # masks, which the paper has no FKD of, and no student alone to compare with
    assert mask['FKD'] == ['-', '37.0', '-', '17.0', '-', '40.0', '-', '56.0']
    assert mask['LAD'][0] == '37.6 (+2.2)'


def test_what_is_no_row_is_listed_with_the_reason(report, work_dirs):
    listed = report.split('Left out:')[1].strip().splitlines()
    reasons = dict(line.removeprefix('- `').split('`: ') for line in listed)
    reasons = {Path(folder).name: reason for folder, reason in reasons.items()}
    assert reasons == dict(
        unfinished='it is not finished: epoch 12 of 24',
        weight="its CAD has the weight 1.0, the paper's 3",
        short="it trains for 12 epochs, the paper's for 24",
        digits='its student is a RetinaNet (ResNet-18), which no table has',
        subset='it validates on data/coco/annotations/instances_minival.json, not on val2017 of COCO',
        teacher='no table has RetinaNet-R50 as the teacher of RetinaNet-R50',
        empty='no validation on COCO was logged in it',
    )
    assert f'- `{work_dirs / "c"}`: RetinaNet-R50, LAD from RetinaNet-X101' in report
    assert f'- `{work_dirs / "a"}`: RetinaNet-R50, alone' in report


def test_tables_are_printed_and_nothing_else(run, tmp_path):
    done = run(tmp_path, python=sys.executable)
    assert done.returncode == 0
    assert done.stdout.startswith('# COCO\n')
    assert done.stdout.count('not run') == 3 * 7 * 4


def test_a_folder_that_does_not_exist(run, tmp_path):
    done = run(tmp_path / 'nowhere')
    assert done.returncode == 2
    assert 'nowhere' in done.stderr and 'is not a folder' in done.stderr
