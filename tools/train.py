#!/usr/bin/env python
"""Train a model: a student alone or with its teacher, segmentor or detector, on GPUs or the CPU."""

import resource
import shlex
import sys

from _common import add_run_options, make_parser, parse_args


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='auto|PATH',
        help="go on from a checkpoint: from PATH, or ('auto', or nothing) from the work dir's last",
    )
    parser.add_argument(
        '--amp', action='store_true', help='mixed precision: float16 on GPUs, bfloat16 on the CPU'
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help="scale the learning rate with the total batch size, from the config's "
        'auto_scale_lr.base_batch_size',
    )
    parser.add_argument(
        '--student-alone',
        action='store_true',
        help="train the student of a distillation without its teacher, with all else of the config's",
    )
    add_run_options(parser)
    args = parse_args(parser)

    # Takes seconds, which --help and a wrong argument need not wait for. It has to come before the
    # config is read: it makes `mmseg::` bases work.
    from rawkd_mm.hooks import TrainingInterrupted, register_training_hooks
    from rawkd_mm.training import (
        CheckpointError,
        UsageError,
        build_runner,
        is_distillation,
        leave_processes,
        load_config,
        set_amp,
        set_auto_scale_lr,
        set_resume,
        set_work_dir,
        student_config,
        use_resumable_checkpoints,
    )

    notes = []
    try:
        cfg = load_config(args.config, args.cfg_options)
        if args.student_alone:
            if not is_distillation(cfg):
                raise UsageError(f'--student-alone: {args.config!r} has no teacher to leave out')
            cfg = student_config(cfg)
        cfg.launcher = args.launcher
        set_work_dir(cfg, args.work_dir)
        notes += set_amp(cfg, args.amp)
        if args.auto_scale_lr:
            set_auto_scale_lr(cfg)
        if args.resume:
            notes += set_resume(cfg, args.resume)
        notes += use_resumable_checkpoints(cfg)
    except UsageError as error:
        sys.exit(f'train.py: error: {error}')

    try:
        runner = build_runner(cfg)
    except CheckpointError as error:
        sys.exit(f'train.py: error: {error}')
    register_training_hooks(runner)
    runner.logger.info(f'Command: {shlex.join([sys.executable, *sys.argv])}')
    for note in notes:
        runner.logger.info(note)
    used = resource.getrusage(resource.RUSAGE_SELF)
    runner.logger.info(
        f'Processor seconds before the training: {used.ru_utime + used.ru_stime:.2f}'
    )
    try:
        runner.train()
    except CheckpointError as error:
        sys.exit(f'train.py: error: {error}')
    except TrainingInterrupted as interruption:
        leave_processes(interruption.code)
        raise
    leave_processes()


if __name__ == '__main__':
    main()
