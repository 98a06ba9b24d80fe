"""Charts as SVG for an HTML page: they follow its colours, light and dark, and its width.

matplotlib draws; its colours are stand-ins that become the page's CSS variables: --ink for words,
--rule for lines of the grid, --line-0 to --line-7 for the curves.
"""

import io
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

_INK, _RULE = '#0a0b0c', '#0d0e0f'
_LINES = [f'#1a1b{i:02x}' for i in range(8)]
_STAND_INS = {_INK: '--ink', _RULE: '--rule'} | {c: f'--line-{i}' for i, c in enumerate(_LINES)}
_STYLE = {
    'svg.fonttype': 'none',  # words stay words
    'text.parse_math': False,  # nor does a $ in the name of a loss begin a formula
    'font.family': 'sans-serif',
    'font.size': 9,
    'text.color': _INK,
    'axes.labelcolor': _INK,
    'axes.edgecolor': _RULE,
    'axes.facecolor': 'none',
    'axes.grid': True,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'grid.color': _RULE,
    'grid.linewidth': 0.5,
    'xtick.color': _RULE,
    'ytick.color': _RULE,
    'xtick.labelcolor': _INK,
    'ytick.labelcolor': _INK,
    'legend.frameon': False,
}


class Line(NamedTuple):
    """A curve, or with one value for all steps a level.

    Attributes:
        label: What the legend calls it.
        points: {step: value}; a float for a level.
        colour: Number of its colour.
        style: matplotlib's line style.
    """

    label: str
    points: dict[int, float] | float
    colour: int
    style: str = '-'


def draw_curves(name: str, description: str, ylabel: str, lines: Sequence[Line]) -> Markup:
    """Draw curves over the iterations.

    Args:
        name (str): Unique in the page, of letters, digits and hyphens.
        description (str): What a screen reader says.
        ylabel (str): Label of the vertical axis.
        lines (Sequence[Line]): What to draw.

    Returns:
        Markup: An svg element.
    """
    import matplotlib.pyplot as plt

    with plt.rc_context(_STYLE | {'svg.hashsalt': name}):
        figure, axis = plt.subplots(figsize=(4.4, 2.7), layout='constrained')
        for line in lines:
            style = dict(
                color=_LINES[line.colour % len(_LINES)], linestyle=line.style, label=line.label
            )
            if isinstance(line.points, dict):
                marker = 'o' if len(line.points) <= 12 else None
                axis.plot(*zip(*line.points.items()), marker=marker, ms=3, lw=1.4, **style)
            else:
                axis.axhline(line.points, lw=1.2, **style)
        axis.set(xlabel='iteration', ylabel=ylabel)
        columns = 1 if max(len(line.label) for line in lines) > 22 else 2
        figure.legend(loc='outside lower center', ncols=columns, fontsize=8)
        return _to_svg(figure, name, description)


def draw_colour_bar(name: str, low: float, high: float, label: str) -> Markup:
    """Draw the scale of :func:`paint_map`.

    Args:
        name (str): Unique in the page, of letters, digits and hyphens.
        low (float): The value of the first colour.
        high (float): The value of the last colour.
        label (str): Of the axis, and what a screen reader says.

    Returns:
        Markup: An svg element.
    """
    import matplotlib.pyplot as plt

    with plt.rc_context(_STYLE | {'svg.hashsalt': name, 'axes.grid': False}):
        figure, axis = plt.subplots(figsize=(4.4, 0.6), layout='constrained')
        axis.imshow(np.linspace(0, 1, 256)[None], aspect='auto', extent=(low, high, 0, 1))
        axis.set(yticks=[], xlabel=label)
        axis.spines[:].set_visible(False)
        return _to_svg(figure, name, label)


def paint_map(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Paint a map of values.

    Args:
        values (np.ndarray): Shape (H, W).
        low (float): The value of the first colour.
        high (float): The value of the last colour.

    Returns:
        np.ndarray: RGB, uint8 of shape (H, W, 3).
    """
    import matplotlib

    scaled = (values - low) / max(high - low, 1e-12)
    return (255 * matplotlib.colormaps['viridis'](scaled)[..., :3]).astype(np.uint8)


def _to_svg(figure, name: str, description: str) -> Markup:
    import matplotlib.pyplot as plt

    stream = io.StringIO()
    nothing = dict.fromkeys(('Creator', 'Date', 'Format', 'Type'))
    figure.savefig(stream, format='svg', transparent=True, metadata=nothing)
    plt.close(figure)
    text = stream.getvalue()
    text = text[text.index('<svg') :]
    for colour, variable in _STAND_INS.items():
        text = text.replace(colour, f'var({variable})')
    # one page has many charts, whose elements are called the same
    text = re.sub(r'(\bid="|url\(#|href="#)', rf'\g<1>{name}-', text)
    # the page decides on the width, and its style must not be changed by the chart's
    text = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1>', text, count=1)
    text = re.sub(r'<style.*?</style>', '', text, flags=re.DOTALL)
    label = Markup.escape(description)
    return Markup(text.replace('<svg ', f'<svg role="img" aria-label="{label}" ', 1))
