"""The optimizer's groups of a distilled student are those of the student alone.

Public report: open-mmlab/mmsegmentation#1438 (layer-wise decay needs ``model.backbone``). Seen when the
project was tried from outside: ``custom_keys={'head': dict(lr_mult=10)}`` gave the connector of
``decode_head.bottleneck`` ten times the rate.
"""

import copy
import warnings

import pytest
import torch
from helpers import build, distill, feature_distiller, pair, pspnet, run, upernet_swin
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from torch import nn
from zoo import forget_pretrained, read_theirs

from rawkd_mm.training.optimizer_state import regroup_optimizer_state

# The names of these connectors have all that custom keys and constructors look for.
CONNECTORS = dict(
    decode_head_norm=dict(
        type='ConvModuleConnector', in_channel=2, out_channel=3, norm_cfg=dict(type='BN')
    ),
    backbone_blocks_0=dict(type='ConvModuleConnector', in_channel=2, out_channel=3),
)


def groups_of(wrapper, names):
    """What each group holds: the names of its parameters and its settings, in order."""
    return [
        ([names[p] for p in group['params']], {k: v for k, v in group.items() if k != 'params'})
        for group in wrapper.optimizer.param_groups
    ]


def check(student, optim_wrapper, scope='mmseg'):
    """Compare the groups of a student with those of its distillation."""
    with DefaultScope.overwrite_default_scope(scope):
        names = {p: n for n, p in student.named_parameters()}
        alone = groups_of(build_optim_wrapper(student, copy.deepcopy(optim_wrapper)), names)
        algorithm = distill(
            student=student,
            distiller=dict(type='mmrazor.ConfigurableDistiller', connectors=CONNECTORS),
        )
        names = {p: n for n, p in algorithm.student.named_parameters()}
        connectors = {p: f'distiller.{n}' for n, p in algorithm.distiller.named_parameters()}
        wrapper = build_optim_wrapper(algorithm, copy.deepcopy(optim_wrapper))
    found = groups_of(wrapper, {**names, **connectors})
    assert found[:-1] == alone
    last, settings = found[-1]
    assert last == list(connectors.values()) and len(last) == 5
    defaults = wrapper.optimizer.defaults
    assert {k: settings[k] for k in ('lr', 'weight_decay')} == {
        k: defaults[k] for k in ('lr', 'weight_decay')
    }
    assert defaults['lr'] == optim_wrapper['optimizer']['lr']
    assert defaults['weight_decay'] == optim_wrapper['optimizer'].get('weight_decay', 0)
    return alone


def optim(**kwargs):
    return dict(
        type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05), **kwargs
    )


@pytest.mark.parametrize(
    'paramwise',
    [
        None,
        dict(custom_keys=dict(head=dict(lr_mult=10.0), norm=dict(decay_mult=0.0))),
        dict(norm_decay_mult=0.0, bias_decay_mult=0.0, bias_lr_mult=2.0, bypass_duplicate=True),
        dict(custom_keys=dict(backbone=dict(lr_mult=0.1), distiller=dict(lr_mult=7.0))),
    ],
    ids=['none', 'SegFormer', 'norms and biases', 'backbone'],
)
def test_groups(paramwise):
    wrapper = optim() if paramwise is None else optim(paramwise_cfg=paramwise)
    alone = check(build(pspnet()), wrapper)
    assert len(alone) == 1 if paramwise is None else len(alone) > 50


def test_the_rate_of_a_connector_called_after_a_head():
    algorithm = distill()
    wrapper = build_optim_wrapper(
        algorithm, optim(paramwise_cfg=dict(custom_keys=dict(head=dict(lr_mult=10.0))))
    )
    rates = {
        parameter: group['lr']
        for group in wrapper.optimizer.param_groups
        for parameter in group['params']
    }
    assert {rates[p] for p in algorithm.student.decode_head.parameters()} == {1e-2}
    assert {rates[p] for p in algorithm.student.backbone.parameters()} == {1e-3}
    connectors = list(algorithm.distiller.connectors.parameters())
    assert connectors and {rates[p] for p in connectors} == {1e-3}


# one of each kind: constructor, custom keys of names, of a detector's parts, of norms
QUICK = {
    'mmseg': [
        'beit/beit-base_upernet_8xb2-160k_ade20k-640x640.py',
        'segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
        'segnext/segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512.py',
    ],
    'mmdet': [
        'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
        'yolox/yolox_tiny_8xb8-300e_coco.py',
        'rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
    ],
}
# One config of each folder and kind of groups of mmseg and mmdet whose models are not built from
# files that cannot be had; the largest are left out where a smaller one has the same groups.
ALL = {
    'mmseg': [
        'deeplabv3plus/deeplabv3plus_r50-d8_4xb2-300k_mapillay_v1_65-1280x1280.py',
        'dnlnet/dnl_r50-d8_4xb2-80k_cityscapes-769x769.py',
        'dpt/dpt_vit-b16_8xb2-160k_ade20k-512x512.py',
        'knet/knet-s3_swin-t_upernet_8xb2-adamw-80k_ade20k-512x512.py',
        'mae/mae-base_upernet_8xb2-amp-160k_ade20k-512x512.py',
        'mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py',
        'mask2former/mask2former_swin-t_8xb2-160k_ade20k-512x512.py',
        'maskformer/maskformer_r50-d32_8xb2-160k_ade20k-512x512.py',
        'maskformer/maskformer_swin-t_upernet_8xb2-160k_ade20k-512x512.py',
        'san/san-vit-b16_coco-stuff164k-640x640.py',
        'setr/setr_vit-l_naive_8xb2-160k_ade20k-512x512.py',
        'swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py',
        'twins/twins_pcpvt-s_uperhead_8xb4-160k_ade20k-512x512.py',
        'vit/vit_deit-s16_upernet_8xb2-80k_ade20k-512x512.py',
    ],
    'mmdet': [
        'autoassign/autoassign_r50-caffe_fpn_1x_coco.py',
        'centernet/centernet-update_r18_fpn_8xb8-amp-lsj-200e_coco.py',
        'conditional_detr/conditional-detr_r50_8xb2-50e_coco.py',
        'dab_detr/dab-detr_r50_8xb2-50e_coco.py',
        'ddq/ddq-detr-4scale_r50_8xb2-12e_coco.py',
        'detr/detr_r50_8xb2-150e_coco.py',
        'dino/dino-4scale_r50_8xb2-12e_coco.py',
        'dino/dino-4scale_r50_improved_8xb2-12e_coco.py',
        'efficientnet/retinanet_effb3_fpn_8xb4-crop896-1x_coco.py',
        'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
        'fpg/faster-rcnn_r50_fpg_crop640-50e_coco.py',
        'mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
        'mask2former/mask2former_swin-t-p4-w7-224_8xb2-lsj-50e_coco.py',
        'maskformer/maskformer_r50_ms-16xb1-75e_coco.py',
        'nas_fcos/nas-fcos_r50-caffe_fpn_fcoshead-gn-head_4xb4-1x_coco.py',
        'nas_fpn/retinanet_r50_nasfpn_crop640-50e_coco.py',
        'queryinst/queryinst_r50_fpn_1x_coco.py',
        'resnet_strikes_back/faster-rcnn_r50-rsb-pre_fpn_1x_coco.py',
        'rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py',
        'scratch/faster-rcnn_r50-scratch_fpn_gn-all_6x_coco.py',
        'swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py',
        'vfnet/vfnet_r50_fpn_1x_coco.py',
        'yolof/yolof_r50-c5_8xb8-1x_coco.py',
    ],
}


def published(configs, **kwargs):
    return [
        pytest.param(package, name, id=f'{package}-{name.split("/")[1][:40]}', **kwargs)
        for package, names in configs.items()
        for name in names
    ]


@pytest.mark.parametrize(
    ('package', 'name'), [*published(QUICK), *published(ALL, marks=pytest.mark.slow)]
)
def test_groups_of_published_configs(mmdet, package, name):
    cfg = read_theirs(name, package)
    forget_pretrained(cfg.model)
    scope = cfg.get('default_scope', package)
    with DefaultScope.overwrite_default_scope(scope), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        student = MODELS.build({'_scope_': scope, **cfg.model})
    assert cfg.optim_wrapper.get('constructor') or cfg.optim_wrapper.get('paramwise_cfg')
    # mixed precision changes no groups, and MMEngine's has none on a CPU
    cfg.optim_wrapper.type = 'OptimWrapper'
    for argument in ('loss_scale', 'dtype'):
        cfg.optim_wrapper.pop(argument, None)
    check(student, cfg.optim_wrapper, scope)


def test_the_schedule_holds_for_the_connectors_too(tmp_path):
    algorithm = distill()
    schedule = [dict(type='LinearLR', start_factor=0.5, begin=0, end=4, by_epoch=False)]
    runner = run(algorithm, tmp_path, iters=2, param_scheduler=schedule)
    groups = runner.optim_wrapper.optimizer.param_groups
    assert len(groups) == 2
    assert groups[0]['lr'] == groups[1]['lr'] != 0.05


def test_several_optimizers_are_refused_if_there_are_connectors():
    class Two:
        def __init__(self, optim_wrapper_cfg, paramwise_cfg=None):
            pass

        def __call__(self, model):
            from mmengine.optim import OptimWrapper, OptimWrapperDict

            return OptimWrapperDict(
                a=OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1)),
            )

    from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS

    OPTIM_WRAPPER_CONSTRUCTORS.register_module(name='TwoOptimizers', module=Two, force=True)
    with pytest.raises(TypeError, match='OptimWrapperDict.*several optimizers.*connectors'):
        build_optim_wrapper(distill(), optim(constructor='TwoOptimizers'))
    # without connectors it is the student's own matter
    same = distill(pair('backbone[3]'), teacher=pspnet())
    assert build_optim_wrapper(same, optim(constructor='TwoOptimizers'))['a']


def test_other_models_are_left_alone():
    model = nn.Linear(2, 2)
    (group,) = build_optim_wrapper(model, optim()).optimizer.param_groups
    assert group['params'] == list(model.parameters())


def old_layout(algorithm, config):
    """The optimizer as it was built before: MMEngine's constructor got the whole algorithm."""
    return build_optim_wrapper.__wrapped__(algorithm, copy.deepcopy(config))


@pytest.mark.parametrize(
    'paramwise', [None, dict(custom_keys=dict(head=dict(lr_mult=10.0)))], ids=['one group', 'many']
)
def test_checkpoints_with_the_groups_of_before_go_on(tmp_path, paramwise):
    config = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.05, momentum=0.9))
    if paramwise:
        config['paramwise_cfg'] = paramwise
    schedule = [dict(type='CosineAnnealingLR', T_max=6, eta_min=0, begin=0, end=6, by_epoch=False)]
    runs = dict(param_scheduler=schedule, optim_wrapper=config, save_every=2)
    saves = [dict(type='ResumableCheckpointHook', by_epoch=False, interval=2)]
    first = run(distill(), tmp_path / 'now', iters=2, hooks=saves, **copy.deepcopy(runs))
    checkpoint = torch.load(tmp_path / 'now/iter_2.pth', weights_only=False)

    # as version 0.1 saved it: the same momentum, other groups
    old = old_layout(distill(), config)
    state = old.state_dict()
    new_state = first.optim_wrapper.state_dict()
    state['state'] = {k: v for k, v in new_state['state'].items()}
    factor = new_state['param_groups'][0]['lr'] / new_state['param_groups'][0].get(
        'initial_lr', 0.05
    )
    for group in state['param_groups']:
        group['initial_lr'] = group['lr']
        group['lr'] *= factor
    (scheduler,) = checkpoint['param_schedulers']
    count = len(old.param_groups)
    rates = [group['initial_lr'] for group in state['param_groups']]
    rates += [0.05] * (count - len(rates))
    scheduler['base_values'] = rates
    scheduler['_last_value'] = [rate * factor for rate in rates]
    checkpoint.update(optimizer=state, param_schedulers=[scheduler])
    torch.save(checkpoint, tmp_path / 'old.pth')

    resumed = run(
        distill(), tmp_path / 'resumed', iters=4, hooks=saves, resume=True,
        load_from=str(tmp_path / 'old.pth'), **copy.deepcopy(runs),
    )  # fmt: skip
    straight = run(distill(), tmp_path / 'straight', iters=4, hooks=saves, **copy.deepcopy(runs))
    expected = straight.model.student.state_dict()
    if paramwise is None:
        for name, value in resumed.model.student.state_dict().items():
            torch.testing.assert_close(value, expected[name])
    # the rates of the student are those of a training that was never interrupted, at each group
    ours = resumed.optim_wrapper.optimizer.param_groups
    theirs = straight.optim_wrapper.optimizer.param_groups
    for a, b in zip(ours[:-1], theirs[:-1]):
        assert a['lr'] == pytest.approx(b['lr'])
    # the connectors keep the rate that they had
    assert ours[-1]['lr'] == pytest.approx(theirs[-1]['lr'] * (10 if paramwise else 1))


def test_a_state_that_fits_or_cannot_fit_is_left_alone():
    algorithm = distill()
    wrapper = build_optim_wrapper(algorithm, optim())
    fitting = dict(optimizer=wrapper.state_dict())
    assert regroup_optimizer_state(fitting, wrapper) is False
    other = build_optim_wrapper(build(upernet_swin()), optim())
    assert regroup_optimizer_state(dict(optimizer=other.state_dict()), wrapper) is False
    assert regroup_optimizer_state({}, wrapper) is False


def test_feature_distiller_connectors_are_a_group(tmp_path):
    """With the distiller that users have: pairs with a connector and a trained loss."""
    mask = dict(type='MGDConnector', student_channels='auto', teacher_channels='auto')
    distiller = feature_distiller(
        pair(), pair('backbone[3]', loss=dict(type='MGDLoss'), student_connector=mask)
    )
    algorithm = distill(distiller=distiller)
    wrapper = build_optim_wrapper(algorithm, optim(paramwise_cfg=dict(norm_decay_mult=0.0)))
    last = wrapper.optimizer.param_groups[-1]
    assert set(last['params']) == set(algorithm.distiller.parameters())
    assert (last['lr'], last['weight_decay']) == (1e-3, 0.05)
