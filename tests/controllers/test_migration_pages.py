"""docs/migration-*.md: their code runs, and every name of the two tools' pages is on them."""

from __future__ import annotations

import doctest
import re
import shutil
from pathlib import Path

import pytest
from small_nets import ROOT

PAGES = {name: ROOT / f"docs/migration-{name}.md" for name in ("nncf", "neural-compressor")}
pytestmark = pytest.mark.skipif(not PAGES["nncf"].exists(), reason="needs the documentation")

NAMES = {
    "nncf": """
        SparsifiedLayerSummary SparsifiedModelStatistics MagnitudeSparsityStatistics ConstSparsityStatistics
        RBSparsityStatistics MovementSparsityStatistics Statistics to_str name weight_shape sparsity_level
        weight_percentage sparsity_level_for_layers sparsified_layers_summary model_statistics thresholds
        target_sparsity_level mean_sparse_prob importance_threshold importance_regularization_factor
        FilterPruningController target_model prunable_types pruned_module_groups pruned_norms_operators config loss
        scheduler pruning_level current_groupwise_pruning_level compression_rate maximal_compression_rate get_mask
        statistics quickly_collected_only set_pruning_level run_batchnorm_adaptation prepare_for_export
        compression_stage disable_scheduler strip_model do_copy strip_format StripFormat
        BaseSparsityAlgoController sparsified_module_info current_sparsity_level
    """,
    "neural-compressor": """
        BasePruner PytorchBasePruner KerasBasePruner register_pruner config modules framework masks scores pattern
        scheduler current_sparsity_ratio global_step start_step end_step pruning_frequency target_sparsity_ratio
        max_sparsity_ratio_per_op PruningCriterion MagnitudeCriterion GradientCriterion SnipCriterion
        SnipMomentumCriterion SnipMomentumBlockCriterion RetrainFreeCriterion register_criterion get_criterion alpha
        beta
    """,
}


@pytest.mark.parametrize("page", PAGES)
def test_names(page):
    text = PAGES[page].read_text(encoding="utf-8")
    words = set(re.findall(r"\w+", text))
    assert not [name for name in NAMES[page].split() if name not in words]


@pytest.mark.parametrize("page", PAGES)
def test_code(page, tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    for name in ("digits_resnet.onnx", "digits_calib.npz"):
        shutil.copy(ROOT / "models" / name, tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGES[page].read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 3
    space: dict[str, object] = {}
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for number, block in enumerate(blocks):
        test = doctest.DocTestParser().get_doctest(block, space, f"{page}[{number}]", page, 0)
        assert test.examples
        said: list[str] = []
        runner.run(test, out=said.append, clear_globs=False)
        space.update(test.globs)
        assert not said, "".join(said)


def test_every_public_name_is_on_a_page_or_documented():
    from onnxprune import controllers

    for name in controllers.__all__:
        assert (getattr(controllers, name).__doc__ or "").strip(), name
    assert Path(controllers.__file__).exists()
