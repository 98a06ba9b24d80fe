"""What the command make_distill_config.py does."""

import argparse
import shlex
import sys
from pathlib import Path

from rich.console import Console

from .making import make, try_out
from .report import count_all, find_warnings, print_tables


def run(args: argparse.Namespace) -> None:
    """Compose a distillation, print what it is and what to mind, try it out and write its config.

    Args:
        args (argparse.Namespace): ``teacher``, ``teacher_ckpt``, ``student``, ``method``,
            ``features``, ``out`` and ``no_check``, as make_distill_config.py has them.

    Raises:
        UsageError: If the models cannot be read, built or distilled so; ``ValueError`` and
            ``RuntimeError`` if their features or the trial iteration fail. Nothing is written.
    """
    console = Console(width=None if sys.stdout.isatty() else 140)
    result = make(args)
    algorithm, pairs, size = result.algorithm, result.pairs, result.size
    counts = count_all(algorithm, pairs, size)
    warnings = find_warnings(result.cfgs, algorithm, pairs, counts)
    warnings += [f'An absolute path is left: {k} = {v!r}' for k, v in result.left.items()]
    print_tables(console, algorithm, pairs, counts, size, result.notes, warnings)
    if not args.no_check:
        losses, size = try_out(result)
        values = ', '.join(f'{k} {v:.4g}' for k, v in losses.items() if k.startswith('distill'))
        console.print(
            f'One iteration on 2 made-up images of {size[0]}x{size[1]} ran: loss '
            f'{losses["loss"]:.4g}; {values}',
            markup=False,
            highlight=False,
        )
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(result.text, encoding='utf-8')
    print(f'{out} is written. To train:\n    python tools/train.py {shlex.quote(str(out))}')
