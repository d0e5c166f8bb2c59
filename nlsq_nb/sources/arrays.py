"""Arrays as a source: in memory, or mapped from a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.core.chunk import Chunk
from nlsq_nb.core.columns import ALL_OMITTED, split_columns, split_grouped, split_outputs, storage_dtype
from nlsq_nb.core.layout import BLOCK
from nlsq_nb.core.whitening import is_covariance, whitening_from
from nlsq_nb.errors import DataError, UnsupportedOption
from nlsq_nb.sources.reading import Columns, ColumnsReader, ViewsReader, mappings
from nlsq_nb.sources.rows import is_ready
from nlsq_nb.sources.weights import GroupIndex, GroupWeights, checked_sigma

__all__ = ["ArraySource"]

_RESIDENT_ROWS = 1 << 22  # enough segments for any number of threads, small temporaries
_RESIDENT_BYTES = 1 << 25  # of a chunk that is mapped from a file
Arrays = tuple[NDArray[Any], ...]


class ArraySource:
    """Rows of arrays, column by column.

    Columns that are contiguous and of the storage dtype are never copied. Others are converted
    once; those of more than `_RESIDENT_ROWS` rows that are mapped from a file are converted chunk by
    chunk in every pass instead, so that memory does not grow with the file.

    Parameters
    ----------
    x : array_like or mapping
        Independent variables; see `split_columns`, and `split_grouped` for group weights.
    y : array_like
        (n,), or (m, n) for m outputs.
    sigma : array_like, optional
        Standard deviations, scalar or one per residual; or the covariance matrix of all residuals.
    variables : sequence of str
        Names of the independent variables.
    n_outputs : int
        m.
    precision : {"float64", "float32", "auto"}
        Storage dtype; auto keeps float32 data as they are.
    chunk_rows : int
        Rows per chunk, rounded up to whole blocks; what `resident` makes of it.
    omit : bool
        Drop rows with non-finite values instead of refusing them.
    group_weights : GroupWeights, optional
        Weights per group; the first column of x says which group a row belongs to.
    resident : {"auto", "scan", "loop"}
        Chunks of at least `_RESIDENT_ROWS` rows, since nothing has to be read; one chunk; or chunks
        of `chunk_rows` rows.

    Attributes
    ----------
    dtype : numpy.dtype
        Storage dtype.
    n_omitted : int
        Rows that were dropped.
    whitening : Whitening or None
        Of a covariance matrix; chunks have no weights then.

    Raises
    ------
    DataError
        For shapes that disagree, empty data, wrong dtypes.
    UnsupportedOption
        For a covariance matrix together with group weights.
    """

    def __init__(  # noqa: PLR0913 - each says something else about the arrays
        self,
        x: Any,
        y: Any,
        sigma: Any = None,
        *,
        variables: Sequence[str] = ("x",),
        n_outputs: int = 1,
        precision: str = "float64",
        chunk_rows: int = 1,
        omit: bool = False,
        group_weights: GroupWeights | None = None,
        resident: str = "auto",
    ) -> None:
        outputs = split_outputs(y, n_outputs)
        rows = int(outputs.shape[-1])
        groups = None
        if group_weights is None:
            columns = split_columns(x, variables)
        else:
            groups, columns = split_grouped(x, variables, rows)
        if rows == 0:
            raise DataError("`ydata` must not be empty!")
        if len(columns[0]) != rows:
            raise DataError(f"xdata has {len(columns[0])} rows but ydata has {rows}")
        ys = tuple(outputs) if outputs.ndim > 1 else (outputs,)
        correlated = sigma is not None and is_covariance(sigma, outputs.shape)
        if correlated and group_weights is not None:
            raise UnsupportedOption(
                "residual_weights with a covariance matrix as sigma: put the weights into the matrix"
            )
        spread = None if sigma is None or correlated else checked_sigma(sigma, outputs.shape)
        sigmas = None if spread is None else tuple(spread) if spread.ndim > 1 else (spread,)
        self.dtype = storage_dtype((c.dtype for c in (*columns, *ys)), precision)
        wanted = {"scan": rows, "loop": chunk_rows}.get(resident, max(chunk_rows, _RESIDENT_ROWS))
        self._step = -(-wanted // BLOCK) * BLOCK
        self._group_weights = group_weights
        self._views: tuple[int, list[Chunk]] | None = None
        given = (*columns, *ys, *(sigmas or ()), *(() if groups is None else (groups,)))
        files = {id(m): m for c in given if c.base is not None for m in mappings(c)}
        self._mapped = bool(files) and rows > max(self._step, _RESIDENT_ROWS)
        if self._mapped and resident == "auto":
            few = max(chunk_rows, _RESIDENT_BYTES // (8 * len(given)))
            self._step = min(self._step, -(-few // BLOCK) * BLOCK)
        if not self._mapped:
            ready = self._convert((*columns, *ys))
            columns, ys = ready[: len(columns)], ready[len(columns) :]
        index = None if groups is None else GroupIndex(groups)
        self._columns = Columns(columns, ys, sigmas, index, self.dtype, tuple(files.values()))
        self._n_rows = self._columns.n_rows
        kept = self._drop(groups) if omit else None
        self.n_omitted = 0 if kept is None else len(kept) - int(np.count_nonzero(kept))
        self.whitening = whitening_from(sigma, outputs.shape, kept) if correlated else None

    def _convert(self, columns: Sequence[NDArray[Any]]) -> Arrays:
        """Columns of the storage dtype, copied where they must be."""
        if all(is_ready(c, self.dtype) for c in columns):
            return tuple(columns)
        with np.errstate(over="ignore"):
            return tuple(
                c if is_ready(c, self.dtype) else np.array(c, dtype=self.dtype, order="C")
                for c in columns
            )

    def _drop(self, groups: NDArray[Any] | None) -> NDArray[np.bool_]:
        """Leave out the rows that are not finite; says which are kept."""
        keep = np.ones(self.n_rows, dtype=bool) if groups is None else np.isfinite(groups)
        reader = ColumnsReader(self._columns, self._step, None)
        for k in range(self.n_chunks):
            chunk, rows = reader.read(k), slice(*reader.rows(k))
            for column in (*chunk.x, *chunk.y):
                keep[rows] &= np.isfinite(column)
        dropped = len(keep) - int(np.count_nonzero(keep))
        if dropped == len(keep):
            raise DataError(ALL_OMITTED)
        if dropped:
            old = self._columns
            x, y = (tuple(c[keep] for c in part) for part in (old.x, old.y))
            sigma = None if old.sigma is None else tuple(c[keep] for c in old.sigma)
            index = None if groups is None else GroupIndex(groups[keep], np.flatnonzero(keep))
            self._columns = replace(old, x=x, y=y, sigma=sigma, groups=index)
            self._n_rows = self._columns.n_rows
        return keep

    def root_weights(self) -> NDArray[np.float64]:
        """√w per residual, in the shape of y without the omitted rows."""
        values = None if self._group_weights is None else self._group_weights.values
        w = self._columns.weights(values, slice(None))
        if w is None:
            return np.ones(())
        return np.sqrt(np.stack(w) if len(w) > 1 else w[0])

    @property
    def n_chunks(self) -> int:
        """Number of chunks of a pass."""
        return -(-self._n_rows // self._step)

    @property
    def n_rows(self) -> int:
        """Number of rows n."""
        return self._n_rows

    @property
    def revision(self) -> int:
        """How often the group weights were set."""
        return self._group_weights.revision if self._group_weights is not None else 0

    def reader(self) -> ColumnsReader | ViewsReader:
        """One pass, with the weights of this moment, whose chunks can be read again.

        Returns
        -------
        ColumnsReader or ViewsReader
            Reads any chunk by its number.

        Raises
        ------
        DataError
            When a row belongs to no group of the weights, naming row and group.
        """
        held = self.held()
        if held is not None:
            return ViewsReader(held)
        values = None if self._group_weights is None else self._group_weights.values
        self._require_groups(values)
        return ColumnsReader(self._columns, self._step, values)

    def held(self) -> list[Chunk] | None:
        """All chunks, with the weights of this moment; None where they must be read or converted in every pass.

        Returns
        -------
        list of Chunk or None
            Views.

        Raises
        ------
        DataError
            As `reader`.
        """
        if self._mapped:
            return None
        views, shared = self._views, self._group_weights
        revision, values = (0, None) if shared is None else shared.current
        if views is None or views[0] != revision:
            self._require_groups(values)
            views = self._views = (revision, self._chunks_under(values))
        return views[1]

    def chunks(self) -> Iterator[Chunk]:
        """All rows in order, in views or in buffers that the next chunk reuses."""
        reader = self.reader()
        return (reader.read(k) for k in range(self.n_chunks))

    def _require_groups(self, values: NDArray[np.float64] | None) -> None:
        if values is not None and self._columns.groups is not None:
            self._columns.groups.require(len(values))

    def _chunks_under(self, values: NDArray[np.float64] | None) -> list[Chunk]:
        """Views of everything, with the weights that these group weights make."""
        columns = self._columns
        weights = columns.weights(values, slice(None))
        w = None if weights is None else self._convert(weights)
        chunks = []
        for lo in range(0, columns.n_rows, self._step):
            rows = slice(lo, lo + self._step)
            x, y = (tuple(c[rows] for c in part) for part in (columns.x, columns.y))
            chunks.append(Chunk(lo, x, y, None if w is None else tuple(c[rows] for c in w), lasting=True))
        return chunks
