"""Reading and comparing the configs of the zoo, for the tests of its two halves."""

import copy
import re
from functools import cache
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.config import utils as config_utils
from mmengine.hub.hub import _get_cfg_metainfo
from mmengine.utils import get_installed_path

from rawkd_mm.training import (
    inline_models,
    is_distillation,
    load_config,
    make_paths_relative,
    resolve_model,
)

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / 'configs'


@cache
def _read(name):
    return load_config(str(CONFIGS / name))


def read(name):
    """A config, by its path below configs/."""
    return copy.deepcopy(_read(name))


@cache
def teacher_model(path):
    """The model that a teacher's cfg_path names."""
    return resolve_model(dict(cfg_path=path, pretrained=False))


def _installed(package):
    return get_installed_path(config_utils.MODULE2PACKAGE[package])


def published(name, package='mmseg'):
    """What the metafiles of mmseg or mmdet say about a config of their own."""
    return _get_cfg_metainfo(_installed(package), name)


def read_theirs(name, package='mmseg'):
    """A config of mmseg's or mmdet's own."""
    return load_config(f'{_installed(package)}/.mim/configs/{name}')


def without(config, *keys):
    """The config without the entries of these names, at any depth."""
    if isinstance(config, dict):
        return {k: without(v, *keys) for k, v in config.items() if k not in keys}
    if isinstance(config, (list, tuple)):
        return type(config)(without(item, *keys) for item in config)
    return config


def entries(config, key):
    """All entries of this name, at any depth."""
    if isinstance(config, dict):
        found = [config[key]] if key in config else []
        return found + [e for value in config.values() for e in entries(value, key)]
    if isinstance(config, (list, tuple)):
        return [e for item in config for e in entries(item, key)]
    return []


def table_rows(folder):
    """The rows of the tables in a folder's README as lists of cells, by the config they link to."""
    rows = {}
    for line in (CONFIGS / folder / 'README.md').read_text().splitlines():
        for link in re.findall(r'\[config\]\((.*?)\)', line):
            rows[f'{folder}/{link}'] = [cell.strip() for cell in line.strip('|').split('|')]
    return rows


def check_self_contained(name):
    """As tools/dump_config.py writes it: see test_tools/test_dump_config.py for the tool itself."""
    cfg = inline_models(read(name))
    changed, left = make_paths_relative(cfg, [str(ROOT)])
    text = cfg.pretty_text
    assert not changed and not left
    assert '_base_ =' not in text and 'cfg_path' not in text
    assert 'mmseg::' not in text and 'mmdet::' not in text
    assert str(ROOT) not in text
    again = Config.fromstring(text, '.py')
    assert again.to_dict() == cfg.to_dict()
    assert again.custom_imports['imports'] == ['rawkd_mm']


def forget_pretrained(config):
    """Remove the weights that a model begins with, in place."""
    if isinstance(config, dict):
        if isinstance(config.get('pretrained'), str):
            config['pretrained'] = None
        if (config.get('init_cfg') or {}).get('type') == 'Pretrained':
            del config['init_cfg']
        for value in config.values():
            forget_pretrained(value)


def buildable(name):
    """A config with its models written out, without any weights to begin with."""
    cfg = inline_models(read(name))
    forget_pretrained(cfg.model)
    if is_distillation(cfg):
        cfg.model.update(teacher_ckpt=None, allow_random_teacher=True)
    return cfg


def check_step(cfg, model, optim_wrapper, batch):
    """One iteration: each loss of the distillation alone reaches the student, all is finite.

    Every trained parameter gets a gradient, for which DDP waits. Gives the losses by name.
    """
    distilled = is_distillation(cfg)
    losses = model(**batch, mode='loss')
    student = model.architecture if distilled else model
    backbone = {k: v for k, v in student.backbone.named_parameters() if v.requires_grad}
    for key, loss in losses.items():
        if key.startswith('distill.'):
            assert loss.isfinite() and loss > 0, key
            gradients = torch.autograd.grad(loss, list(backbone.values()), retain_graph=True)
            assert all(gradient.isfinite().all() for gradient in gradients), key
            # not all: residual branches may begin with a factor of 0
            assert any(gradient.abs().max() > 0 for gradient in gradients), key
    before = {key: value.detach().clone() for key, value in backbone.items()}
    total, log = model.parse_losses(losses)
    assert total.isfinite()
    assert {key for key in losses if key.startswith('distill.')} <= set(log)
    optim_wrapper.backward(total)
    trained = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    assert [name for name, value in trained if value.grad is None] == []
    optim_wrapper.step()
    assert any(not torch.equal(before[key], value) for key, value in backbone.items())
    assert all(value.isfinite().all() for value in model.parameters())
    return losses
