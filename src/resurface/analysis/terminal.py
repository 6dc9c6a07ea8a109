"""The main results as a table for the terminal."""

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from resurface.analysis.cells import (
    CONTROL,
    attacks_of,
    cells_by_name,
    display_name,
    domains_of,
    has_control,
    interval,
    is_attacked_method,
    main_cells,
    percent,
    seeds_note,
    table_rows,
)


def terminal_table(summary: pd.DataFrame) -> Table:
    """The main result table: models × attacks, accuracy and recovery, one section per domain."""
    attacks = attacks_of(summary)
    table = Table(
        title="Accuracy on the forget domain's test questions",
        caption="; ".join(filter(None, ["variants selected on validation", seeds_note(summary)])),
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("model", overflow="fold")
    for attack in attacks:
        table.add_column(Text(display_name(attack)), justify="right", overflow="fold")
    for domain in domains_of(summary):
        table.add_row(Text(domain, style="bold"))
        cells = cells_by_name(main_cells(summary, domain))
        for model in table_rows(summary, domain):
            absent = "no control" if model == CONTROL and not has_control(summary, domain) else "–"
            lines = [_terminal_cell(cells.get((model, attack)), absent) for attack in attacks]
            table.add_row(Text(display_name(model)), *map(Text, lines))
        table.add_section()
    return table


def _terminal_cell(cell: pd.Series | None, absent: str) -> str:
    """One cell as lines of text; `absent` where there is none."""
    if cell is None:
        return absent
    accuracy = f"{percent(cell['accuracy'])} [{interval(cell['ci_low'], cell['ci_high'])}]"
    if not is_attacked_method(cell) or pd.isna(cell["recovery"]):
        return accuracy
    return f"{accuracy}\nrecovery {percent(cell['recovery'])}"
