#!/usr/bin/env python
"""Train a model: a student alone or with its teacher, segmentor or detector, on GPUs or the CPU."""

import json
import resource
import shlex
import sys
from functools import partial
from pathlib import Path

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
    parser.add_argument(
        '--together',
        metavar='FILE',
        help='train others in this process too, with the same teacher on the same batches: it runs once '
        'for all. FILE is JSON: a list that has, for each of the others, the list of its arguments. '
        'What a training prints goes to train.log in its work dir (weight_sweep.py --share-teacher '
        'calls this)',
    )
    add_run_options(parser)
    args = parse_args(parser)
    others = read_others(parser, args) if args.together else []

    # Takes seconds, which --help and a wrong argument need not wait for. It has to come before the
    # config is read: it makes `mmseg::` bases work.
    from rawkd_mm.hooks import TrainingInterrupted
    from rawkd_mm.loops.together import TogetherError, train_together
    from rawkd_mm.training import CheckpointError, UsageError, leave_processes

    try:
        if others:
            code = train_together({one.work_dir: partial(build, one) for one in [args, *others]})
            leave_processes(code)
            sys.exit(code)
        build(args).train()
    except (UsageError, CheckpointError, TogetherError) as error:
        sys.exit(f'train.py: error: {error}')
    except TrainingInterrupted as interruption:
        leave_processes(interruption.code)
        raise
    leave_processes()


def read_others(parser, first) -> list:
    """Read the arguments of the other trainings."""
    file = first.together
    try:
        others = json.loads(Path(file).read_text())
    except (OSError, ValueError) as error:
        parser.error(f'--together {file}: {error}')
    others = [parse_args(parser, arguments) for arguments in others]
    folders = [one.work_dir for one in [first, *others]]
    if None in folders or len(set(folders)) < len(folders):
        parser.error(f'--together {file}: each needs a --work-dir of its own, got {folders}')
    for one in others:
        one.launcher = first.launcher
    return others


def read_training(args):
    """Give the config of a training, and notes for its log."""
    from rawkd_mm.training import (
        UsageError,
        is_distillation,
        load_config,
        set_amp,
        set_auto_scale_lr,
        set_resume,
        set_work_dir,
        student_config,
        use_resumable_checkpoints,
    )

    notes = []
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
    return cfg, notes


def build(args):
    """Build the Runner of a training."""
    from rawkd_mm.hooks import register_training_hooks
    from rawkd_mm.training import build_runner

    cfg, notes = read_training(args)
    runner = build_runner(cfg)
    register_training_hooks(runner)
    runner.logger.info(f'Command: {shlex.join([sys.executable, *sys.argv])}')
    for note in notes:
        runner.logger.info(note)
    used = resource.getrusage(resource.RUSAGE_SELF)
    runner.logger.info(
        f'Processor seconds before the training: {used.ru_utime + used.ru_stime:.2f}'
    )
    return runner


if __name__ == '__main__':
    main()
