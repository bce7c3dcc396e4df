from __future__ import annotations

import onnxruntime
import pytest

from onnxprune.calibrate import providers
from onnxprune.calibrate.providers import CPU, CUDA, TENSORRT, resolve_providers, with_options
from onnxprune.errors import UsageError


@pytest.fixture
def machine(monkeypatch):
    """Pretend that onnxruntime has some providers and that some of them do not work."""

    def pretend(available, broken=()):
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [*available, CPU])
        problems = dict.fromkeys(broken, "no driver")
        monkeypatch.setattr(providers, "why_unusable", lambda name: problems.get(name, ""))

    return pretend


def test_auto_is_cuda_only_where_it_works(machine):
    machine([TENSORRT, CUDA])
    assert resolve_providers("auto") == [CUDA, CPU]
    machine([TENSORRT, CUDA], broken=[CUDA])
    assert resolve_providers("auto") == [CPU]
    machine([])
    assert resolve_providers("auto") == [CPU]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("cpu", [CPU]),
        ("CPU", [CPU]),
        (CPU, [CPU]),
        ("cuda", [CUDA, CPU]),
        ("cudaexecutionprovider", [CUDA, CPU]),
        ("tensorrt", [TENSORRT, CUDA, CPU]),
        ("openvino", ["OpenVINOExecutionProvider", CPU]),
        ("dml", ["DmlExecutionProvider", CPU]),
        ("coreml", ["CoreMLExecutionProvider", CPU]),
        ("MyOwnExecutionProvider", ["MyOwnExecutionProvider", CPU]),
    ],
)
def test_names(machine, asked, expected):
    others = ["OpenVINOExecutionProvider", "DmlExecutionProvider", "CoreMLExecutionProvider"]
    machine([TENSORRT, CUDA, *others, "MyOwnExecutionProvider"])
    assert resolve_providers(asked) == expected


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("cdua", r"no execution provider 'cdua' \(did you mean 'cuda'\?\)"),
        ("", "no execution provider ''"),
        ("coreml", "the installed onnxruntime has no CoreMLExecutionProvider"),
        ("cuda", "CUDAExecutionProvider does not work on this machine: no driver"),
    ],
)
def test_what_cannot_be_had_lists_what_can(machine, asked, message):
    machine([CUDA, "DmlExecutionProvider"], broken=[CUDA])
    with pytest.raises(UsageError, match=message) as caught:
        resolve_providers(asked)
    assert caught.value.hint == "Available here: dml, cpu, or auto."


def test_the_probe_works_on_the_cpu_and_fails_without_a_device(monkeypatch):
    providers.why_unusable.cache_clear()
    assert providers.why_unusable(CPU) == ""
    monkeypatch.setattr(providers, "_has_cuda_device", lambda: False)
    assert "no CUDA driver" in providers.why_unusable(CUDA)
    providers.why_unusable.cache_clear()


def test_looking_for_a_device_prints_nothing(capfd):
    providers.why_unusable.cache_clear()
    assert resolve_providers("auto")[-1] == CPU
    assert capfd.readouterr() == ("", "")


def test_deterministic_cuda_computes_in_full_precision():
    assert with_options([CUDA, CPU], deterministic=True) == [
        (CUDA, {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}),
        (CPU, {}),
    ]
    assert with_options([CUDA, CPU], deterministic=False) == [(CUDA, {}), (CPU, {})]
