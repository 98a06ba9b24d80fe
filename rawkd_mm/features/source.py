"""The name of a feature: where in a model it comes from."""

import re
from typing import NamedTuple

__all__ = ['FeatureSource']

_PATTERN = re.compile(
    r'(?P<module>[\w.-]+)(?P<input>:input)?(?:\[run=(?P<run>-?\d+)\])?(?P<index>(?:\[\d+\])*)'
    r'(?P<tokens>:tokens(?:\[(?P<level>\d+)\])?)?'
)


class FeatureSource(NamedTuple):
    """Where a feature comes from: ``'decode_head.bottleneck'``, or ``'neck[2]'`` of a tuple.

    Each of these may follow the path, in this order:

    - ``':input'``: what the module is given, for features that no module outputs (a sum of levels,
      say): ``'decode_head.dropout:input'``.
    - ``'[run=0]'``: of a module that runs several times in one forward, which run is meant. Negative
      numbers count from the last one, and the model runs to its end for them.
    - ``'[2]'``: an index, if that is a tuple or list; ``'[1][2]'`` if tuples lie within.
    - ``':tokens'``: a sequence of tokens becomes a map (:mod:`rawkd_mm.features.tokens`):
      ``'backbone.layers.11:tokens'``. Of a sequence of several maps, such as the memory of Deformable
      DETR, ``':tokens[1]'`` is one of them.

    Attributes:
        module (str): Path of the module, as in ``model.named_modules()``.
        index (int | tuple[int, ...] | None): Index into the module's output (or input) if that is a
            tuple or list; several of them if such lie within.
        is_input (bool): Whether the module's first positional argument is meant, not its output.
        run (int | None): Which run of the module is meant. None if it runs once.
        is_tokens (bool): Whether it is a sequence of tokens that is made a map.
        level (int | None): Which map of a sequence of several is meant.
    """

    module: str
    index: int | tuple[int, ...] | None = None
    is_input: bool = False
    run: int | None = None
    is_tokens: bool = False
    level: int | None = None

    @classmethod
    def parse(cls, text: str) -> 'FeatureSource':
        """Parse a name, see above.

        Raises:
            ValueError: If the text has none of these forms.

        Examples:
            >>> FeatureSource.parse('neck[2]').index
            2
            >>> FeatureSource.parse('backbone.layers.11:tokens').module
            'backbone.layers.11'
        """
        match = _PATTERN.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise ValueError(
                f'a feature is named by the path of a module, optionally with an index, such as '
                f"'decode_head.bottleneck' or 'neck[0]'. In this order there may follow ':input', "
                f"'[run=0]', '[0]' and ':tokens'; got {text!r}"
            )
        indices = tuple(int(number) for number in re.findall(r'\d+', match['index']))
        return cls(
            module=match['module'],
            index=indices[0] if len(indices) == 1 else indices or None,
            is_input=match['input'] is not None,
            run=None if match['run'] is None else int(match['run']),
            is_tokens=match['tokens'] is not None,
            level=None if match['level'] is None else int(match['level']),
        )

    @property
    def indices(self) -> tuple[int, ...]:
        """The indices into the output, the outermost first; none if it is a tensor."""
        if self.index is None:
            return ()
        return (self.index,) if isinstance(self.index, int) else self.index

    @property
    def text(self) -> str:
        """What :meth:`parse` reads: ``'neck[2]'``."""
        return ''.join(
            (
                self.module,
                ':input' if self.is_input else '',
                '' if self.run is None else f'[run={self.run}]',
                *(f'[{index}]' for index in self.indices),
                ':tokens' if self.is_tokens else '',
                '' if self.level is None else f'[{self.level}]',
            )
        )

    @property
    def label(self) -> str:
        """The name without brackets, for log entries: ``'neck.2'``."""
        text = self.text.replace('=', '')
        return text.replace(':', '.').replace('[', '.').replace(']', '')
