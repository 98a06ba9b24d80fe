#!/usr/bin/env python
"""Evaluate a checkpoint. Of a distillation the student is evaluated, without teacher or connectors.

Prints the metrics and writes them to WORK_DIR/test_metrics.json. A checkpoint that does not have
all of the model's weights is an error. For a distillation the student's plain config is left in the
work dir as well, for mmseg's or mmdet's own tools.
"""

import json
import os.path as osp
import sys
from pathlib import Path

from _common import add_run_options, make_parser, parse_args


def set_visualization(cfg, args) -> None:
    from rawkd_mm.training import UsageError, package_of

    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise UsageError(
            '--show and --show-dir need default_hooks.visualization in the config, for example '
            "dict(type='SegVisualizationHook')"
        )
    hook.draw = True
    if args.show:
        hook.show = True
        hook.wait_time = args.wait_time
    if args.show_dir:
        if package_of(cfg) == 'mmdet':
            hook.test_out_dir = args.show_dir
        elif cfg.get('visualizer') is None:
            raise UsageError('--show-dir needs a visualizer in the config')
        else:
            cfg.visualizer.save_dir = args.show_dir


def set_tta(cfg) -> None:
    from rawkd_mm.training import UsageError

    missing = [key for key in ('tta_model', 'tta_pipeline') if cfg.get(key) is None]
    if missing:
        raise UsageError(
            '--tta needs tta_model and tta_pipeline in the config, which has no '
            f'{" and no ".join(missing)}'
        )
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    cfg.tta_model.module = cfg.model
    if cfg.model.get('data_preprocessor') is not None:
        # Runner fills in the config's top-level one, which would go before the model's own
        cfg.tta_model.data_preprocessor = cfg.model.data_preprocessor
    cfg.model = cfg.tta_model


def set_out(cfg, out: str) -> None:
    from rawkd_mm.training import UsageError, package_of

    evaluators = cfg.test_evaluator
    evaluators = list(evaluators) if isinstance(evaluators, (list, tuple)) else [evaluators]
    package = package_of(cfg)
    if package == 'mmdet':
        if not out.endswith(('.pkl', '.pickle')):
            raise UsageError(f'--out {out}: for a detector the name of a .pkl file is expected')
        evaluators.append(dict(type='mmdet.DumpDetResults', out_file_path=out))
    elif package == 'mmseg':
        if out.endswith(('.pkl', '.pickle')):
            raise UsageError(
                f'--out {out}: for a segmentor a folder (for PNG label maps) is expected'
            )
        for evaluator in evaluators:
            evaluator['output_dir'] = out
            evaluator['keep_results'] = True
        # mmseg's metric makes the folder in the first process only; another may write into it before.
        Path(out).mkdir(parents=True, exist_ok=True)
    else:
        raise UsageError(f"--out: default_scope is {package!r}, expected 'mmseg' or 'mmdet'")
    cfg.test_evaluator = evaluators


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument('checkpoint', metavar='CKPT', help='path or URL of a checkpoint')
    parser.add_argument(
        '--out',
        metavar='DIR|FILE.pkl',
        help='save the predictions: label maps as PNG in DIR (mmseg), results in FILE.pkl (mmdet)',
    )
    parser.add_argument('--show', action='store_true', help='show the predictions in a window')
    parser.add_argument(
        '--show-dir',
        metavar='DIR',
        help='save painted images: in DIR/vis_data (mmseg), in WORK_DIR/<time>/DIR (mmdet)',
    )
    parser.add_argument(
        '--wait-time', type=float, default=2, metavar='SECONDS', help='with --show; default 2'
    )
    parser.add_argument(
        '--tta', action='store_true', help="test-time augmentation, by the config's tta_model"
    )
    add_run_options(parser)
    args = parse_args(parser)

    # see train.py
    from mmengine.config import Config
    from mmengine.dist import is_main_process

    from rawkd_mm.training import (
        CheckpointError,
        RequireAllWeightsHook,
        UsageError,
        build_runner,
        is_distillation,
        leave_processes,
        load_config,
        set_work_dir,
        student_config,
    )

    try:
        cfg = load_config(args.config, args.cfg_options)
        set_work_dir(cfg, args.work_dir)
        if is_distillation(cfg):
            # under a name of its own: the work dir has the distillation's config already
            stem = osp.splitext(osp.basename(args.config))[0]
            cfg = Config(
                student_config(cfg).to_dict(), cfg_text=cfg.text, filename=f'{stem}_student.py'
            )
        cfg.launcher = args.launcher
        cfg.load_from, cfg.resume = args.checkpoint, False
        if args.show or args.show_dir:
            set_visualization(cfg, args)
        if args.out:
            set_out(cfg, args.out)
        if args.tta:
            set_tta(cfg)
    except UsageError as error:
        sys.exit(f'test.py: error: {error}')

    runner = build_runner(cfg)
    runner.register_hook(RequireAllWeightsHook(), priority='VERY_HIGH')
    try:
        metrics = runner.test()
    except CheckpointError as error:
        sys.exit(f'test.py: error: {args.checkpoint}: {error}')
    if is_main_process():
        metrics = {name: float(value) for name, value in metrics.items()}
        print('\n'.join(f'{name}: {value:g}' for name, value in metrics.items()))
        result = dict(config=args.config, checkpoint=args.checkpoint, tta=args.tta, metrics=metrics)
        path = osp.join(cfg.work_dir, 'test_metrics.json')
        with open(path, 'w', encoding='utf-8') as file:
            json.dump(result, file, indent=2)
        print(f'written to {path}')
    leave_processes()


if __name__ == '__main__':
    main()
