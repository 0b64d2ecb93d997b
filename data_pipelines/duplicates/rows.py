"""The rows that take part, as views and tables of a database.

A row has a number that orders all rows: its part in the upper 32 bits, its position in the part in
the lower. A picture is known by the hash of its source and its name, and by the number of its first
row.
"""

from duckdb import DuckDBPyConnection

from data_pipelines.metadata import parquet_at

PICTURE_KEY = "md5_number(concat(length(source), ' ', source, ' ', picture_id))"
"""SQL of a picture's identity."""
HASH_COLUMNS = "pdq_0, pdq_1, pdq_2, pdq_3"


def make_rows(connection: DuckDBPyConnection, files: str) -> None:
    """Make the view `candidates`: the rows that no rule has rejected.

    Args:
        connection: database.
        files: pattern of the Parquet files.
    """
    connection.execute(f"""
        create temp view candidates as
        select (part::bigint << 32) + row as number, {PICTURE_KEY} as picture,
            picture_id, unhex(pixels_sha256) as pixels, unhex(text_sha256) as text, caption, part,
            width::bigint * height as area, {HASH_COLUMNS}, pdq_quality
        from {parquet_at(files)} where reason is null
    """)
    connection.execute(f"""
        create temp table part_offsets as
        select part, sum(size) over (order by part) - size as first_row
        from (select part, max(row) + 1 as size from {parquet_at(files)} group by part)
    """)


def make_pictures(connection: DuckDBPyConnection) -> tuple[int, int]:
    """Make the view `pictures`: the first row of every picture of the view `present`.

    Returns:
        the numbers of rows and of pictures.
    """
    connection.execute(
        "create temp table firsts as select min(number) as number from present group by picture"
    )
    rows = count_of(connection, "present")
    pictures = count_of(connection, "firsts")
    is_first = "" if rows == pictures else "where number in (select number from firsts)"
    connection.execute(f"create temp view pictures as select * from present {is_first}")
    if rows == pictures:
        connection.execute("drop table firsts")
    return rows, pictures


def place_of(number: str) -> str:
    """Return SQL that says for people which row has a number."""
    return f"concat('row ', {row_of(number)}, ' of part ', {part_of(number)})"


def part_of(number: str) -> str:
    """Return SQL of the part of a row's number."""
    return f"({number} >> 32)::integer"


def row_of(number: str) -> str:
    """Return SQL of the position within the part of a row's number."""
    return f"({number} & 4294967295)::integer"


def count_of(connection: DuckDBPyConnection, table: str) -> int:
    """Return the number of rows of a table or view."""
    found = connection.execute(f"select count(*) from {table}").fetchone()
    assert found is not None
    return int(found[0])
