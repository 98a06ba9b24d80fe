"""Models that hold a detector, and models of clips: their features are those of single images."""

import copy

import pytest
import torch
from helpers import build, distill, faster_rcnn, feature_distiller, images, pair
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, DefaultScope

from rawkd_mm.features import (
    AutoFeatureError,
    detector_within,
    find_features,
    image_channels,
    single_images,
)
from rawkd_mm.teachers.images import make_renormalize
from rawkd_mm.training import load_config, made_up_batch, run_one_iteration

pytestmark = pytest.mark.usefixtures('mmdet')
MEAN = dict(mean=[10.0, 20.0, 30.0], std=[2.0, 4.0, 8.0])
IMAGE = (3, 64, 64)
NECK = [f'neck[{i}]' for i in range(5)]
SGD = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=1e-4))


def tracker(**kwargs):
    """ByteTrack around a small Faster R-CNN; trains it on single images unless told otherwise."""
    detector = {k: v for k, v in faster_rcnn().items() if k != 'data_preprocessor'}
    preprocessor = dict(type='TrackDataPreprocessor', use_det_processor=True, **MEAN)
    preprocessor.update(kwargs)
    return dict(
        type='ByteTrack', _scope_='mmdet', detector=detector, data_preprocessor=preprocessor
    )


def semi(**kwargs):
    detector = faster_rcnn()
    detector.data_preprocessor = dict(type='DetDataPreprocessor', **MEAN)
    preprocessor = dict(
        type='MultiBranchDataPreprocessor', data_preprocessor=detector.data_preprocessor
    )
    return dict(
        type='SoftTeacher',
        _scope_='mmdet',
        detector=detector,
        data_preprocessor=preprocessor,
        semi_train_cfg=dict(freeze_teacher=True),
        semi_test_cfg=kwargs,
    )


def outputs_of(path, model, inputs):
    """What a module gives, recorded by a plain hook."""
    found = []
    handle = model.get_submodule(path).register_forward_hook(lambda *args: found.append(args[2]))
    try:
        with torch.no_grad():
            model.eval().extract_feat(inputs)
    finally:
        handle.remove()
    return found[0]


@pytest.mark.parametrize(
    ('config', 'name'), [(tracker(), 'detector'), (semi(), 'teacher'), (faster_rcnn(), None)]
)
def test_what_holds_a_detector_has_its_features(config, name):
    model = build(config)
    assert detector_within(model) == name and image_channels(model) == 3
    found = find_features(model, 'teacher', IMAGE)
    prefix = f'{name}.' if name else ''
    assert [f.source.text for f in found] == [prefix + text for text in NECK]
    assert [f.stride for f in found] == [4, 8, 16, 32, 64]


def test_a_semi_supervised_detector_names_the_part_that_predicts():
    assert detector_within(build(semi(forward_on='student'))) == 'student'


@pytest.mark.parametrize(
    ('config', 'trained_on'),
    [
        (tracker(use_det_processor=False), 'frames of a video, one after the other'),
        (semi(), 'labelled and unlabelled images at once'),
    ],
)
def test_a_student_that_trains_its_detector_otherwise_is_refused(config, trained_on):
    with pytest.raises(AutoFeatureError, match=f'its FasterRCNN on {trained_on}.*detector alone'):
        find_features(build(config), 'student', IMAGE)


def test_a_tracker_learns_what_its_detector_alone_learns():
    """The losses of the tracker are those of the same Faster R-CNN without a tracker."""
    losses = []
    alone = faster_rcnn()
    alone.data_preprocessor = dict(type='DetDataPreprocessor', _scope_='mmdet', **MEAN)
    state = build(alone).state_dict()
    for student, path in ((tracker(), 'detector.neck[1]'), (alone, 'neck[1]')):
        algorithm = distill(
            student=student,
            teacher=copy.deepcopy(alone),
            distiller=feature_distiller(pair(path, 'neck[1]')),
        )
        student = algorithm.student
        getattr(student, 'detector', student).load_state_dict(state)
        algorithm.teacher.load_state_dict({k: v + 0.01 for k, v in state.items()})
        with DefaultScope.overwrite_default_scope('mmdet'):
            torch.manual_seed(0)
            losses.append(run_one_iteration(algorithm, SGD, (64, 64)))
    of_tracker, of_detector = losses
    of_tracker['distill.loss_cad_neck.1'] = of_tracker.pop('distill.loss_cad_detector.neck.1')
    assert of_tracker == pytest.approx(of_detector, rel=1e-5)
    assert of_detector['distill.loss_cad_neck.1'] > 0.01


@pytest.mark.parametrize(('config', 'name'), [(tracker(), 'detector'), (semi(), 'teacher')])
def test_a_teacher_that_holds_a_detector_gives_what_that_gives(config, name):
    algorithm = distill(
        student=faster_rcnn(),
        teacher=config,
        distiller=feature_distiller(pair('neck[0]', f'{name}.neck[0]')),
    )
    renormalize = make_renormalize(algorithm.data_preprocessor, algorithm.teacher.data_preprocessor)
    x = images(size=64)
    (feature,) = algorithm.frozen_teacher.extract_features(x).values()
    expected = outputs_of('neck', getattr(algorithm.teacher, name), renormalize(x, None))[0]
    torch.testing.assert_close(feature, expected)


def test_the_images_of_a_tracker_are_those_of_its_detector():
    """A tracker's mean has four dimensions, (1, C, 1, 1)."""
    config = dict(type='DetDataPreprocessor', _scope_='mmdet')
    reversed_ = MODELS.build(
        dict(config, bgr_to_rgb=True, mean=[1.0, 2.0, 3.0], std=[1.0, 1.0, 2.0])
    )
    x = images(size=8)
    found = []
    for use_det_processor in (True, False):
        preprocessor = tracker(use_det_processor=use_det_processor)['data_preprocessor']
        preprocessor = MODELS.build(dict(preprocessor, _scope_='mmdet'))
        found.append(make_renormalize(reversed_, preprocessor)(x, None))
        # what the camera gave, from the student's images, and what the tracker makes of it
        raw = (x * reversed_.std + reversed_.mean).flip(1)
        of_tracker = [torch.tensor(values).view(3, 1, 1) for values in MEAN.values()]
        torch.testing.assert_close(found[-1], (raw - of_tracker[0]) / of_tracker[1])


def test_single_images_of_clips():
    from mmengine.structures import BaseDataElement

    class Track(BaseDataElement):
        pass

    clips = torch.randn(2, 3, 3, 4, 5)
    samples = [Track(), Track()]
    for number, sample in enumerate(samples):
        sample.video_data_samples = [
            BaseDataElement(metainfo=dict(at=(number, t))) for t in range(3)
        ]
    flat, frames = single_images(clips, samples)
    assert all(torch.equal(flat[3 * i + t], clips[i, t]) for i in range(2) for t in range(3))
    assert [frame.at for frame in frames] == [(i, t) for i in range(2) for t in range(3)]
    # one sample for a group, of persons, tells nothing about its images
    assert single_images(clips[:1], [BaseDataElement()])[1] is None
    assert single_images(flat, samples) == (flat, samples)


def mask2former_of_videos():
    cfg = load_config('mmdet::mask2former_vis/mask2former_r50_8xb2-8e_youtubevis2019.py')
    config = ConfigDict(cfg.model)
    config.init_cfg = None
    config.backbone.update(base_channels=8, stem_channels=8, init_cfg=None)
    head = config.track_head
    head.update(in_channels=[32, 64, 128, 256], feat_channels=32, out_channels=32, num_queries=10)
    head.positional_encoding.num_feats = head.pixel_decoder.positional_encoding.num_feats = 16
    attention = dict(embed_dims=32, num_heads=4)
    layer = dict(self_attn_cfg=attention, ffn_cfg=dict(embed_dims=32, feedforward_channels=32))
    head.pixel_decoder.encoder.num_layers = head.transformer_decoder.num_layers = 1
    for part, has_cross in ((head.pixel_decoder.encoder, False), (head.transformer_decoder, True)):
        for key, value in layer.items():
            part.layer_cfg[key].update(value)
        if has_cross:
            part.layer_cfg.cross_attn_cfg.update(attention)
    head.train_cfg.num_points = 64
    return {'_scope_': 'mmdet', **config}


def test_mask2former_of_videos_learns_from_the_images_of_its_clips():
    """The teacher, which is the student here, gives the same map for each image of each clip."""
    config = mask2former_of_videos()
    model = build(config)
    (feature,) = find_features(model, 'student', IMAGE)
    assert feature.source.text == 'track_head.pixel_decoder[0]' and feature.stride == 4
    algorithm = distill(
        student=config,
        teacher=config,
        distiller=feature_distiller(pair(feature.source.text)),
    )
    algorithm.init_weights()
    algorithm.teacher.load_state_dict(algorithm.student.state_dict())
    inputs, samples = made_up_batch(algorithm.student, (64, 96))
    assert inputs.shape == (2, 2, 3, 64, 96) and len(samples[0]) == 2
    algorithm.eval()
    (found,) = algorithm.extract_features(inputs, samples).values()
    assert found.student.shape == (4, 32, 16, 24)
    torch.testing.assert_close(found.student, found.teacher)
    with DefaultScope.overwrite_default_scope('mmdet'):
        losses = run_one_iteration(algorithm, SGD, (64, 96))
    assert losses['student.loss_mask'] > 0
    # norm_eval: the student in training gives what the teacher gives
    assert losses['distill.loss_cad_track_head.pixel_decoder.0'] == pytest.approx(0, abs=1e-4)


def test_persons_are_a_group_of_images():
    pytest.importorskip('mmpretrain')
    name = 'mmdet::reid/reid_r50_8xb32-6e_mot15train80_test-mot15val20.py'
    config = ConfigDict(load_config(name).model)
    config.init_cfg = None
    config.backbone.depth = 18
    config.head.in_channels = 512
    model = build({'_scope_': 'mmdet', **config})
    # its neck pools to vectors
    assert [f.source.text for f in find_features(model, 'student', (3, 256, 128))] == [
        'backbone[0]'
    ]
    inputs, samples = made_up_batch(model, (256, 128))
    assert inputs.shape == (1, 4, 3, 256, 128)
    assert samples[0].gt_label.label.tolist() == [0, 0, 1, 1]
    twin = build({'_scope_': 'mmdet', **config})
    preprocessors = model.data_preprocessor, twin.data_preprocessor
    # it does not tell the order of its channels, which does not matter where both have the same
    assert make_renormalize(*preprocessors) is None
    twin.data_preprocessor.to_rgb = False
    with pytest.raises(ValueError, match='ReIDDataPreprocessor does not tell'):
        make_renormalize(*preprocessors)
