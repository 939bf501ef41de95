"""docs/coverage.md, written from the journals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from statistics import median

from benchmarks.measuring import head, row

from .journal import Row, light, macs_left, quick, share
from .models import TITLES
from .tools import TOOLS

INTRODUCTION = """\
Every model is built with random weights and random batch-norm statistics and traced. A random half of every channel
group is removed, and the slim model is compared with the masked one, whose norms count only what is kept. The same is
done with another, unbalanced selection. Outputs may differ by what rounding changes, no more. MACs and parameters are
counted on the slim model. It is trained a step, saved, and loaded into a fresh model.

*Prunable* is the share of the output channels of convolutions; channels that a network returns are never among them.
*Time* and *memory* are those of the trace, verification included, beside those of a forward pass of one image of the
size given. *Quick* are traces within four forward passes and 0.3 s of processor time, *light* those within three times
the memory and 64 MB. *Slim only* are groups for which zeroing is not the same as removing (behind a mean over channels
in the model's own code, for example): for these, shapes, counts and training are checked, and that the same channels
meet in the slim model. *Tripwire* are models in which the comparison of outputs after a trace found what the trace had
missed, and froze it.

For detectors the outputs of the heads are compared, because rounding decides the order of boxes; their own pre- and
postprocessing runs. YOLO models return the features of their neck beside their predictions; these are left out, so that
they need not stay.""".splitlines()
BESIDE = """\
Each tool prunes the same model, with the same random weights, to half of the channels of every layer it can prune,
used as its documentation shows and without settings for single models: channelwise with `select(sparsity=0.5)`;
torch-pruning with its `BasePruner`, `GroupMagnitudeImportance(p=2)`, `pruning_ratio=0.5`, and the layers that make the
outputs ignored; ModelOpt with FastNAS, widths of 0.5 and 1 for every layer, the smallest network exported. Some
projects replace modules of a model, or give a tool a table of its heads, before it is pruned; here every tool takes
every model as it is. *Runs*: the model became smaller, runs, and returns outputs of the same shapes.
*Exact*: its outputs equal those of the original with the removed values set to zero, in float64. Where they do not and
the model averages or normalises over channels (layer norm, for example), zeroing need not be the same as removing:
*n/a*. Where nothing of the kind is in the model: *differs*. Times, of the processor, are those of everything from the
model to the pruned model. A detector is given to every tool as a model that returns what its heads
say. Every tool has 10 GiB of memory, and the time that its cell names where it needs more.""".splitlines()
EARLIER = {"channelwise": "0.1.0", "torch-pruning": "1.6.1", "ModelOpt": "0.47.0"}
"""Versions of tools whose rows do not name one."""
TRAINED = """\
Each model is built from its definition and trained for an epoch on a few images of blood cells, of 160 px; half of the
channels of every group are removed, and the pruned model is trained by ultralytics' own trainer of the task (a subclass
whose `get_model` returns it). Then: it is still the pruned model, its moving average included, with other weights and a
finite loss; `last.pt` and `best.pt` load with `YOLO(…)`, predict and validate; `fuse()` leaves its outputs as they are;
the files of `export(format="torchscript")` and `export(format="onnx")` give what it gives; and
`channelwise.load` puts it into a fresh model from the definition, with equal predictions. The dense model goes the same
way first. Numbers are the largest differences of any predicted value, relative to the largest of its kind (coordinates,
scores of a class and so on); those of `fuse()` in float64. They are judged beside what two images differ by: they may
be 0.2 % of it, and those of `fuse()` a billionth. For v10, both heads are compared.""".splitlines()
STEPS = {
    "train": "trained",
    "load": "loads, validates",
    "fuse": "fuse()",
    "torchscript": "TorchScript",
    "onnx": "ONNX",
    "save": "saved, loaded",
}


def page(rows: dict[str, Row], trained: dict[str, Row], total: int) -> str:
    """The page; ``trained`` are the rows of YOLO models, ``total`` the models that are to be in it."""
    done = [r for r in rows.values() if not r["error"]]
    commits = Counter(r.get("commit", "earlier versions") for r in rows.values())
    lines = ["# Coverage", "", "Written by `python -m benchmarks.coverage page`; do not edit.", "", *INTRODUCTION, ""]
    lines += [
        "Rows are kept in `benchmarks/journals/` as they are measured. Models by the commit of channelwise: "
        f"{', '.join(f'{name} ({count})' for name, count in commits.most_common())}.",
        "",
        *([f"{len(rows)} of the {total} models of the sweep have been run so far.", ""] if len(rows) < total else []),
        *head("library", "models:", "pass:", "convolutional:", "median prunable:", "below 60 %:", "quick:", "light:",
              "tripwire:"),
    ]  # fmt: skip
    for library, title in TITLES.items():
        mine = [r for r in rows.values() if r["spec"].startswith(f"{library}:")]
        passed = [r for r in mine if not r["error"]]
        # Those of which convolutions other than a patch embedding produce the channels.
        shares = [share(r) for r in passed if r["conv_outputs"] >= 1000]
        if not passed:
            continue
        fired = [bool(r["tripwires"]) for r in passed if "tripwires" in r]
        lines.append(
            row(title, len(mine), len(passed), len(shares), f"{median(shares):.1%}" if shares else "",
                sum(s < 0.6 for s in shares),
                sum(map(quick, passed)), sum(map(light, passed)), sum(fired) if fired else "")
        )  # fmt: skip
    causes: Counter[str] = Counter()
    for r in done:
        causes.update(r["causes"])
    lines += ["", "Output channels that stay, by cause:", "", *head("cause", "channels:", "models:")]
    lines += [row(c, f"{n:,}", sum(c in r["causes"] for r in done)) for c, n in causes.most_common()]
    failed = [r for r in rows.values() if r["error"]]
    if failed:
        lines += ["", "## Not passed", "", *head("model", "at", "because")]
        lines += [row(_name(r), r["stage"], _first_line(r["error"])) for r in failed]
    for library, title in TITLES.items():
        mine = sorted((r for r in done if r["spec"].startswith(f"{library}:")), key=lambda r: r["spec"])
        if mine:
            lines += ["", f"## {title}", "", *_models(mine)]
    return "\n".join([*lines, *beside_tools(rows), *trained_and_exported(trained)]) + "\n"


def _models(rows: Iterable[Row]) -> list[str]:
    """One line a model; what stays for another reason than being an output, largest first."""
    lines = head("model", "input", "groups:", "slim only:", "prunable:", "MACs left:", "time:", "memory:",
                 "what else stays, and why")  # fmt: skip
    for r in rows:
        stays = [f"{n:,}: {why[:150]}" for why, n in r["reasons"].items() if "an output of the network" not in why]
        lines.append(
            row(_name(r), " ".join(r["inputs"]), r["groups"], r["slim_only"], f"{share(r):.1%}", f"{macs_left(r):.1%}",
                f"{r['trace_s'] / r['forward_s']:.1f}", f"{r['trace_bytes'] / max(r['forward_bytes'], 1):.1f}",
                "; ".join([*r.get("tripwires", []), *stays[:2]]))
        )  # fmt: skip
    return lines


def beside_tools(rows: dict[str, Row]) -> list[str]:
    """The part about other tools; none if no row has been compared."""
    mine = {spec: r["tools"] for spec, r in sorted(rows.items()) if r.get("tools")}
    if not mine:
        return []
    lines = ["", "## Beside other tools", "", *BESIDE, ""]
    lines += head("tool", "models:", "run:", "exact:", "n/a:", "differ:", "fail:", "MACs left:", "seconds:")
    common = [tools for tools in mine.values() if all(_runs(tools.get(tool)) for tool in TOOLS)]
    for tool in TOOLS:
        results = [tools[tool] for tools in mine.values() if tool in tools]
        verdicts = Counter(map(_verdict, results))
        left, seconds = ([tools[tool][key] for tools in common] for key in ("macs_left", "seconds"))
        medians = [f"{median(left):.1%}", f"{median(seconds):.2f}"] if common else ["", ""]
        versions = sorted({r.get("version", EARLIER[tool]) for r in results})
        lines.append(
            row(f"{tool} {', '.join(versions)}", len(results), len(results) - verdicts["fails"],
                *(verdicts[v] for v in ("exact", "n/a", "differs", "fails")), *medians)
        )  # fmt: skip
    lines += ["", f"MACs left and seconds are medians over the {len(common)} models that every tool prunes."]
    failures = [line for tool in TOOLS for line in _failures(tool, mine)]
    lines += ["", *head("tool", "fails with", "models:", "such as"), *failures] if failures else []
    lines += ["", *head("model", *TOOLS)]
    return lines + [row(spec, *(_cell(tools.get(tool)) for tool in TOOLS)) for spec, tools in mine.items()]


def _runs(result: Row | None) -> bool:
    return result is not None and not result["error"] and "exact" in result


def _verdict(result: Row) -> str:
    return {"yes": "exact", "no": "differs", "n/a": "n/a"}[result["exact"]] if _runs(result) else "fails"


def _cell(result: Row | None) -> str:
    """MACs left, verdict and seconds, or where it failed."""
    if result is None:
        return ""
    if not _runs(result):
        return f"fails: {_first_line(result['error'])[:60]}"
    return f"{result['macs_left']:.1%}, {_verdict(result)}, {result['seconds']:.2f} s"


def _failures(tool: str, mine: dict[str, dict[str, Row]]) -> list[str]:
    """The kinds of a tool's failures, most frequent first."""
    kinds: dict[str, list[str]] = {}
    for spec, tools in mine.items():
        if tool in tools and not _runs(tools[tool]):
            kinds.setdefault(tools[tool]["error"].partition(":")[0], []).append(spec)
    lines = []
    for kind, specs in sorted(kinds.items(), key=lambda item: -len(item[1])):
        example = _first_line(mine[specs[0]][tool]["error"]).partition(": ")[2][:120]
        lines.append(row(tool, kind, len(specs), f"{specs[0]}: {example}"))
    return lines


def trained_and_exported(rows: dict[str, Row]) -> list[str]:
    """The part about YOLO models in ultralytics' hands; none if there are no rows."""
    if not rows:
        return []
    versions = sorted({r["version"] for r in rows.values() if "version" in r})
    passed = sum(not r["error"] for r in rows.values())
    lines = ["", "## Trained and exported by ultralytics", ""]
    lines += [f"Written by `python -m benchmarks.coverage yolo`, with ultralytics {', '.join(versions)}.", *TRAINED]
    lines += ["", f"{passed} of {len(rows)} models pass.", ""]
    lines += head("model", "task", "MACs left:", "parameters left:", *STEPS.values())
    for r in rows.values():
        left = [f"{r[key]:.1%}" if key in r else "" for key in ("macs_left", "params_left")]
        lines.append(row(_name(r), r.get("task", ""), *left, *(_step(r, step) for step in STEPS)))
    failed = [row(_name(r), *texts) for r in rows.values() for texts in _failed_steps(r)]
    return lines + (["", *head("model", "fails at", "the dense model"), *failed] if failed else [])


def _step(r: Row, step: str) -> str:
    result = r.get("slim", {}).get(step)
    if result is None:
        return "not reached"
    if result["error"]:
        return "fails, as the dense model does" if _dense_error(r, step) else "fails"
    return f"{result['difference']:.0e}" if "difference" in result else "yes"


def _failed_steps(r: Row) -> list[tuple[str, str]]:
    """For every step that fails: its error, and what the dense model does there."""
    found = [
        (f"{step}: {_first_line(result['error'])}", _first_line(_dense_error(r, step)) or "passes")
        for step, result in r.get("slim", {}).items()
        if result["error"]
    ]
    return found if found or not r["error"] else [(_first_line(r["error"]), "")]


def _dense_error(r: Row, step: str) -> str:
    error: str = r.get("dense", {}).get(step, {}).get("error", "")
    return error


def _name(r: Row) -> str:
    name: str = r["spec"].partition(":")[2]
    return name


def _first_line(text: str) -> str:
    return " ".join(text.partition("\n")[0].split())[:200]
