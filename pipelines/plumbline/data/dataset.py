"""Dataset artifacts on disk: Parquet parts of a fixed shape, so that the same rows give the same bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from plumbline.artifacts import Artifact
from plumbline.data.mapped import Rows, mapped
from plumbline.data.row import COLUMNS, Form
from plumbline.errors import InvalidInput

ROW_GROUP_ROWS = 2000
PART_ROWS = 100_000
FOLDER = "data"


class DatasetWriter:
    """Writes tables of any size as `data/part-00000.parquet`, …; the tables' boundaries leave no trace in the files."""

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        self._folder, self._schema = folder / FOLDER, schema
        self._folder.mkdir(parents=True, exist_ok=True)
        self._pending = schema.empty_table()
        self._part: pq.ParquetWriter | None = None
        self.rows = 0

    def write(self, table: pa.Table) -> None:
        """Add rows; `table` has the writer's schema."""
        self._pending = pa.concat_tables([self._pending, table])
        while self._pending.num_rows >= ROW_GROUP_ROWS:
            self._write_group(self._pending.slice(0, ROW_GROUP_ROWS))
            self._pending = self._pending.slice(ROW_GROUP_ROWS)

    def _write_group(self, table: pa.Table) -> None:
        if self.rows % PART_ROWS == 0:
            self._close_part()
            path = self._folder / f"part-{self.rows // PART_ROWS:05d}.parquet"
            self._part = pq.ParquetWriter(path, self._schema, compression="zstd", use_dictionary=["source", "format"])
        assert self._part is not None
        self._part.write_table(table.combine_chunks(), row_group_size=ROW_GROUP_ROWS)
        self.rows += table.num_rows

    def _close_part(self) -> None:
        if self._part is not None:
            self._part.close()
            self._part = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None and self._pending.num_rows:
            self._write_group(self._pending)
        self._close_part()


def part_names(artifact: Artifact) -> list[str]:
    """The artifact's Parquet parts, relative to it, in row order."""
    return sorted(name for name in artifact.manifest["files"] if name.startswith(f"{FOLDER}/part-"))


def part_uris(artifact: Artifact) -> list[str]:
    """The same as whole URIs."""
    return [f"{artifact.uri}/{name}" for name in part_names(artifact)]


def form_held(artifact: Artifact, *forms: Form) -> Form:
    """The first of `forms` that the dataset's rows hold.

    Raises:
        InvalidInput: they hold something else.
    """
    with fsspec.open(part_uris(artifact)[0], "rb") as stream:
        return _form(artifact, pq.read_schema(stream).names, forms)


def load_rows(artifact: Artifact, form: Form | None = None) -> pa.Table:
    """All rows of a Dataset or PreferenceDataset artifact, in their order.

    Args:
        artifact: the dataset.
        form: what its rows must hold; None takes any.

    Returns:
        The columns of the form (`plumbline.data.row.COLUMNS`), then those of provenance.

    Raises:
        ArtifactCorrupt: a file is missing or differs from the manifest.
        InvalidInput: the rows hold something else.
    """
    folder = artifact.local()
    table = pa.concat_tables([pq.read_table(folder / name) for name in part_names(artifact)])
    if form is not None:
        _form(artifact, table.column_names, (form,))
    return table


def open_rows(artifact: Artifact, form: Form) -> Rows:
    """The content of all rows, in their order, without loading it: see `plumbline.data.mapped`.

    Raises:
        ArtifactCorrupt, InvalidInput: as `load_rows`.
    """
    form_held(artifact, form)
    columns = list(COLUMNS[form])

    def make() -> pa.RecordBatchReader:
        folder = artifact.local()
        files = [pq.ParquetFile(folder / name) for name in part_names(artifact)]
        schema = pa.schema([files[0].schema_arrow.field(name) for name in columns])

        def batches() -> Iterator[pa.RecordBatch]:
            for file in files:
                for batch in file.iter_batches(batch_size=ROW_GROUP_ROWS, columns=columns):
                    yield batch.select(columns)

        return pa.RecordBatchReader.from_batches(schema, batches())

    return mapped(content_key(artifact, *columns), make)


def content_key(artifact: Artifact, *what: str) -> str:
    """A name for something that is made of a dataset's rows: equal rows and an equal `what` give an equal name."""
    digests = [artifact.manifest["files"][name]["sha256"] for name in part_names(artifact)]
    return hashlib.sha256("\n".join([*digests, *what]).encode()).hexdigest()[:32]


def _form(artifact: Artifact, names: list[str], forms: tuple[Form, ...]) -> Form:
    for form in forms:
        if set(COLUMNS[form]) <= set(names):
            return form
    held = next((name for name, columns in COLUMNS.items() if set(columns) <= set(names)), "something else")
    raise InvalidInput(
        f"the dataset of stage '{artifact.manifest['stage']}' holds {held}, and {' or '.join(forms)} are needed here; "
        f"set form: {forms[0]} there, or name another dataset in inputs"
    )
