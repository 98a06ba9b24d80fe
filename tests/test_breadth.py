"""The page docs/breadth.md is what tools/dev/breadth.py finds, and it leaves no family out."""

import json
import sys
from importlib import util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# What the pairs have to have, as teacher or student.
SEGMENTORS = (
    'pspnet fcn deeplabv3 deeplabv3plus upernet ocrnet segformer pointrend bisenetv2 fast_scnn stdc '
    'segnext bisenetv1 icnet pidnet ddrnet lraspp mask2former maskformer segmenter danet'
).split()
DETECTORS = 'retinanet faster-rcnn mask-rcnn fcos gfl rtmdet dino detr mask2former c4'.split()
# Rows that take a few seconds each: another way to choose each.
CHEAP = [
    'family mmseg danet',
    'family mmseg segmenter',
    'family mmseg mask2former',
    'family mmdet retinanet',
    'family mmdet rtmdet',
    'pair mmseg segmenter_vit-s_mask segformer_mit-b0 pad',
    'pair mmdet faster-rcnn_r50_fpn_1x_coco detr_r18 cad',
]


def tool():
    sys.path.insert(0, str(ROOT / 'tools'))
    try:
        spec = util.spec_from_file_location('breadth', ROOT / 'tools/dev/breadth.py')
        module = util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT / 'tools'))
    return module


BREADTH = tool()
RECORDS = json.loads(BREADTH.DATA.read_text())


def of(kind, package):
    begin = f'{kind} {package} '
    return {k.removeprefix(begin): r for k, r in RECORDS.items() if k.startswith(begin)}


def test_the_page_is_that_of_the_results():
    assert (ROOT / 'docs/breadth.md').read_text() == BREADTH.make_page(RECORDS)


@pytest.mark.usefixtures('mmdet')
@pytest.mark.parametrize('package', ['mmseg', 'mmdet'])
def test_every_folder_of_configs_is_there(package):
    folders = {p.name for p in BREADTH.configs_of(package).iterdir() if p.is_dir()}
    assert set(of('family', package)) == folders - set(BREADTH.NO_FAMILIES[package])
    assert set(RECORDS) == set(BREADTH.jobs())
    for record in of('family', package).values():
        assert (BREADTH.configs_of(package) / record['student']).is_file()
        assert record['student'] == record['teacher']


@pytest.mark.parametrize('package', ['mmseg', 'mmdet'])
def test_a_row_says_what_was_chosen_or_why_nothing_was(package):
    for record in [*of('family', package).values(), *of('pair', package).values()]:
        if record['result'] == 'ran':
            assert record['features'] and record['loss'] > 0 and record['distilled'] > 0
            for (_, channels, stride), (_, *others) in record['features']:
                assert min(channels, stride, *others) > 0
        else:
            assert len(record['reason']) > 15


# What is no student: its detector is trained otherwise than on images or not at all, or it has no data.
REFUSED = {
    'mmseg': ''.split(),
    'mmdet': 'clrnet deepsort masktrack_rcnn qdtrack soft_teacher'.split(),
}
# What needs packages, files or a GPU that could not be had, or fails without a distillation too. The
# page has the error of each.
NOT_HERE = {
    'mmseg': 'vpd'.split(),
    'mmdet': 'carafe grounding_dino misc mm_grounding_dino'.split(),
}
# What only the distillation breaks, or what took more time than the count had.
FAILED = {'mmseg': [], 'mmdet': []}


@pytest.mark.parametrize('package', ['mmseg', 'mmdet'])
def test_what_did_not_run_is_known(package):
    found = of('family', package)
    for result, names in (('refused', REFUSED), ('not here', NOT_HERE), ('failed', FAILED)):
        assert sorted(names[package]) == sorted(
            k for k, r in found.items() if r['result'] == result
        )


@pytest.mark.parametrize(('package', 'share'), [('mmseg', 1), ('mmdet', 0.95)])
def test_nearly_all_that_can_be_trained_here_is_distilled(package, share):
    results = [record['result'] for record in of('family', package).values()]
    assert results.count('ran') >= share * (len(results) - results.count('not here'))


def test_what_is_refused_says_what_to_name_instead():
    for name, record in of('family', 'mmdet').items():
        if record['result'] == 'refused':
            text = 'add them to its config' if name == 'clrnet' else ', such as mmdet::'
            assert text in record['reason'], name


def test_pairs_of_many_kinds():
    for names, package in ((SEGMENTORS, 'mmseg'), (DETECTORS, 'mmdet')):
        ran = ' '.join(
            key for key, record in of('pair', package).items() if record['result'] == 'ran'
        )
        assert [name for name in names if name not in ran] == []


def chosen(record):
    return record['result'], record.get('features')


@pytest.mark.usefixtures('mmdet')
@pytest.mark.parametrize('key', CHEAP)
def test_cheap_rows_are_true(key):
    assert chosen(BREADTH.run(*BREADTH.jobs()[key])) == chosen(RECORDS[key])


@pytest.mark.slow
@pytest.mark.usefixtures('mmdet')
@pytest.mark.parametrize('key', sorted(RECORDS))
def test_every_row_is_true(key):
    package, family = key.split()[1:3]
    if 'installed' in BREADTH.NOTES.get(f'{package}/{family}', ''):
        pytest.skip('needs packages that are not those of the tests')
    found = BREADTH.run_in_process(BREADTH.jobs()[key], seconds=600, gigabytes=14)
    assert chosen(found) == chosen(RECORDS[key])
