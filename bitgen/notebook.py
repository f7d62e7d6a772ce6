"""Reports in notebooks: records as HTML tables, in which nothing of a file or a machine is markup."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape


def table(caption: str, records: Iterable[Mapping[str, object]]) -> str:
    """A table with a row for each record and a column for each key of the first one, or "" where there is none."""
    rows = list(records)
    if not rows:
        return ""
    columns = list(rows[0])
    head = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in columns)
    body = "".join(f"<tr>{''.join(_cell(row.get(name)) for name in columns)}</tr>" for row in rows)
    return f"<table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: object) -> str:
    """Numbers flush right, with four digits."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f'<td style="text-align: right">{f"{value:,}" if isinstance(value, int) else f"{value:.4g}"}</td>'
    return f'<td style="text-align: left">{"" if value is None else escape(str(value))}</td>'
