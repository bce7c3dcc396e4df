"""What the coverage page says about one file, read from the outcomes of the steps."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ENOUGH = 0.3
"""Share of the MACs that must go for a file to count as pruned."""
BUDGET = 0.6
PEERS = {
    "onnxsim": "onnxsim",
    "onnxsim_simplified": "onnxsim, simplified",
    "torch_pruning": "Torch-Pruning",
}
TRANSFORMERS = frozenset(
    {
        *("swin_t", "swin_s", "swin_v2_t", "swin3d_t", "vit_b_16", "vit_b_32"),
        *("maxvit_t", "mvit_v1_b", "mvit_v2_s"),
    }
)
"""Those of torchvision that are no CNNs, as in `families.torchvision_models`, which only PyTorch can import."""

_PATH = re.compile(r"(?:/[\w.+-]+)+/([\w.+-]+\.(?:onnx|data|partial|py|so|cc|h|json)\b)")
_ONNXRUNTIME = re.compile(
    r"\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : (?:Non-zero status code returned while running )?"
)
_CODES = re.compile(r"\x1b?\[\d+m")


def clean(text: str, most: int = 160) -> str:
    """One line for a cell of a table: no terminal codes, no folders, nothing that ends the cell."""
    line = " ".join(_PATH.sub(r"\1", _ONNXRUNTIME.sub("", _CODES.sub("", text))).split())
    line = line if len(line) <= most else f"{line[: most - 3]}..."
    return line.replace("|", "\\|").replace("<", "&lt;")


@dataclass(frozen=True)
class Peer:
    """What another tool made of a file, or of the module behind it.

    Attributes
    ----------
    works
        The result runs, and its outputs have the shapes of the original's.
    idle
        Nothing was removed.
    kept
        Share of the MACs; None where there is no result that runs.
    why
        Of a failure.
    """

    works: bool
    idle: bool = False
    kept: float | None = None
    why: str = ""

    @property
    def enough(self) -> bool:
        """Whether `ENOUGH` went, and the result works."""
        return self.works and self.kept is not None and 1 - self.kept >= ENOUGH


@dataclass(frozen=True)
class File:
    """One row of the benchmark.

    Attributes
    ----------
    value
        The figures of `coverage_steps.prune`; empty where it failed, or there was no file.
    export_failure, failure
        Of the export, and of onnxprune; empty after a success.
    peers
        By field; those that were not asked are missing.
    """

    package: str
    name: str
    exporter: str
    export_failure: str
    failure: str
    value: Mapping[str, Any]
    peers: Mapping[str, Peer]

    @property
    def family(self) -> str:
        """What it is counted with."""
        if self.package != "torchvision":
            return self.package
        return "torchvision, others" if self.name in TRANSFORMERS else "torchvision, CNNs"

    @property
    def original(self) -> Mapping[str, Any]:
        """How the exported file itself ran; empty where nobody knows."""
        return dict(self.value.get("original") or {})

    @property
    def counted(self) -> bool:
        """Whether it was exported and is not known to fail in onnxruntime as it came."""
        return not self.export_failure and bool(self.original.get("ok", True))

    def target(self, label: str) -> Mapping[str, Any]:
        """The figures of one of onnxprune's outputs; empty where there is none."""
        found = self.targets.get(label) or {}
        return {} if "failure" in found else found

    def kept(self, label: str) -> float | None:
        """Share of the MACs in one of the outputs; all of them where the model has none to count."""
        target = self.target(label)
        return None if not target else target["macs"] if self.value.get("macs", 1) else 1.0

    @property
    def targets(self) -> Mapping[str, Mapping[str, Any]]:
        """What came of all targets, failures included."""
        return dict(self.value.get("targets") or {})

    def outputs(self) -> list[Mapping[str, Any]]:
        """What was written; empty where one of the targets failed."""
        found = list(self.targets.values())
        return [] if any("failure" in target for target in found) else found

    @property
    def valid(self) -> bool:
        """Whether onnx's checker accepts all outputs, or says of them what it said of the original."""
        fine = {"", self.value.get("original_checker", "")}
        return bool(self.outputs()) and all(target.get("checker", "") in fine for target in self.outputs())

    @property
    def runs(self) -> bool:
        """Whether all outputs run, with the output shapes of the original."""
        return bool(self.outputs()) and all(_runs(t.get("run"), self.original) for t in self.outputs())

    @property
    def sound(self) -> bool:
        """Whether masked == removed for all that was asked."""
        return bool(self.outputs()) and all(target.get("sound") for target in self.outputs())

    @property
    def reaches(self) -> bool:
        """Whether `--macs` found its budget."""
        return bool(self.target("macs")) and self.target("macs")["achieved"] <= BUDGET + 1e-6

    @property
    def enough(self) -> bool:
        """Whether `ENOUGH` of the MACs went with `--ratio`, and the result works."""
        kept = self.kept("ratio")
        return kept is not None and self.runs and 1 - kept >= ENOUGH

    @property
    def barrier(self) -> str:
        """What keeps most MACs whole: reason, place, share."""
        found = self.value.get("barriers") or []
        if not found or found[0]["macs"] < 0.005:
            return ""
        first = found[0]
        return f"{first['reason']} {clean(first['where'], 56)} ({first['macs']:.0%})".replace("%", " %")

    def shortfalls(self) -> list[str]:
        """Everything that should not be, in a few words each."""
        if self.failure:
            return [f"failed: {clean(self.failure)}"]
        found = [
            f"{label} failed: {clean(target['failure'])}"
            for label, target in self.targets.items()
            if "failure" in target
        ]
        for label, target in self.targets.items():
            if "failure" not in target:
                found += [f"{label}: {what}" for what in self._wrong(target)]
        if self.target("macs") and not self.reaches:
            reached = f"{self.target('macs')['achieved']:.1%} of the MACs".replace("%", " %")
            found.append(f"--macs {BUDGET} reaches {reached}; {self.barrier or 'nothing is blocked'}")
        return list(dict.fromkeys(found))

    def _wrong(self, target: Mapping[str, Any]) -> Iterable[str]:
        if rejected := target.get("rejected"):
            yield f"masked != removed with {', '.join(rejected[:6])}{', ...' * (len(rejected) > 6)}, kept whole"
        elif not target.get("sound"):
            yield "not proven"
        checker = target.get("checker", "")
        if checker not in ("", self.value.get("original_checker", "")):
            yield f"checker: {clean(checker)}"
        run = target.get("run") or {}
        if not run.get("ok"):
            yield f"does not run: {clean(run.get('why', 'no reason given'))}"
        elif not _runs(run, self.original):
            yield f"output shapes {run.get('shapes')}, the original has {self.original.get('shapes')}"


def _runs(run: Mapping[str, Any] | None, original: Mapping[str, Any]) -> bool:
    return bool(run) and bool(run["ok"]) and run.get("shapes") == original.get("shapes", run.get("shapes"))


def read(rows: Iterable[Mapping[str, Any]]) -> list[File]:
    """All files, in the order of the rows."""
    return [_file(row) for row in rows]


def _file(row: Mapping[str, Any]) -> File:
    export_failure = row["export"].get("failure", "")
    own = row.get("onnxprune")
    failure = "" if export_failure else "not measured" if own is None else own.get("failure", "")
    value = (own or {}).get("value") or {}
    original = value.get("original") or {}
    peers = {
        field: _torch_pruning(found) if field == "torch_pruning" else _onnxsim(found, original)
        for field in PEERS
        if (found := row.get(field)) is not None
    }
    return File(row["package"], row["name"], row["exporter"], export_failure, failure, value, peers)


def _onnxsim(outcome: Mapping[str, Any], original: Mapping[str, Any]) -> Peer:
    if outcome.get("failure"):
        return Peer(False, why=outcome["failure"])
    value = outcome["value"]
    run = value.get("run") or {}
    works = _runs(run, original)
    why = "" if works else run.get("why", "its outputs have other shapes")
    return Peer(works, not value.get("removed"), value.get("macs"), why)


def _torch_pruning(outcome: Mapping[str, Any]) -> Peer:
    if outcome.get("failure"):
        return Peer(False, why=outcome["failure"])
    value = outcome["value"]
    same = bool(value.get("same_shapes"))
    kept = value.get("macs")
    idle = kept is not None and kept > 0.9995
    return Peer(same, idle, kept, "" if same else "its outputs have other shapes")


def families(files: Sequence[File]) -> list[tuple[str, str, list[File]]]:
    """(family, exporter, files), in the order of their first rows; the files of a family stand together."""
    found: dict[str, dict[str, list[File]]] = {}
    for file in files:
        found.setdefault(file.family, {}).setdefault(file.exporter, []).append(file)
    return [(family, exporter, some) for family, by in found.items() for exporter, some in by.items()]
