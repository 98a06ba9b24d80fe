"""Sequences of tokens made maps: which grid they lie in, and what among them is no patch."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from .source import FeatureSource

__all__ = ['GridSearch', 'TokenGrid', 'tokens_to_map']

# A class token, and registers. Of more tokens it is not known where they stand in the sequence:
# Segmenter appends its classes, SAN puts its queries first.
_MOST_OTHERS = 16
# How often a model may merge two by two tokens behind the map that they come from.
_MOST_HALVINGS = 5


def tokens_to_map(tokens: Tensor, grid: Sequence[int]) -> Tensor:
    """Make a map of the patches' tokens; class and register tokens, which come first, are left out.

    Args:
        tokens (Tensor): Shape (B, N, C).
        grid (Sequence[int]): Rows and columns of patches.

    Returns:
        Tensor: Shape (B, C, rows, columns).

    Raises:
        ValueError: If there are fewer tokens than patches.
    """
    rows, columns = grid
    others = tokens.shape[1] - rows * columns
    if tokens.dim() != 3 or others < 0:
        raise ValueError(
            f'tokens of shape {tuple(tokens.shape)} are no map of {rows} x {columns} patches'
        )
    return tokens[:, others:].transpose(1, 2).unflatten(2, (rows, columns))


class TokenGrid(NamedTuple):
    """How a sequence of tokens becomes a map: its grid is that of a map that the model makes.

    The tokens of a model come from a map: that of its patches, or the levels of its neck. That map
    tells the rows and columns of every image, padding included.

    Attributes:
        module (str): Path of the module that outputs that map.
        maps (tuple[tuple[int, ...], ...]): Where it lies in that output, as indices; several if the
            sequence has several maps, one behind the other.
        halvings (int): How often the grid was halved since then (Swin merges two by two tokens).
        others (int): How many tokens are no patches and come first: class token, registers.
        layout (str): 'BNC', 'NBC' or 'BHWC'.
    """

    module: str
    maps: tuple[tuple[int, ...], ...]
    halvings: int
    others: int
    layout: str

    def sizes(self, output: Any) -> tuple[tuple[int, int], ...]:
        """Give rows and columns of the maps in an output of the module."""
        found = []
        for indices in self.maps:
            tensor = output
            for index in indices:
                tensor = tensor[index]
            found.append(_halved(tensor.shape[2:], self.halvings))
        return tuple(found)

    def to_map(
        self, tokens: Tensor, sizes: Sequence[tuple[int, int]], source: FeatureSource
    ) -> Tensor:
        """Make a map of tokens.

        Args:
            tokens (Tensor): In the grid's layout.
            sizes (Sequence[tuple[int, int]]): Rows and columns of each map, see :meth:`sizes`.
            source (FeatureSource): Its name, for the error.

        Returns:
            Tensor: Shape (B, C, rows, columns).

        Raises:
            RuntimeError: If there are more or fewer tokens than these maps have.
        """
        if self.layout == 'BHWC':
            tokens = tokens.flatten(1, 2)
        elif self.layout == 'NBC':
            tokens = tokens.transpose(0, 1)
        numbers = [rows * columns for rows, columns in sizes]
        if tokens.shape[1] != self.others + sum(numbers):
            raise RuntimeError(
                f'{source.text!r} has {tokens.shape[1]} tokens, and {_named(sizes)} patches of '
                f'{self.module!r} with {self.others} other tokens were expected, as for the image that '
                'the model was tried with. The grid of these tokens is not known: take another '
                'feature of the model; tools/inspect_features.py lists them'
            )
        if source.level is None:
            return tokens_to_map(tokens, sizes[0])
        begin = self.others + sum(numbers[: source.level])
        return tokens_to_map(tokens[:, begin : begin + numbers[source.level]], sizes[source.level])


def _halved(size: Sequence[int], times: int) -> tuple[int, int]:
    rows, columns = size
    for _ in range(times):
        rows, columns = -(-rows // 2), -(-columns // 2)
    return rows, columns


def _named(sizes: Sequence[tuple[int, int]]) -> str:
    return ' + '.join(f'{rows} x {columns}' for rows, columns in sizes)


class _Map(NamedTuple):
    """A map, or several in a tuple, that a module put out."""

    module: str
    maps: tuple[tuple[int, ...], ...]
    sizes: tuple[tuple[int, int], ...]


class GridSearch:
    """Finds in one forward which map the tokens of features come from.

    Args:
        sources (Sequence[FeatureSource]): Features; those without ``':tokens'`` are none of it.
        shape (Sequence[int]): Channels, height and width of the image.
    """

    def __init__(self, sources: Sequence[FeatureSource], shape: Sequence[int]) -> None:
        self._sources = [source for source in sources if source.is_tokens]
        self._image = tuple(shape[1:])
        self._maps: list[_Map] = []
        # how many maps there were when a module ended, by its path
        self._before: dict[str, int] = {}

    @contextmanager
    def watch(self, model: nn.Module) -> Iterator['GridSearch']:
        """Watch the model's modules while it runs in the context."""
        wanted = {source.module for source in self._sources}
        with ExitStack() as hooks:
            for name, module in model.named_modules() if wanted else ():
                hook = module.register_forward_hook(partial(self._end, name, name in wanted))
                hooks.callback(hook.remove)
            yield self

    def _end(self, name: str, is_wanted: bool, module: nn.Module, args: Any, output: Any) -> None:
        if is_wanted:
            self._before.setdefault(name, len(self._maps))
        if isinstance(output, Tensor):
            if self._is_map(output):
                self._maps.append(_Map(name, ((),), (tuple(output.shape[2:]),)))
        elif isinstance(output, (list, tuple)):
            found = {i: t for i, t in enumerate(output) if self._is_map(t)}
            self._maps += [_Map(name, ((i,),), (tuple(t.shape[2:]),)) for i, t in found.items()]
            if len(found) > 1:
                sizes = tuple(tuple(t.shape[2:]) for t in found.values())
                self._maps.append(_Map(name, tuple((i,) for i in found), sizes))

    def _is_map(self, value: object) -> bool:
        """Whether it is a tensor (B, C, H, W) of the image's shape, and not (B, H, W, C)."""
        if not isinstance(value, Tensor) or value.dim() != 4:
            return False
        return _is_image_like(value.shape[2:], self._image)

    def find(
        self, source: FeatureSource, tokens: Tensor
    ) -> tuple[TokenGrid, tuple[tuple[int, int], ...]]:
        """Give the grid of a feature that is a sequence.

        Args:
            source (FeatureSource): The feature.
            tokens (Tensor): What the model put out for one image.

        Returns:
            tuple[TokenGrid, tuple[tuple[int, int], ...]]: The grid; rows and columns of its maps for
            this image.

        Raises:
            ValueError: If the feature is no sequence, its grid is not known, or a level is missing or
                wrong.
        """
        shape = tuple(tokens.shape)
        maps = self._maps[: self._before.get(source.module)]
        if tokens.dim() == 4:
            number, layout = shape[1] * shape[2], 'BHWC'
            maps = [m for m in maps if any(_halved(m.sizes[0], k) == shape[1:3] for k in _HALVINGS)]
        elif tokens.dim() == 3:
            # one image: its dimension is the one of length 1
            number, layout = (shape[1], 'BNC') if shape[0] == 1 else (shape[0], 'NBC')
        else:
            raise ValueError(
                f'{source.text!r}: tokens have the shape (B, N, C), (N, B, C) or (B, H, W, C), got '
                f"{shape}. Leave out ':tokens', or take another feature"
            )
        several = [m for m in maps if len(m.maps) > 1 and sum(r * c for r, c in m.sizes) == number]
        fits = [fit for m in maps if len(m.maps) == 1 for fit in _fits(m, number)]
        # the fewest other tokens; then as the map is; then the latest
        best = min(reversed(fits), key=lambda fit: fit[:2], default=None)
        if several and (best is None or best[0] > 0):
            found = several[-1]
            if source.level is None or source.level >= len(found.sizes):
                raise ValueError(
                    f'{source.text!r} is a sequence of {len(found.sizes)} maps, of '
                    f'{_named(found.sizes)} tokens: say which one, such as '
                    f'{source._replace(level=0).text!r}'
                )
            return TokenGrid(found.module, found.maps, 0, 0, layout), found.sizes
        if best is None:
            raise ValueError(
                f'{source.text!r} has the shape {shape}, and no map that the model makes of an image '
                f'of {self._image[0]}x{self._image[1]} before it has as many positions, give or take '
                f"at most {_MOST_OTHERS} class and register tokens: the grid of these tokens isn't "
                'known. '
                'Take another feature of the model; tools/inspect_features.py lists them'
            )
        if source.level is not None:
            raise ValueError(
                f'{source.text!r} is a sequence of one map: leave out [{source.level}]'
            )
        others, halvings, found = best
        grid = TokenGrid(found.module, found.maps, halvings, others, layout)
        return grid, (_halved(found.sizes[0], halvings),)


_HALVINGS = range(_MOST_HALVINGS + 1)


def _fits(found: _Map, number: int) -> list[tuple[int, int, _Map]]:
    """Give number of other tokens, halvings and the map itself where it may be what tokens come from."""
    fits = []
    for halvings in _HALVINGS:
        rows, columns = _halved(found.sizes[0], halvings)
        others = number - rows * columns
        if 0 <= others <= min(_MOST_OTHERS, rows * columns):
            fits.append((others, halvings, found))
    return fits


def _is_image_like(size: Sequence[int], image: Sequence[int]) -> bool:
    """Whether some rows and columns may be those of an image: of one stride, rounded."""
    strides = [
        (length / (cells + 1), length / max(cells - 1, 0.5)) for cells, length in zip(size, image)
    ]
    return min(high for _, high in strides) >= max(low for low, _ in strides)
