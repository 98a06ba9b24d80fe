"""The name of a feature: where in a model it comes from."""

import re
from typing import NamedTuple

__all__ = ['FeatureSource']


class FeatureSource(NamedTuple):
    """Where a feature comes from: ``'decode_head.bottleneck'``, or ``'neck[2]'`` of a tuple.

    ``'decode_head.dropout:input'`` is what a module is given, for features that no module outputs
    (a sum of levels, say).

    Attributes:
        module (str): Path of the module, as in ``model.named_modules()``.
        index (int | None): Index into the module's output (or input) if that is a tuple or list.
        is_input (bool): Whether the module's first positional argument is meant, not its output.
    """

    module: str
    index: int | None = None
    is_input: bool = False

    @classmethod
    def parse(cls, text: str) -> 'FeatureSource':
        """Parse ``'path'``, ``'path:input'`` and either with an ``'[index]'``.

        Raises:
            ValueError: If the text has none of these forms.

        Examples:
            >>> FeatureSource.parse('neck[2]')
            FeatureSource(module='neck', index=2, is_input=False)
        """
        pattern = r'([\w.-]+)(:input)?(?:\[(\d+)\])?'
        match = re.fullmatch(pattern, text) if isinstance(text, str) else None
        if match is None:
            raise ValueError(
                f'a feature is named by the path of a module, optionally with an index, such as '
                f"'decode_head.bottleneck' or 'neck[0]'; got {text!r}"
            )
        return cls(match[1], None if match[3] is None else int(match[3]), match[2] is not None)

    @property
    def text(self) -> str:
        """What :meth:`parse` reads: ``'neck[2]'``."""
        suffix = ':input' if self.is_input else ''
        return f'{self.module}{suffix}' + ('' if self.index is None else f'[{self.index}]')

    @property
    def label(self) -> str:
        """The name without brackets, for log entries: ``'neck.2'``."""
        return self.text.replace(':', '.').replace('[', '.').replace(']', '')
