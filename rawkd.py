"""The command ``rawkd``: runs the tools of this package by name, and needs no checkout.

``rawkd train CONFIG`` runs the script tools/train.py with the arguments that follow, in this process.
The script is the one parser of its arguments. It only takes the name in its help from here.

This is a module beside the package and not in it. Importing anything of ``rawkd_mm`` imports PyTorch
and all of OpenMMLab first, to register what the package has. That takes seconds, which ``rawkd --help``
and a mistyped command need not wait for. So this file imports nothing but the standard library.
"""

import ast
import difflib
import runpy
import shlex
import sys
import textwrap
from pathlib import Path

__all__ = ['main']

_HERE = Path(__file__).resolve().parent
_INSTALLED = _HERE / 'rawkd_mm' / '.mim'
# An editable install has links here, which the tools' own paths should not show.
TOOLS = (_INSTALLED / 'tools').resolve() if _INSTALLED.is_dir() else _HERE / 'tools'
# In the order in which they are needed.
COMMANDS = {
    'demo': 'demo.py',
    'configs': 'configs.py',
    'inspect': 'inspect_features.py',
    'make-config': 'make_distill_config.py',
    'train': 'train.py',
    'test': 'test.py',
    'report': 'analysis_tools/report.py',
    'sweep': 'analysis_tools/weight_sweep.py',
    'benchmark': 'analysis_tools/benchmark_distill.py',
    'dump-config': 'dump_config.py',
    'digit-scenes': 'dataset_converters/digit_scenes.py',
}
USAGE = 'usage: rawkd COMMAND [ARGUMENTS ...]\n       rawkd COMMAND --help\n       rawkd --version'


def main(arguments: list[str] | None = None) -> None:
    """Run the command that a command line names; ends as its tool ends.

    Args:
        arguments (list[str], optional): What follows ``rawkd``; by default those of this process.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    name, *rest = arguments or ['']
    if name in ('-h', '--help'):
        print(_help())
    elif name == '--version':
        print(f'rawkd_mm {_version()}')
    elif name in COMMANDS:
        _run(name, rest)
    else:
        sys.exit(_refuse(name))


def _run(name: str, arguments: list[str]) -> None:
    script = TOOLS / COMMANDS[name]
    sys.path.insert(0, str(script.parent))  # as `python SCRIPT` does
    sys.argv[1:] = arguments
    # tools/_package.py reads the name; run_path itself sets sys.argv[0]
    runpy.run_path(str(script), {'RAWKD_PROGRAM': f'rawkd {name}'}, '__main__')


def _refuse(name: str) -> int:
    if not name:
        message = 'a command is missing'
    else:
        close = difflib.get_close_matches(name, COMMANDS, n=3)
        names = f'the closest: {", ".join(close)}' if close else f'there are {", ".join(COMMANDS)}'
        message = f'there is no command {name!r}; {names}'
    print(f'{USAGE}\nrawkd: error: {message}', file=sys.stderr)
    return 2  # as argparse does


def _version() -> str:
    return runpy.run_path(str(_HERE / 'rawkd_mm' / 'version.py'))['__version__']


def _help() -> str:
    width = max(map(len, COMMANDS))
    rows = [
        textwrap.fill(
            f'{name:{width}}  {_summary(TOOLS / script)}',
            width=96,
            initial_indent='  ',
            subsequent_indent=' ' * (width + 4),
        )
        for name, script in COMMANDS.items()
    ]
    python, scripts = shlex.quote(sys.executable), shlex.quote(str(TOOLS))
    return '\n'.join(
        [
            USAGE,
            '',
            'Distillation of raw features (LAD, CAD) for models of MMSegmentation and MMDetection.',
            '',
            'commands:',
            *rows,
            '',
            'Several GPUs: scripts in the folder of the tools start one process for each, dist_*.sh',
            'with torchrun and slurm_*.sh with Slurm. With eight:',
            f'  PYTHON={python} bash {scripts}/dist_train.sh CONFIG 8 [ARGUMENTS of train]',
        ]
    )


def _summary(script: Path) -> str:
    """Give the first line of a tool's docstring."""
    return ast.get_docstring(ast.parse(script.read_text(encoding='utf-8'))).partition('\n')[0]


if __name__ == '__main__':
    main()
