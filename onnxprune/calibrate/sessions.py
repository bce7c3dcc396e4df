"""onnxruntime sessions from memory: opening them, running them, running a whole dataset through them."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from onnxprune.calibrate.checks import did_you_mean
from onnxprune.calibrate.dataset import Array, Dataset, Feed, Progress
from onnxprune.calibrate.ortvalues import BF16, as_bf16, as_float32, from_ort_value, ort_value
from onnxprune.calibrate.providers import CPU, resolve_providers, with_options
from onnxprune.calibrate.versions import newest
from onnxprune.errors import ModelError, UsageError

if TYPE_CHECKING:
    import onnx_ir as ir
    import onnxruntime

log = logging.getLogger(__name__)

EXTERNAL_ABOVE = 1 << 20
"""Bytes above which an initializer is handed to onnxruntime beside the model instead of inside it."""

LEAN_ABOVE = 1 << 16
"""The same for lean sessions: in models of many layers, most weights are smaller than the other bound."""

_FOLDER = "session.model_external_initializers_file_folder_path"
_FATAL = 4
_LONGEST = 400


def open_session(
    model: ir.Model,
    provider: str = "cpu",
    *,
    threads: int | None = None,
    optimize: bool = True,
    deterministic: bool = True,
    lean: bool = False,
    spinning: bool = False,
    widen: bool = True,
    saturating: bool = True,
) -> onnxruntime.InferenceSession:
    """Open a session on a model in memory; no file is written, and big weights are not copied.

    Where onnxruntime refuses a model with float16, bfloat16 or float64 (its CPU provider has few kernels for
    them), its copy in float32 runs instead: see `is_widened`.

    Parameters
    ----------
    model
        Not mutated. Its big weights are shared with the session: do not change them while the session lives.
    provider
        What :func:`~onnxprune.calibrate.providers.resolve_providers` takes.
    threads
        Threads per operator on the CPU; by default as many as the machine has cores.
    optimize
        Whether onnxruntime may rewrite the graph.
    deterministic
        Ask for kernels whose results do not vary from run to run, on CUDA also for full fp32 instead of TF32.
    lean
        Save memory where there are many activations, as with gradients: onnxruntime plans no memory by what a
        first run took, and on the CPU reads big weights where they lie, those in data files by mapping the files,
        instead of packing copies of them, or copies with channels in blocks. What was freed when the graph was
        read goes back to the system.
    spinning
        Whether threads that wait spin, which is onnxruntime's default and wanted where time is measured.
    widen
        Whether the copy in float32 will do, where the model itself cannot be run.
    saturating
        Whether sums of products of 8-bit integers may saturate, as they do on x86 processors without VNNI.
        Then they depend on the order of their terms, zeros among them. Without, float weights stay floats, too.

    Returns
    -------
    onnxruntime.InferenceSession
        It logs nothing below fatal: whatever goes wrong is raised.

    Raises
    ------
    UsageError
        If the provider is not usable here.
    ModelError
        If onnxruntime refuses the model.
    """
    from onnxprune.model.convert import has_other_floats, to_float32

    open_ = functools.partial(
        _open,
        provider=provider,
        threads=threads,
        optimize=optimize,
        deterministic=deterministic,
        lean=lean,
        spinning=spinning,
        saturating=saturating,
    )
    try:
        return open_(model)
    except ModelError as error:
        if not widen or not has_other_floats(model):
            raise
        try:
            session = open_(to_float32(model))
        except ModelError as other:
            log.debug("neither does its copy in float32 load: %s", other)
            raise error from None
        log.debug("runs in float32, because the model itself does not load: %s", error)
        session._onnxprune_widened = error.what
        return session


def is_widened(session: onnxruntime.InferenceSession) -> bool:
    """Whether a session of `open_session` runs a copy in float32, because the model itself cannot be run."""
    return bool(why_widened(session))


def why_widened(session: onnxruntime.InferenceSession) -> str:
    """Why a session runs a copy in float32; empty where it does not."""
    return str(getattr(session, "_onnxprune_widened", ""))


def _open(
    model: ir.Model,
    provider: str,
    *,
    threads: int | None,
    optimize: bool,
    deterministic: bool,
    lean: bool,
    spinning: bool,
    saturating: bool,
) -> onnxruntime.InferenceSession:
    import onnxruntime

    from onnxprune.model.opset import lowered
    from onnxprune.model.serialize import data_folder, to_bytes

    model = lowered(model, *newest())
    providers = resolve_providers(provider)
    small = lean and providers == [CPU]
    try:
        folder = data_folder(model) if lean and providers == [CPU] else ""
        message, left_out = to_bytes(
            model, external_above=LEAN_ABOVE if lean else EXTERNAL_ABOVE, folder=folder
        )
        weights = {name: ort_value(tensor.numpy()) for name, tensor in left_out.items()}
    except OSError as error:
        raise ModelError(
            f"the model's weights cannot be read: {error}", "Keep its data file in place."
        ) from error
    skipped = [] if saturating and not _rounded(model) else [_ROUNDS_WEIGHTS]

    def open_it(precise: bool) -> onnxruntime.InferenceSession:
        options = _options(deterministic, spinning, optimize, threads, small)
        options.enable_mem_pattern = not lean
        if folder:
            options.add_session_config_entry(_FOLDER, folder)
        if precise:
            options.add_session_config_entry("session.x64quantprecision", "1")
        for name, weight in weights.items() if small else ():
            options.add_initializer(name, weight)
        if weights:
            options.add_external_initializers(list(weights), list(weights.values()))
        return onnxruntime.InferenceSession(
            message,
            options,
            providers=with_options(providers, deterministic=deterministic),
            enable_fallback=0,
            disabled_optimizers=skipped,
        )

    try:
        session = _first(open_it, (False,) if saturating else (True, False))
    except Exception as error:
        raise ModelError(
            f"onnxruntime {onnxruntime.__version__} cannot load the model: {trim(error)}",
            "Check the model with onnx.checker; operators of other domains need their onnxruntime package.",
        ) from error
    if providers[0] not in session.get_providers():
        raise UsageError(
            f"onnxruntime does not run this model with {providers[0]}",
            "Use --provider cpu, or repair its installation.",
        )
    if lean:
        del message
        _hand_back()
    # onnxruntime reads the weights where they lie: they have to live as long as the session.
    session._onnxprune_weights = weights
    return session


def _options(
    deterministic: bool, spinning: bool, optimize: bool, threads: int | None, small: bool
) -> onnxruntime.SessionOptions:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    options.use_deterministic_compute = deterministic
    if not spinning:  # between two runs numpy computes, on as many threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    levels = onnxruntime.GraphOptimizationLevel
    most = levels.ORT_ENABLE_EXTENDED if small else levels.ORT_ENABLE_ALL
    options.graph_optimization_level = most if optimize else levels.ORT_DISABLE_ALL
    if threads is not None:
        options.intra_op_num_threads = threads
    if small:
        options.add_session_config_entry("session.disable_prepacking", "1")
    return options


def _first(
    open_it: Callable[[bool], onnxruntime.InferenceSession], choices: tuple[bool, ...]
) -> onnxruntime.InferenceSession:
    """The session of the first choice that works: exact sums fail in onnxruntime where layers share a weight."""
    for precise in choices[:-1]:
        with contextlib.suppress(Exception):  # the last choice says what is wrong with the model
            return open_it(precise)
    return open_it(choices[-1])


def _rounded(model: ir.Model) -> bool:
    """Whether weights are floats here only because they are analysed, and integers in the file."""
    from onnxprune.model.quantized import QuantizedTensor

    return any(isinstance(v.const_value, QuantizedTensor) for v in model.graph.initializers.values())


_ROUNDS_WEIGHTS = "WeightBiasQuantization"
"""A rewriting of onnxruntime's that rounds float weights whose layer has rounded inputs, with one scale for all."""


def _hand_back() -> None:
    """Give freed memory back to the system, where the C library keeps it and can be asked to (glibc)."""
    try:
        trim_heap = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library
        return
    trim_heap(ctypes.c_size_t(0))


def run(
    session: onnxruntime.InferenceSession, feed: Mapping[str, Array], outputs: Sequence[str] | None = None
) -> Feed:
    """Run one feed.

    Parameters
    ----------
    session
        An open session.
    feed
        One array per input; initializers that are also graph inputs may be overridden. A session that is widened
        takes floats of any width.
    outputs
        Names of the outputs wanted; by default all that are tensors.

    Returns
    -------
    dict
        Output name -> array, in the order of `outputs`. bf16 outputs come as float32, which holds them
        exactly; a session that is widened makes float32 only.

    Raises
    ------
    UsageError
        If the model has no such output.
    ModelError
        If onnxruntime fails.
    """
    types = {node.name: node.type for node in session.get_outputs()}
    names = (
        [name for name, kind in types.items() if kind.startswith("tensor(")]
        if outputs is None
        else list(outputs)
    )
    check_outputs(names, types)
    wanted = {
        node.name: node.type for node in (*session.get_inputs(), *session.get_overridable_initializers())
    }
    if is_widened(session):
        feed = {name: as_float32(array) for name, array in feed.items()}
    try:
        if BF16 in (*(wanted.get(name) for name in feed), *(types[name] for name in names)):
            values = {name: ort_value(as_bf16(array, wanted.get(name))) for name, array in feed.items()}
            found = session.run_with_ort_values(names, values)
            return {name: from_ort_value(value) for name, value in zip(names, found, strict=True)}
        return dict(zip(names, session.run(names, dict(feed)), strict=True))
    except Exception as error:
        said = trim(error)
        hint = LOOKED_UP if any(words in said for words in _INDEX) else OTHER_SIZES
        raise ModelError(f"onnxruntime failed on inputs {_describe(feed)}: {said}", hint) from error


OTHER_SIZES = "The model may only fit other extents of its dynamic axes (see --bind), or a batch of 1."
LOOKED_UP = "An integer of these inputs looks up more than there is: check their values."
_INDEX = ("out of data bounds", "invalid index", "out of bounds")


def check_outputs(names: Iterable[str], known: Collection[str]) -> None:
    """Raise UsageError where one of these outputs is not among those of the model."""
    for name in names:
        if name not in known:
            raise UsageError(
                f"the model has no output {name!r}{did_you_mean(name, known)}",
                f"Its outputs: {', '.join(known)}.",
            )


def stream(
    session: onnxruntime.InferenceSession,
    dataset: Dataset,
    batch_size: int,
    *,
    outputs: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Iterator[tuple[Feed, Array | None]]:
    """Run a dataset batch by batch; only one batch is in memory.

    Parameters
    ----------
    session
        An open session.
    dataset
        Samples that fit it.
    batch_size
        At most this many samples per run.
    outputs
        As in :func:`run`.
    progress
        Called with (samples done, samples in all) after each batch.

    Yields
    ------
    tuple
        Outputs by name, labels or None.
    """
    done = 0
    for feed, labels in dataset.labelled_batches(batch_size):
        yield run(session, feed, outputs), labels
        done += len(next(iter(feed.values()))) if dataset.batchable else 1
        if progress is not None:
            progress(done, len(dataset))


def predict(
    session: onnxruntime.InferenceSession,
    dataset: Dataset,
    batch_size: int,
    *,
    outputs: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Feed:
    """Run a dataset and keep all outputs in memory.

    Returns
    -------
    dict
        Output name -> array: batches joined along the leading axis where the dataset is batchable,
        otherwise one entry per sample along a new leading axis.

    Raises
    ------
    UsageError
        If outputs of different samples differ in shape.
    """
    parts: dict[str, list[Array]] = {}
    for found, _ in stream(session, dataset, batch_size, outputs=outputs, progress=progress):
        for name, array in found.items():
            parts.setdefault(name, []).append(array)
    try:
        join = np.concatenate if dataset.batchable else np.stack
        return {name: join(arrays) for name, arrays in parts.items()}
    except ValueError as error:
        raise UsageError(
            f"the outputs of different samples cannot be joined: {error}",
            "Take them one by one with stream().",
        ) from error


def trim(error: BaseException) -> str:
    """Return the gist of a message of onnxruntime: one line, without its prefix and source positions."""
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error)).strip()
    line = (text.splitlines() or [type(error).__name__])[0]
    line = re.sub(r"\S+\.(cc|h|cpp|cu):\d+ ", "", line)
    return line if len(line) <= _LONGEST else line[: _LONGEST - 3] + "..."


def _describe(feed: Mapping[str, Array]) -> str:
    parts = (f"{name!r} {array.dtype.name}{list(array.shape)}" for name, array in feed.items())
    return ", ".join(parts) or "(none)"
