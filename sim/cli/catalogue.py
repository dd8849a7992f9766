"""`policies`, `profiles` and `cite`: what there is, and where it comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sim.cli.show import say, show, show_columns, show_json

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
TABLE = Path("results/out/policy-table.png")
"""Where `policies NAME --table` draws."""

BOUNDS = {
    "minimum": ">=",
    "exclusiveMinimum": ">",
    "maximum": "<=",
    "exclusiveMaximum": "<",
}
"""Keys of a JSON schema that bound a number."""


def policies(
    name: Annotated[str | None, typer.Argument(help="One policy, with its parameters.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Parameters for --table, e.g. load_bands=5."),
    ] = None,
    table: Annotated[
        bool, typer.Option("--table", help="Draw the table that a policy decides by (smdp).")
    ] = False,
    out: Annotated[Path, typer.Option("--out", help="Picture of --table, a PNG.")] = TABLE,
    json: Json = False,
) -> None:
    """List the scheduling policies, or describe one."""
    from policies import load
    from sim.study.policy_facts import docstring
    from sim.types import BadInput

    if name is None:
        if table:
            raise BadInput("policies --table: which policy? e.g. bucketsim policies smdp --table")
        _list_policies(json)
        return
    policy = load(name)
    if table:
        _draw_table(name, policy, overrides or [], out)
        return
    if overrides:
        raise BadInput(f"policies {name}: {overrides[0]!r}: parameters go with --table only")
    parameters = [_parameter(k, v) for k, v in _schema(policy.Config).items()]
    if json:
        show_json({"name": name, "doc": docstring(policy), "parameters": parameters})
        return
    print(docstring(policy))
    if parameters:
        show_columns({key: [p[key] for p in parameters] for key in parameters[0]})


def profiles(
    name: Annotated[str | None, typer.Argument(help="One profile, with its terms.")] = None,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="With NAME: draw it, FILE.png and FILE.pdf.")
    ] = None,
    json: Json = False,
) -> None:
    """List the profiles (step times of a model on a GPU), or show one by its terms."""
    from sim.costs.library import list_profiles
    from sim.costs.profile import describe_profile
    from sim.types import BadInput

    found = {p.name: p for p in list_profiles()}
    if name is not None:
        _show_profile(name, found, json, picture)
        return
    if picture is not None:
        raise BadInput("--picture goes with the NAME of a profile")
    if json:
        show_json({n: describe_profile(p) for n, p in found.items()})
        return
    columns: dict[str, list[Any]] = {"profile": list(found)}
    for key in ("model", "gpu", "tp", "engine", "basis"):
        columns[key] = [getattr(p, key) for p in found.values()]
    columns["KV tokens"] = [describe_profile(p)["kv_tokens"] for p in found.values()]
    columns["auto"] = ["yes" if p.default else "" for p in found.values()]
    show_columns(columns)
    print("basis: measured there, derived from tables or another GPU; KV tokens: empty, by formula")
    print("auto: taken where cluster.profile names none; others by name or by engine")


def cite(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What run or compare wrote.")],
) -> None:
    """Print BibTeX of the policies, the model, the profile and the data of a result."""
    from sim.study.citations import citations

    cited = citations(folder)
    print("\n\n".join(cited.entries))
    for thing in cited.missing:
        print("% no entry for", " ".join(thing.split()))


def _list_policies(json: bool) -> None:
    from dataclasses import asdict

    from policies import load, names
    from sim.study.policy_facts import policy_facts, short_reference

    facts = {name: policy_facts(load(name)) for name in names()}
    if json:
        show_json({name: asdict(fact) for name, fact in facts.items()})
        return
    show_columns(
        {
            "policy": list(facts),
            "what it does": [fact.what for fact in facts.values()],
            "roles": [fact.roles for fact in facts.values()],
            "takes as known": [fact.assumes for fact in facts.values()],
            "paper": [short_reference(fact.reference) for fact in facts.values()],
        }
    )


def _draw_table(name: str, policy: Any, overrides: list[str], out: Path) -> None:
    """Draw the decision table of a policy that has one."""
    from sim.cli.show import say
    from sim.report.policy_table import DrawnTable, draw_tables
    from sim.study.config import COMMAND_LINE, overridden
    from sim.study.files import output_folder
    from sim.study.validation import validate
    from sim.types import BadInput

    if not hasattr(policy, "decision_tables"):
        raise BadInput(f"policies {name} --table: it decides by no table; valid: smdp")
    if out.suffix != ".png":
        raise BadInput(f"--out: {str(out)!r}: expected a file name ending in .png")
    config = validate(policy.Config, overridden({}, overrides), name, lambda _: COMMAND_LINE)
    output_folder(out.parent)
    title, tables = policy.decision_tables(config)
    draw_tables([DrawnTable(load, serve) for load, serve in tables], f"{name}: {title}", out)
    for load, serve in tables:
        drawn = DrawnTable(load, serve)
        print(f"load {load:.2f}: wait for {drawn.limit}, then serve up to {max(serve)}")
    say(f"wrote {out}")


def _show_profile(name: str, found: dict[str, Any], json: bool, picture: Path | None) -> None:
    import yaml

    from sim.costs.catalogue import unknown
    from sim.costs.profile import describe_profile

    if name not in found:
        raise unknown("profile", name, found)
    described = describe_profile(found[name])
    if picture is not None:
        from sim.report.profiles import draw_profile

        drawn = draw_profile(found[name], picture)
        say(f"wrote {drawn} and {drawn.with_suffix('.pdf').name}")
    if json:
        show_json(described)
        return
    from sim.report.profiles import error_table, term_table

    how: dict[str, Any] = {
        "sort_keys": False,
        "width": 100,
        "allow_unicode": True,
        "default_flow_style": None,
    }
    print(yaml.safe_dump(described, **how))
    errors = error_table(found[name])
    for table in [term_table(found[name]), *([] if errors is None else [errors])]:
        show(table)


def _schema(config: Any) -> dict[str, dict[str, Any]]:
    properties: dict[str, dict[str, Any]] = config.model_json_schema().get("properties", {})
    return properties


def _parameter(name: str, schema: dict[str, Any]) -> dict[str, str]:
    """Return a parameter as one row: name, default, what is allowed, description."""
    allowed = [f"{sign} {schema[key]}" for key, sign in BOUNDS.items() if key in schema]
    if "enum" in schema:
        allowed = [" | ".join(map(str, schema["enum"]))]
    kind = schema.get("type") or " | ".join(s.get("type", "?") for s in schema.get("anyOf", []))
    return {
        "parameter": name,
        "default": str(schema.get("default", "required")),
        "allowed": ", ".join(allowed) or kind,
        "meaning": schema.get("description", ""),
    }
