"""Which groups filter pruning may touch, in which order their filters go, and why others are left alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from onnxprune.allocate.target import Target
from onnxprune.analysis import Analysis
from onnxprune.choosing.choices import Choices
from onnxprune.choosing.evidence import Evidence
from onnxprune.choosing.learned import learn
from onnxprune.choosing.scoring import Scored, score_groups
from onnxprune.controllers.layers import FilterLayer, check_scopes, filter_layers, left_whole
from onnxprune.controllers.levels import Groups
from onnxprune.controllers.nncf import PruningConfig, patterns_of
from onnxprune.errors import Reason, UsageError
from onnxprune.graph.groups import Group
from onnxprune.select import excluded_groups

STEP = 8
"""NNCF rounds the filters that stay up to a multiple of this."""

_SCOPES = {
    Reason.IGNORED: "it is in ignored_scopes",
    Reason.NOT_SELECTED: "it is not in target_scopes",
}


@dataclass(frozen=True)
class PruningGroups:
    """What filter pruning works on.

    Attributes
    ----------
    groups
        Those that may be pruned, by number.
    layers
        All convolutions and linear layers.
    ladders
        In which order the units of the groups go.
    not_pruned
        Why layers are left alone, by name.
    """

    groups: dict[int, Group]
    layers: Sequence[FilterLayer]
    ladders: Groups
    not_pruned: dict[str, str]


def find_pruning_groups(
    analysis: Analysis, config: PruningConfig, seed: int, evidence: Callable[[], Evidence | None]
) -> PruningGroups:
    """The groups of a model that NNCF's rules and options leave.

    Parameters
    ----------
    evidence
        What the samples say, asked where the ranking is learned.

    Raises
    ------
    UsageError
        A scope matches nothing, or the ranking is to be learned and there is no data.
    """
    graph = analysis.axis_graph
    ignore, only = patterns_of(config.ignored_scopes), patterns_of(config.target_scopes)
    check_scopes(graph, "ignored_scopes", ignore)
    check_scopes(graph, "target_scopes", only)
    whole = left_whole(
        graph,
        analysis.groups,
        first=not config.prune_first_conv,
        downsample=not config.prune_downsample_convs,
    )
    for name, reason in excluded_groups(graph, analysis.groups, ignore=ignore, only=only).items():
        whole[name] = _SCOPES.get(reason, reason.sentence)
    names = [name for name in analysis.groups if name not in whole]
    layers = filter_layers(analysis, names)
    scored = _scored(analysis, config, names, seed, evidence)
    narrow = {name for name, why in scored.excluded.items() if why is Reason.TOO_NARROW}
    groups = {int(name[1:]): analysis.groups[name] for name in names}
    units = sum(group.units for group in groups.values())
    ladders = Groups(scored.ladders, analysis.costs, units, config.ranks)
    return PruningGroups(groups, layers, ladders, _reasons(analysis, whole, layers, narrow))


def _scored(
    analysis: Analysis,
    config: PruningConfig,
    names: Sequence[str],
    seed: int,
    evidence: Callable[[], Evidence | None],
) -> Scored:
    choices = Choices(
        criterion=config.criterion,
        scope="global" if config.ranks else "uniform",
        round_to=1 if config.ranks else STEP,
        seed=seed,
    )
    scored = score_groups(analysis, choices)
    others = tuple(name for name in analysis.groups if name not in names)
    units = sum(analysis.groups[name].units for name in names)
    scored = replace(scored.without(others, Reason.IGNORED), units=units)
    if not config.learned or not config.target:
        return scored
    seen = evidence()
    if seen is None:
        raise UsageError(
            "interlayer_ranking_type learned_ranking searches for the ranking that changes the outputs least, and "
            "there is no data to look at",
            'Give data=... (data="synthetic" generates samples), or take unweighted_ranking.',
        )
    target = Target("macs", 1 - config.target) if config.prune_flops else Target("ratio", config.target)
    return learn(analysis, scored, replace(choices, target=target), seen, trials=config.trials)


def _reasons(
    analysis: Analysis, whole: Mapping[str, str], layers: Sequence[FilterLayer], narrow: set[str]
) -> dict[str, str]:
    found = {layer: f"{b.reason.sentence} ({b.where})" for b in analysis.blocked for layer in b.layers}
    for each in filter_layers(analysis, whole):
        if each.group is not None:
            found[each.layer.label] = whole[each.group]
    for each in layers:
        if each.group in narrow:
            found[each.layer.label] = f"it has no more than {STEP} filters, which all stay"
    return found
