"""The arguments that every figure of a sweep takes on the command line."""

import argparse
from pathlib import Path


def make_parser(description: str, what: str, metavar: str) -> argparse.ArgumentParser:
    """Give a parser with the arguments that every figure takes."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('sources', type=Path, nargs='+', metavar=metavar, help=what)
    parser.add_argument(
        '-o',
        '--out',
        required=True,
        metavar='PREFIX',
        help='writes PREFIX.png and PREFIX.svg, in a folder that is made if need be',
    )
    parser.add_argument(
        '--titles',
        nargs='+',
        metavar='TITLE',
        help="the columns' titles, from left to right, instead of names of folders",
    )
    return parser
