"""`paper`: what is judged of the paper beyond its figures."""

from __future__ import annotations

import typer

from sim.cli import claims

app = typer.Typer(help="Judge the BucketServe paper: claims, sensitivity.")
app.command("claims")(claims.claims)
app.command("sensitivity")(claims.sensitivity)
app.command("report")(claims.page)
