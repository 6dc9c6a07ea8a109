"""The verdicts and the main results as tables for the terminal."""

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from resurface.analysis.cells import (
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
from resurface.analysis.tables import CONTROL


def terminal_verdicts(verdicts: pd.DataFrame) -> Table:
    """The verdict on each model, and why."""
    table = Table(title="Does the knowledge resurface?", box=SIMPLE_HEAD, pad_edge=False, show_header=False)
    for _ in range(3):
        table.add_column(overflow="fold")
    for domain, own in verdicts.groupby("domain", sort=False):
        table.add_row(Text(str(domain), style="bold"))
        for row in own.to_dict("records"):
            settled = f" What would settle it: {row['settled_by']}." if row["settled_by"] else ""
            table.add_row(
                Text(display_name(row["method"])), Text(row["verdict"], style="bold"), Text(row["reason"] + settled)
            )
        table.add_section()
    return table


def terminal_table(summary: pd.DataFrame) -> Table:
    """The main result table: attacks × models, accuracy and recovery, one section per domain; five models fit 80 columns."""
    domains = domains_of(summary)
    models = list(dict.fromkeys(model for domain in domains for model in table_rows(summary, domain)))
    notes = ["variants selected on validation", "below: interval [], recovery ()", seeds_note(summary)]
    table = Table(
        title="Accuracy on the forget domain's test questions",
        caption="; ".join(filter(None, notes)),
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("attack", overflow="fold")
    for model in models:
        table.add_column(Text(display_name(model)), justify="right", overflow="fold")
    for domain in domains:
        table.add_row(Text(domain, style="bold"))
        cells = cells_by_name(main_cells(summary, domain))
        for attack in attacks_of(summary):
            lines = []
            for model in models:
                absent = "no control" if model == CONTROL and not has_control(summary, domain) else "–"
                lines.append(_terminal_cell(cells.get((model, attack)), absent))
            table.add_row(Text(display_name(attack)), *map(Text, lines))
        table.add_section()
    return table


def _terminal_cell(cell: pd.Series | None, absent: str) -> str:
    """One cell as lines of text; `absent` where there is none."""
    if cell is None:
        return absent
    lines = [percent(cell["accuracy"]), f"[{interval(cell['ci_low'], cell['ci_high'])}]"]
    if is_attacked_method(cell) and pd.notna(cell["recovery"]):
        lines.append(f"({percent(cell['recovery'])})")
    return "\n".join(lines)
