import copy
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DefaultScope
from mmseg.registry import DATASETS
from PIL import Image

from rawkd_mm.datasets import DigitScenesDataset
from rawkd_mm.datasets.digit_scenes_folder import command_for, find_problem

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO / 'tools/dataset_converters'))

import digit_scenes_drawing as drawing  # noqa: E402
import digit_scenes_generator as generator  # noqa: E402

SCRIPT = 'tools/dataset_converters/digit_scenes.py'
COUNTS = dict(train=40, val=20)
OPTIONS = drawing.DigitScenesOptions(**COUNTS)
KNOWN = dict(window=(433, 171, 533, 271), instances=[(7, 17, 355)], mean=[32.40, 43.93, 41.56])


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp('digit_scenes') / 'data'
    assert generator.generate(folder, OPTIONS).made
    return folder


def read(path):
    with Image.open(path) as image:
        return np.asarray(image)


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob('*'))
        if path.is_file()
    }


def read_coco(root, split):
    coco = json.loads((root / 'coco' / f'{split}.json').read_text())
    per_image = {image['id']: [] for image in coco['images']}
    for annotation in coco['annotations']:
        per_image[annotation['image_id']].append(annotation)
    return coco, per_image


def decode(segmentation):
    height, width = segmentation['size']
    pixels, value = [], 0
    for count in segmentation['counts']:
        pixels += [value] * count
        value = 1 - value
    assert len(pixels) == height * width
    return np.array(pixels, bool).reshape(width, height).T


# --------------------------------------------------------------------------------------------------
# What is made
# --------------------------------------------------------------------------------------------------


def test_layout(root):
    assert sorted(path.name for path in root.iterdir()) == [
        'annotations',
        'coco',
        'images',
        'meta.json',
    ]
    for split, count in COUNTS.items():
        names = [f'{index:05d}.png' for index in range(count)]
        for entry in ('images', 'annotations'):
            assert sorted(path.name for path in (root / entry / split).iterdir()) == names


def test_same_options_same_bytes(root, tmp_path):
    generator.generate(tmp_path / 'again', OPTIONS)
    assert contents(tmp_path / 'again') == contents(root)


def test_first_scenes_do_not_depend_on_the_count(root, tmp_path):
    generator.generate(tmp_path, drawing.DigitScenesOptions(train=7, val=9))
    fewer, more = contents(tmp_path), contents(root)
    pngs = [name for name in fewer if name.endswith('.png')]
    assert len(pngs) == 2 * (7 + 9)
    assert all(fewer[name] == more[name] for name in pngs)
    for split, count in dict(train=7, val=9).items():
        fewer_coco, more_coco = read_coco(tmp_path, split)[1], read_coco(root, split)[1]
        assert all(fewer_coco[number] == more_coco[number] for number in range(1, count + 1))


def test_seed_split_and_index_matter():
    images = [
        drawing.render_scene(drawing.DigitScenesOptions(seed=seed), split, index).image
        for seed in (0, 1)
        for split in ('train', 'val')
        for index in (0, 1)
    ]
    assert len({image.tobytes() for image in images}) == len(images)


def test_known_scene():
    """Whoever changes what is made also has to raise GENERATOR_VERSION."""
    scene = drawing.render_scene(drawing.DigitScenesOptions(), 'train', 0)
    assert generator.GENERATOR_VERSION == 1
    assert scene.window == KNOWN['window']
    assert [(i.digit, i.source, int(i.mask.sum())) for i in scene.instances] == KNOWN['instances']
    # Not compared exactly: other builds of libjpeg decode the photograph a little differently.
    np.testing.assert_allclose(scene.image.mean(axis=(0, 1)), KNOWN['mean'], atol=1)


def test_digit_sources_are_disjoint_and_complete(root):
    from sklearn.datasets import load_digits

    targets = load_digits().target
    sources = drawing.digit_sources(0)
    for digit in range(10):
        train, val = sources['train'][digit], sources['val'][digit]
        assert len(train) > 3 * len(val) > 0
        assert not set(train) & set(val)
        assert sorted([*train, *val]) == np.flatnonzero(targets == digit).tolist()
    other = drawing.digit_sources(1)
    assert any(set(a) != set(b) for a, b in zip(sources['val'], other['val']))
    for split in COUNTS:
        used = read_coco(root, split)[0]['annotations']
        assert used
        for annotation in used:
            digit = annotation['category_id'] - 1
            assert annotation['digit_source'] in sources[split][digit]


@pytest.mark.parametrize('size', [(64, 64), (300, 200), (64, 700), (500, 40)])
def test_backgrounds_are_cut_from_disjoint_regions(size):
    from sklearn.datasets import load_sample_images

    shapes = [photo.shape[:2] for photo in load_sample_images().images]
    touched = {split: [np.zeros(shape, bool) for shape in shapes] for split in COUNTS}
    options = drawing.DigitScenesOptions(size=size)
    for split in COUNTS:
        for index in range(30):
            scene = drawing.render_scene(options, split, index)
            assert scene.image.shape == (*size, 3)
            left, top, right, bottom = scene.window
            height, width = shapes[scene.photo]
            assert 0 <= left < right <= width and 0 <= top < bottom <= height
            # not squeezed: one zoom for both sides, but for rounding
            zooms = (bottom - top) / size[0], (right - left) / size[1]
            assert abs(zooms[0] - zooms[1]) <= 1 / min(size)
            touched[split][scene.photo][top:bottom, left:right] = True
        assert all(mask.any() for mask in touched[split])
    assert not any((a & b).any() for a, b in zip(touched['train'], touched['val']))


def test_pixels(root):
    values = set()
    for split, count in COUNTS.items():
        for index in range(count):
            image = read(root / 'images' / split / f'{index:05d}.png')
            label = read(root / 'annotations' / split / f'{index:05d}.png')
            assert image.shape == (64, 64, 3) and image.dtype == np.uint8
            assert label.shape == (64, 64) and label.dtype == np.uint8
            digits = (label >= 1) & (label <= 10)
            assert image[digits].max(axis=1).mean() > image[label == 0].max(axis=1).mean() + 20
            # The ignored band is thin: every one of its pixels has another label close by.
            assert 0 < (label == 255).mean() < 0.15
            near = np.pad(label, 2, mode='edge')
            near = np.lib.stride_tricks.sliding_window_view(near, (5, 5))
            assert (near[label == 255] != 255).any(axis=(1, 2)).all()
            values |= set(np.unique(label).tolist())
    assert values == {*range(11), 255}


def test_label_map_shows_the_drawn_digit():
    """Against a rendering written here: nearest source pixel, one upright digit, no occlusion."""
    digits, _ = drawing._digits()
    ink = drawing._draw_ink(digits[0], (64, 64), (30, 34), 40.0, 0.0)
    rows, columns = np.mgrid[:64, :64]
    y = np.floor((rows + 0.5 - 34) / 5 + 4).astype(int)
    x = np.floor((columns + 0.5 - 30) / 5 + 4).astype(int)
    inside = (y >= 0) & (y < 8) & (x >= 0) & (x < 8)
    expected = np.where(inside, digits[0][y.clip(0, 7), x.clip(0, 7)], 0)
    sure = (expected > 200) | (expected == 0)
    assert ((ink >= drawing._INK_DIGIT) == (expected > 200))[sure].mean() > 0.95
    # A quarter turn, clockwise as seen.
    turned = drawing._draw_ink(digits[0], (64, 64), (32, 32), 40.0, 90.0)
    upright = drawing._draw_ink(digits[0], (64, 64), (32, 32), 40.0, 0.0)
    np.testing.assert_allclose(turned.astype(int), np.rot90(upright, -1).astype(int), atol=2)


def test_label_map_agrees_with_coco(root):
    for split, count in COUNTS.items():
        coco, per_image = read_coco(root, split)
        assert [category['name'] for category in coco['categories']] == [
            f'digit {digit}' for digit in range(10)
        ]
        assert [category['id'] for category in coco['categories']] == list(range(1, 11))
        assert len(coco['images']) == count
        ids = [annotation['id'] for annotation in coco['annotations']]
        assert ids == list(range(1, len(ids) + 1))
        for image in coco['images']:
            label = read(root / 'annotations' / split / image['file_name'])
            assert (image['height'], image['width']) == label.shape
            from_masks = np.zeros_like(label)
            times_covered = np.zeros(label.shape, int)
            for annotation in per_image[image['id']]:
                mask = decode(annotation['segmentation'])
                assert mask.shape == label.shape
                times_covered += mask
                from_masks[mask] = annotation['category_id']
                assert annotation['area'] == mask.sum() > 0
                assert annotation['iscrowd'] == 0
                rows, columns = np.nonzero(mask)
                x, y, width, height = annotation['bbox']
                assert (x, y) == (columns.min(), rows.min())
                assert (x + width - 1, y + height - 1) == (columns.max(), rows.max())
            assert times_covered.max() == 1
            np.testing.assert_array_equal(from_masks, np.where(label == 255, 0, label))


def test_a_later_digit_is_on_top_and_leaves_enough_of_the_earlier():
    overlaps, hidden_labels = 0, []
    for index in range(40):
        scenes = [
            drawing.render_scene(
                drawing.DigitScenesOptions(min_digits=number, max_digits=number), 'train', index
            )
            for number in (1, 2)
        ]
        # One more digit changes nothing about the ones before but what it hides.
        alone, both = (scene.instances for scene in scenes)
        assert len(alone) == 1 and alone[0].source == both[0].source
        assert not (both[0].mask & ~alone[0].mask).any()
        assert both[0].mask.sum() >= 0.7 * alone[0].mask.sum()
        hidden = alone[0].mask & ~both[0].mask
        if hidden.any():
            overlaps += 1
            hidden_labels += (scenes[1].label[hidden] == both[1].digit + 1).tolist()
            assert set(np.unique(scenes[1].label[hidden])) <= {both[1].digit + 1, 255}
            changed = (scenes[0].image != scenes[1].image).any(axis=2)
            assert changed[both[1].mask].mean() > 0.99
    assert overlaps > 10
    assert np.mean(hidden_labels) > 0.6  # the rest is the band around the upper one


def test_crowded_scenes_leave_digits_out():
    options = drawing.DigitScenesOptions(min_digits=20, max_digits=20, size=(32, 32))
    scene = drawing.render_scene(options, 'val', 0)
    assert scene.left_out > 0
    assert len(scene.instances) == 20 - scene.left_out > 1
    assert all(instance.mask.any() for instance in scene.instances)


def test_size_scales_the_digits():
    shares = []
    for size in ((64, 64), (128, 128), (96, 160)):
        options = drawing.DigitScenesOptions(size=size, max_digits=1)
        scenes = [drawing.render_scene(options, 'train', index) for index in range(20)]
        assert all(scene.label.shape == size for scene in scenes)
        areas = [scene.instances[0].mask.sum() for scene in scenes]
        shares.append(np.array(areas) / min(size) ** 2)
    np.testing.assert_allclose(shares[1], shares[0], rtol=0.15)
    np.testing.assert_allclose(shares[2].mean(), shares[0].mean(), rtol=0.05)


def test_meta(root):
    meta = json.loads((root / 'meta.json').read_text())
    assert meta['options'] == dict(**COUNTS, size=[64, 64], seed=0, min_digits=1, max_digits=3)
    assert meta['generator_version'] == generator.GENERATOR_VERSION
    for split, count in COUNTS.items():
        part, (coco, per_image) = meta['splits'][split], read_coco(root, split)
        assert (part['images'], part['instances']) == (count, len(coco['annotations']))
        labels = [read(path) for path in sorted((root / 'annotations' / split).iterdir())]
        for value, name in enumerate([*meta['classes'], 'ignore']):
            share = 100 * np.mean(np.stack(labels) == (255 if name == 'ignore' else value))
            assert part['pixel_percent'][name] == pytest.approx(share, abs=1e-3)
        digests = b''
        for image, label in zip(coco['images'], labels):
            annotations = [
                {key: value for key, value in annotation.items() if key != 'id'}
                for annotation in per_image[image['id']]
            ]
            pixels = read(root / 'images' / split / image['file_name'])
            text = json.dumps(annotations, separators=(',', ':'))
            digests += hashlib.sha256(pixels.tobytes() + label.tobytes() + text.encode()).digest()
        assert part['checksum'] == hashlib.sha256(digests).hexdigest()


@pytest.mark.parametrize('mask', [[[0, 0], [0, 0]], [[1, 1]], [[1, 0], [0, 1]], [[0], [1], [1]]])
def test_encode_rle(mask):
    mask = np.array(mask, bool)
    encoded = generator.encode_rle(mask)
    assert encoded['size'] == list(mask.shape)
    assert all(count > 0 for count in encoded['counts'][1:])
    np.testing.assert_array_equal(decode(encoded), mask)


def test_pycocotools_reads_it(root):
    COCO = pytest.importorskip('pycocotools.coco').COCO
    for split in COUNTS:
        coco, evaluated = COCO(root / 'coco' / f'{split}.json'), 0
        for annotation in coco.loadAnns(coco.getAnnIds()):
            mask = coco.annToMask(annotation)
            np.testing.assert_array_equal(mask, decode(annotation['segmentation']))
            evaluated += 1
        assert evaluated > 0


def test_mmdet_reads_it(root, mmdet):
    from mmdet.registry import DATASETS as DETECTION_DATASETS

    dataset = DETECTION_DATASETS.build(
        dict(
            type='mmdet.CocoDataset',
            data_root=str(root),
            ann_file='coco/val.json',
            data_prefix=dict(img='images/val'),
            metainfo=dict(classes=DigitScenesDataset.METAINFO['classes'][1:]),
            pipeline=[
                dict(type='mmdet.LoadImageFromFile'),
                dict(type='mmdet.LoadAnnotations', with_bbox=True, with_mask=True),
                dict(type='mmdet.PackDetInputs'),
            ],
        )
    )
    _, per_image = read_coco(root, 'val')
    assert len(dataset) == COUNTS['val']
    for sample in dataset:
        annotations = per_image[sample['data_samples'].img_id]
        instances = sample['data_samples'].gt_instances
        assert instances.labels.tolist() == [a['category_id'] - 1 for a in annotations]
        masks = np.stack([decode(annotation['segmentation']) for annotation in annotations])
        np.testing.assert_array_equal(instances.masks.masks.astype(bool), masks)
        x, y, width, height = np.array([a['bbox'] for a in annotations]).T
        np.testing.assert_array_equal(
            instances.bboxes.tensor.numpy(), np.stack((x, y, x + width, y + height), 1)
        )


# --------------------------------------------------------------------------------------------------
# Options and folders
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'changes, words',
    [
        (dict(train=0), 'train is 0, expected a whole number from 1'),
        (dict(val=2.5), 'val is 2.5, expected a whole number'),
        (dict(val=True), 'val is True, expected a whole number'),
        (dict(size=64), 'size is 64, expected two numbers'),
        (dict(size=(64, 16)), 'size is 16, expected a whole number from 32'),
        (dict(seed=-1), 'seed is -1, expected a whole number from 0'),
        (dict(seed=2**32), f'seed is {2**32}, expected'),
        (dict(min_digits=0), 'min_digits is 0, expected'),
        (dict(min_digits=3, max_digits=2), 'max_digits is 2, expected a whole number from 3'),
    ],
)
def test_bad_options(changes, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        drawing.DigitScenesOptions(**changes)


def test_bad_workers(tmp_path):
    with pytest.raises(ValueError, match='workers is 0, expected a whole number from 1'):
        generator.generate(tmp_path, OPTIONS, workers=0)


def test_complete_folder_is_left_as_it_is(root):
    before = {path: path.stat().st_mtime_ns for path in root.rglob('*')}
    result = generator.generate(root, OPTIONS)
    assert not result.made
    assert result.meta == json.loads((root / 'meta.json').read_text())
    assert {path: path.stat().st_mtime_ns for path in root.rglob('*')} == before


def test_other_options_need_overwrite(tmp_path):
    first = drawing.DigitScenesOptions(train=3, val=2)
    other = drawing.DigitScenesOptions(train=2, val=2, seed=5)
    generator.generate(tmp_path, first)
    with pytest.raises(
        generator.DigitScenesError, match='train is 3 there and 2 was asked for; seed is 0 there'
    ):
        generator.generate(tmp_path, other)
    assert find_problem(tmp_path) is None
    assert generator.generate(tmp_path, other, overwrite=True).made
    assert len(list((tmp_path / 'images' / 'train').iterdir())) == 2
    generator.generate(tmp_path.with_name(tmp_path.name + '-fresh'), other)
    assert contents(tmp_path) == contents(tmp_path.with_name(tmp_path.name + '-fresh'))


def test_another_generator_version_needs_overwrite(tmp_path, monkeypatch):
    options = drawing.DigitScenesOptions(train=1, val=1)
    generator.generate(tmp_path, options)
    monkeypatch.setattr(generator, 'GENERATOR_VERSION', 99)
    with pytest.raises(generator.DigitScenesError, match='version 1 of the generator'):
        generator.generate(tmp_path, options)


def test_damaged_folder(tmp_path):
    options = drawing.DigitScenesOptions(train=3, val=2)
    generator.generate(tmp_path, options)
    (tmp_path / 'annotations' / 'train' / '00001.png').unlink()
    with pytest.raises(
        generator.DigitScenesError, match='has 2 PNG files, expected 3.*--overwrite'
    ):
        generator.generate(tmp_path, options)
    assert '--train 3 --val 2' in command_for(tmp_path)
    assert command_for(tmp_path).endswith('--overwrite')
    assert generator.generate(tmp_path, options, overwrite=True).made
    assert find_problem(tmp_path) is None
    (tmp_path / 'coco' / 'val.json').unlink()
    assert 'val.json' in find_problem(tmp_path)


@pytest.mark.parametrize('name', ['notes.txt', 'meta.json', 'images'])
def test_foreign_folder_is_never_touched(tmp_path, name):
    (tmp_path / name).write_text('{"mine": 1}')
    for overwrite in (False, True):
        with pytest.raises(generator.DigitScenesError, match=f'not from DigitScenes .{name}'):
            generator.generate(tmp_path, OPTIONS, overwrite=overwrite)
    assert contents(tmp_path) == {name: b'{"mine": 1}'}
    with pytest.raises(generator.DigitScenesError, match='is a file'):
        generator.generate(tmp_path / name, OPTIONS)


@pytest.mark.parametrize('step', ['_write_scene', '_finish_split'])
def test_interrupted_run_is_started_again(tmp_path, monkeypatch, caplog, step):
    options = drawing.DigitScenesOptions(train=3, val=2)
    real, calls = getattr(generator, step), []

    def fail_late(*args):
        calls.append(args)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(generator, step, fail_late)
    with pytest.raises(KeyboardInterrupt):
        generator.generate(tmp_path, options)
    monkeypatch.undo()
    assert 'incomplete' in find_problem(tmp_path)
    assert not (tmp_path / 'images').exists()
    assert generator.generate(tmp_path, options).made
    assert 'An earlier run was interrupted' in caplog.text
    generator.generate(tmp_path.with_name(tmp_path.name + '-fresh'), options)
    assert contents(tmp_path) == contents(tmp_path.with_name(tmp_path.name + '-fresh'))


def test_interrupted_replacement(tmp_path, monkeypatch):
    old, new = (drawing.DigitScenesOptions(train=2, val=1, seed=seed) for seed in (0, 1))
    generator.generate(tmp_path, old)
    real = Path.rename

    def fail_at_coco(self, target):
        if Path(target).name == 'coco':
            raise OSError('no more')
        return real(self, target)

    # While new scenes are being made the old ones are still whole ...
    with monkeypatch.context() as patch:
        patch.setattr(generator, '_finish_split', lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            generator.generate(tmp_path, new, overwrite=True)
    assert find_problem(tmp_path) is None
    assert not generator.generate(tmp_path, old).made
    assert not (tmp_path / '.partial').exists()
    # ... and while they are being exchanged nobody takes the mixture for whole.
    with monkeypatch.context() as patch:
        patch.setattr(Path, 'rename', fail_at_coco)
        with pytest.raises(OSError, match='no more'):
            generator.generate(tmp_path, new, overwrite=True)
    assert 'incomplete' in find_problem(tmp_path)
    assert generator.generate(tmp_path, new).made
    generator.generate(tmp_path.with_name(tmp_path.name + '-fresh'), new)
    assert contents(tmp_path) == contents(tmp_path.with_name(tmp_path.name + '-fresh'))


# --------------------------------------------------------------------------------------------------
# The dataset and its config
# --------------------------------------------------------------------------------------------------


@pytest.fixture
def config():
    return Config.fromfile(REPO / 'configs' / '_base_' / 'datasets' / 'digit_scenes.py')


@pytest.mark.parametrize('split', ['train', 'val', 'test'])
def test_dataset_of_the_config(root, config, split):
    dataset_config = copy.deepcopy(config[f'{split}_dataloader']['dataset'])
    dataset_config['data_root'] = str(root)
    # as in a run, whatever scope the tests before left behind
    with DefaultScope.overwrite_default_scope('mmseg'):
        dataset = DATASETS.build(dataset_config)
    folder = 'train' if split == 'train' else 'val'
    assert isinstance(dataset, DigitScenesDataset)
    assert len(dataset) == COUNTS[folder]
    assert len(dataset.metainfo['classes']) == len(dataset.metainfo['palette']) == 11
    assert dataset.metainfo['classes'][:3] == ('background', 'digit 0', 'digit 1')
    for index in (0, len(dataset) - 1):
        sample = dataset[index]
        image = read(root / 'images' / folder / f'{index:05d}.png')
        label = read(root / 'annotations' / folder / f'{index:05d}.png')
        # MMSegmentation's pipeline gives blue first.
        np.testing.assert_array_equal(sample['inputs'].numpy(), image[..., ::-1].transpose(2, 0, 1))
        np.testing.assert_array_equal(sample['data_samples'].gt_sem_seg.data.numpy(), label[None])
        assert sample['data_samples'].reduce_zero_label is False
    batch = pseudo_collate([dataset[index] for index in range(4)])
    assert {tuple(image.shape) for image in batch['inputs']} == {(3, 64, 64)}


def test_config(config):
    for split in ('train', 'val', 'test'):
        assert config[f'{split}_dataloader']['batch_size'] == 16
    assert config.train_dataloader.sampler == dict(type='InfiniteSampler', shuffle=True)
    assert config.val_evaluator == dict(type='IoUMetric', iou_metrics=['mIoU'])


def test_dataset_says_how_to_make_a_missing_folder(tmp_path):
    prefix = dict(img_path='images/train', seg_map_path='annotations/train')
    missing = tmp_path / 'not there'
    with pytest.raises(FileNotFoundError) as error:
        DigitScenesDataset(data_root=str(missing), data_prefix=prefix)
    assert f"no folder '{missing}'" in str(error.value)
    command = str(error.value).splitlines()[-1].strip()
    assert command == f"python {SCRIPT} --root '{missing}'"

    generator.generate(missing, drawing.DigitScenesOptions(train=2, val=1, size=(32, 48)))
    next((missing / 'images' / 'val').iterdir()).unlink()
    with pytest.raises(FileNotFoundError, match='has 0 PNG files, expected 1') as error:
        DigitScenesDataset(data_root=str(missing), data_prefix=prefix)
    command = str(error.value).splitlines()[-1].strip()
    subprocess.run(
        command.replace('python', sys.executable, 1), shell=True, cwd=REPO, check=True, timeout=60
    )
    assert len(DigitScenesDataset(data_root=str(missing), data_prefix=prefix)) == 2


# --------------------------------------------------------------------------------------------------
# The command line
# --------------------------------------------------------------------------------------------------


def run_script(*args, cwd=REPO):
    return subprocess.run(
        [sys.executable, str(REPO / SCRIPT), *map(str, args)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_script_starts_without_pytorch():
    code = (
        'import runpy, sys; sys.argv = ["digit_scenes.py", "--help"]\n'
        f'sys.path.insert(0, {str(Path(SCRIPT).parent)!r})\n'
        f'try: runpy.run_path({SCRIPT!r}, run_name="__main__")\n'
        'except SystemExit: pass\n'
        'print(sorted({"torch", "mmseg", "mmengine", "sklearn"} & set(sys.modules)))'
    )
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=REPO, capture_output=True, text=True, check=True
    )
    assert '--max-digits' in done.stdout
    assert done.stdout.splitlines()[-1] == '[]'


def test_script(root, tmp_path):
    options = ('--train', COUNTS['train'], '--val', COUNTS['val'])
    done = run_script(
        *options, '--workers', 2, '--preview', tmp_path / 'new' / 'a.png', cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r'Made data/digit_scenes in [\d.]+ s \(train: 40 images', done.stdout)
    # The same bytes as from one process.
    assert contents(tmp_path / 'data' / 'digit_scenes') == contents(root)
    assert read(tmp_path / 'new' / 'a.png').std() > 20

    start = time.perf_counter()
    done = run_script(*options, cwd=tmp_path)
    assert time.perf_counter() - start < 5
    assert done.returncode == 0
    assert 'data/digit_scenes is already there (train: 40 images' in done.stdout

    done = run_script(*options, '--seed', 3, cwd=tmp_path)
    assert done.returncode == 1
    assert 'seed is 0 there and 3 was asked for' in done.stderr
    assert 'Traceback' not in done.stderr


@pytest.mark.parametrize(
    'args, words',
    [
        (('--size', 8), 'size is 8, expected a whole number from 32 to 4096'),
        (('--size', 64, 64, 3), 'size is [64, 64, 3], expected one or two numbers'),
        (('--min-digits', 5), 'max_digits is 3, expected a whole number from 5'),
        (('--workers', 0), 'workers is 0, expected a whole number from 1'),
    ],
)
def test_script_with_bad_values(tmp_path, args, words):
    done = run_script('--root', tmp_path / 'root', *args)
    assert done.returncode == 1
    assert words in done.stderr
    assert 'Traceback' not in done.stderr
    assert not (tmp_path / 'root').exists()


def test_killed_script(tmp_path):
    root = tmp_path / 'root'
    command = [sys.executable, SCRIPT, '--root', str(root), '--train', '5000', '--workers', '2']
    process = subprocess.Popen(command, cwd=REPO, start_new_session=True)
    deadline = time.monotonic() + 30
    while not list(root.rglob('*.png')) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert list(root.rglob('*.png')), 'not killed in the middle of its work'
    assert 'interrupted' in find_problem(root)

    done = run_script('--root', root, '--train', COUNTS['train'], '--val', 1, '--workers', 1)
    assert done.returncode == 0, done.stderr
    assert 'An earlier run was interrupted' in done.stderr
    assert sorted(path.name for path in root.iterdir()) == [
        'annotations',
        'coco',
        'images',
        'meta.json',
    ]
    assert find_problem(root) is None


def test_two_processes_at_once(tmp_path):
    root = tmp_path / 'root'
    command = [sys.executable, SCRIPT, '--root', str(root), '--train', '100', '--val', '5']
    command += ['--workers', '1']
    processes = [
        subprocess.Popen(
            command, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    printed = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(text.split()[0] for text in printed) in (['Made', str(root)], [str(root), 'Made'])
    assert find_problem(root) is None
