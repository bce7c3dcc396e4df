"""The page of `benchmarks.coverage`: summaries, what falls short, and one line per file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks.coverage_facts import BUDGET, ENOUGH, PEERS, File, Peer, clean, families, read
from benchmarks.isolated import LIMIT, MEMORY, MODULE_LIMIT
from benchmarks.tables import environment_line, seconds, share, table

LEGEND = f"""\
Architectures of torchvision, timm and transformers with random weights (accuracy is not the subject),
exported by PyTorch's TorchScript exporter (`ts`, opset 17) and by its newer one (`dynamo`), with symbolic
dims where the model allows them. Every tool was asked for half:

- **onnxprune**: `onnxprune prune MODEL --ratio 0.5`, and `--macs {BUDGET}` for a budget; both with
  `--best-effort`, on synthetic inputs, with the proof in onnxruntime that masked == removed.
- **onnxsim**: `onnxsim.pruning.apply_structured_pruning(model, sparsity=0.5)` on the same file;
  **simplified**: the same after `onnxsim.simplify`.
- **Torch-Pruning**: `MagnitudePruner(pruning_ratio=0.5, global_pruning=False, round_to=8)` on the module
  behind the file, layers as wide as an output left out, heads kept aligned where the module has `num_heads`;
  once per model, MACs counted by itself. A recipe written by hand for one model may do better than this one
  for all.

*MACs* of files are counted by onnxprune for all tools. A file counts as valid, running or sound only if that
holds for both of onnxprune's outputs. *valid*: onnx's checker with `full_check` accepts them, or says what it
says of the original. *runs*: in onnxruntime, with the original's output shapes; for Torch-Pruning, in
PyTorch. *sound*: masked == removed, and no group had to be kept whole for it. The other tools make no such
check, and none was made of their results. Files whose original does not run in onnxruntime on the inputs of
this benchmark are counted apart and left out of all shares and medians; where onnxprune wrote nothing,
nothing counts as removed. *time*, *memory*: one job with `--ratio 0.5` from file to file, imports not timed;
the peak is that of a process that also ran the original. Every step had {LIMIT:g} s
(Torch-Pruning {MODULE_LIMIT:g} s: the modules that it did not finish by then it did not finish in 240 s
either where that was tried) and {MEMORY >> 30} GiB at the most, on a machine whose two cores several steps shared.
"""


def render(data: Mapping[str, Any]) -> str:
    """The page.

    Parameters
    ----------
    data
        `rows` as `benchmarks.coverage` makes them, and `environment`.
    """
    files = read(data["rows"])
    parts = ["# What can be pruned: architectures of three libraries", LEGEND.strip()]
    parts += ["## onnxprune", _summary(files), "## The other tools on the same models", _peers(files)]
    parts += [_listed("Not exported", files, _not_exported)]
    parts += [_listed("Originals that onnxruntime does not run", files, _not_running)]
    parts += [_listed("Where onnxprune falls short", files, _short)]
    parts += ["## Every file", _EVERY, _every(files)]
    if "environment" in data:
        parts.append(environment_line(data["environment"]))
    return "\n\n".join(part for part in parts if part)


# --- summaries -------------------------------------------------------------------------------------------


def _grouped(files: Sequence[File]) -> list[tuple[str, list[File]]]:
    groups = [(f"{family}, {exporter}", some) for family, exporter, some in families(files)]
    return [*groups, ("all", list(files))] if len(groups) > 1 else groups


def _summary(files: Sequence[File]) -> str:
    header = ["", "models", "exported", "original runs", "valid", "runs", "sound", f"reach --macs {BUDGET}"]
    header += ["MACs removed, median", f">= {_percent(ENOUGH)} removed", "time, median s"]
    header += ["memory, median MB", "memory, largest MB"]
    return table(header, (_summary_row(label, some) for label, some in _grouped(files)))


def _summary_row(label: str, files: Sequence[File]) -> list[object]:
    counted = [file for file in files if file.counted]
    exported = [file for file in files if not file.export_failure]
    ratios = [target for file in counted if (target := file.target("ratio"))]
    memory = [target["memory"] for target in ratios if "memory" in target]
    return [
        label,
        len(files),
        len(exported),
        len(counted),
        *(sum(marks) for marks in _marks(counted)),
        _median([0.0 if (k := file.kept("ratio")) is None else 1 - k for file in counted], _percent),
        share(sum(file.enough for file in counted), len(counted)),
        _median([target["seconds"] for target in ratios], seconds),
        _median(memory, "{:.0f}".format),
        f"{max(memory):.0f}" if memory else "-",
    ]


def _marks(files: Sequence[File]) -> list[list[bool]]:
    return [
        [file.valid for file in files],
        [file.runs for file in files],
        [file.sound for file in files],
        [file.reaches for file in files],
    ]


def _peers(files: Sequence[File]) -> str:
    """Two tables: what came of the other tools, and what share of the models each tool prunes."""
    modules = {
        (file.package, file.name): file.peers["torch_pruning"]
        for file in files
        if "torch_pruning" in file.peers
    }
    reach = [_reach(label, some, modules) for label, some in _grouped(files)]
    header = ["", "files", "onnxprune", *PEERS.values(), "best of the others"]
    said = (
        f"Share of the files of which at least {_percent(ENOUGH)} of the MACs went, with a result that runs. "
        "Torch-Pruning's result for a module stands in the rows of both exporters."
    )
    if any(file.counted and "onnxsim" not in file.peers for file in files):
        said += (
            " Not all files were given to the other tools yet: *asked* counts those that were, the shares are of "
            "those."
        )
    rows = [
        [label, title, *cells]
        for label, some in _grouped(files)
        for field, title in PEERS.items()
        if (cells := _peer_row(some, field))
    ]
    outcome = ["", "tool", "asked", "runs", "nothing removed", "MACs removed where it runs, median"]
    return "\n\n".join([said, table(header, reach), table(outcome, rows, left=2)])


def _reach(label: str, files: Sequence[File], modules: Mapping[tuple[str, str], Peer]) -> list[object]:
    counted = [file for file in files if file.counted]
    best: list[bool] = []
    asked: dict[str, list[Peer]] = {field: [] for field in PEERS}
    for file in counted:
        peers = dict(file.peers)
        if (file.package, file.name) in modules:
            peers["torch_pruning"] = modules[file.package, file.name]
        for field, peer in peers.items():
            asked[field].append(peer)
        if peers:
            best.append(any(peer.enough for peer in peers.values()))
    own = share(sum(file.enough for file in counted), len(counted))
    theirs = [share(sum(peer.enough for peer in peers), len(peers)) for peers in asked.values()]
    return [label, len(counted), own, *theirs, share(sum(best), len(best))]


def _peer_row(files: Iterable[File], field: str) -> list[object]:
    peers = [file.peers[field] for file in files if file.counted and field in file.peers]
    if not peers:
        return []
    works = [peer for peer in peers if peer.works]
    removed = [1 - peer.kept for peer in works if peer.kept is not None]
    idle = sum(peer.idle for peer in works)
    return [len(peers), len(works), idle, _median(removed, _percent)]


# --- lists -----------------------------------------------------------------------------------------------


def _listed(title: str, files: Sequence[File], reasons: Callable[[File], list[str]]) -> str:
    rows = [
        [file.package, file.name, file.exporter, "; ".join(why)] for file in files if (why := reasons(file))
    ]
    if not rows:
        return f"## {title}\n\nNone."
    return f"## {title}\n\n{table(['library', 'model', 'exporter', 'why'], rows, left=4)}"


def _not_exported(file: File) -> list[str]:
    return [clean(file.export_failure)] if file.export_failure else []


def _not_running(file: File) -> list[str]:
    if file.export_failure or file.counted:
        return []
    return [clean(file.original.get("why", "no reason given"), 240)]


def _short(file: File) -> list[str]:
    return file.shortfalls() if file.counted else []


# --- every file ------------------------------------------------------------------------------------------

_EVERY = """\
*reachable*: share of MACs and of parameters in layers that some group can make smaller. *kept*: MACs of the
result as a share of the original's; "none": nothing was removed. *blocked*: the place where most MACs meet an
axis that stays, and their share; other axes of the same layers may still become smaller."""


def _every(files: Sequence[File]) -> str:
    header = [
        "library",
        "model",
        "exporter",
        "nodes",
        "groups",
        "reachable MACs / params",
        "kept, --ratio 0.5",
    ]
    header += [f"kept, --macs {BUDGET}", "sound", "valid", "runs", "s", "MB"]
    header += [*(f"kept, {title}" for title in PEERS.values()), "blocked"]
    return table(header, (_line(file) for file in files), left=3)


def _line(file: File) -> list[object]:
    head: list[object] = [file.package, file.name, file.exporter]
    if file.export_failure:
        return [*head, *[""] * 3, "not exported", *[""] * (7 + len(PEERS))]
    peers = [_peer_cell(file.peers[field]) if field in file.peers else "" for field in PEERS]
    if not file.value:
        return [*head, *[""] * 3, "failed", *[""] * 6, *peers, ""]
    coverage, ratio = file.value["coverage"], file.target("ratio")
    runs = _yes(file.runs) if file.original.get("ok", True) else "nor the original"
    return [
        *head,
        file.value["nodes"],
        file.value["groups"],
        f"{_percent(coverage['macs'])} / {_percent(coverage['params'])}",
        *("failed" if (kept := file.kept(t)) is None else _percent(kept) for t in ("ratio", "macs")),
        _yes(file.sound),
        _yes(file.valid),
        runs,
        seconds(ratio.get("seconds")),
        f"{ratio['memory']:.0f}" if "memory" in ratio else "-",
        *peers,
        file.barrier,
    ]


def _peer_cell(peer: Peer) -> str:
    if not peer.works or peer.kept is None:
        return "failed"
    return "none" if peer.idle else _percent(peer.kept)


def _yes(found: bool) -> str:
    return "yes" if found else "no"


def _percent(part: float) -> str:
    return share(part, 1.0)


def _median(found: Sequence[float], shown: Callable[[float], str]) -> str:
    return shown(median(found)) if found else "-"
