"""How long models run: many short runs in turns, so that all see the same noise of the machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxprune.calibrate.dataset import Feed
from onnxprune.calibrate.ortvalues import ort_value
from onnxprune.calibrate.providers import CPU, CUDA, TENSORRT, resolve_providers
from onnxprune.calibrate.sessions import open_session, trim
from onnxprune.errors import ModelError
from onnxprune.model.serialize import weight_bytes

if TYPE_CHECKING:
    import onnx_ir as ir

Array = np.ndarray[Any, np.dtype[np.float64]]
Ran = tuple["ir.Model", Feed]
"""A model and what it runs on."""

TOGETHER, BYTES = 48, 2**28
"""So many sessions, and bytes of weights, are held at once."""

TURNS, QUIET, LONGEST = (4, 14), 0.01, 8.0
"""A comparison takes so many turns, until its noise is so small or so many seconds have passed."""


@dataclass(frozen=True)
class Share:
    """How long a model takes beside another one.

    Attributes
    ----------
    before, after
        Seconds per run of the first and of the second.
    value
        The median over all turns of the second's time as a share of the first's.
    noise
        Half of the 95 % interval of that median.
    """

    before: float
    after: float
    value: float
    noise: float

    @classmethod
    def of(cls, times: Array) -> Share:
        """From times of shape (2, turns)."""
        shares = times[1] / times[0]
        value = float(np.median(shares))
        deviation = float(np.subtract(*np.quantile(shares, [0.75, 0.25]))) / 1.349
        noise = 1.96 * 1.2533 * deviation / np.sqrt(len(shares))
        return cls(float(np.median(times[0])), float(np.median(times[1])), value, float(noise))


@dataclass(frozen=True)
class Stopwatch:
    """Times models the way their users will run them: onnxruntime's defaults, inputs where the provider wants them.

    One thread on the CPU is timed by the processor time of that thread, which other work on the machine does not
    add to; everything else by the wall clock.

    Parameters
    ----------
    provider
        As for `onnxprune.calibrate.sessions.open_session`.
    threads
        Threads per operator on the CPU; None: onnxruntime's default.
    """

    provider: str = "auto"
    threads: int | None = None

    @property
    def conditions(self) -> str:
        """Provider and threads in words."""
        name = resolve_providers(self.provider)[0]
        threads = "onnxruntime's default threads" if self.threads is None else f"{self.threads} threads"
        return f"{name}, {'1 thread' if self.threads == 1 else threads}"

    @property
    def on_cpu(self) -> bool:
        """Whether models run on the CPU."""
        return resolve_providers(self.provider)[0] == CPU

    def times(self, ran: Iterable[Ran], *, rounds: int, slice_s: float, together: bool = False) -> Array:
        """Seconds per run, shape (models, rounds): the lower quartile of each slice of time.

        Parameters
        ----------
        ran
            Models, and what each runs on. As many at a time as memory suggests are held in sessions and take turns.
        rounds
            How many turns each has.
        slice_s
            How long a turn takes; at least one run.
        together
            Hold all of them at once, whatever memory that takes.

        Raises
        ------
        ModelError
            If onnxruntime cannot run a model.
        """
        found = [np.zeros((0, rounds))]
        for part in [list(ran)] if together else _parts(ran):
            runs = [self._opened(model, feed) for model, feed in part]
            turns = [[_quartile(run, slice_s, self._clock) for run in runs] for _ in range(rounds)]
            found.append(np.array(turns, np.float64).reshape(rounds, len(runs)).T)
        return np.concatenate(found)

    @property
    def _clock(self) -> Callable[[], float]:
        alone = self.threads == 1 and resolve_providers(self.provider) == [CPU]
        return time.thread_time if alone else time.perf_counter

    def share(self, whole: Ran, cut: Ran) -> Share:
        """How long one model takes beside another.

        Each turn has sessions of its own, because times also differ from session to session. There are as many as
        the noise wants, between `TURNS[0]` and `TURNS[1]`.
        """
        started, found = time.perf_counter(), np.zeros((2, 0))
        while found.shape[1] < TURNS[1]:
            times = self.times([whole, cut], rounds=3, slice_s=0.06, together=True)
            found = np.concatenate([found, np.median(times, axis=1, keepdims=True)], axis=1)
            if found.shape[1] < TURNS[0]:
                continue
            if Share.of(found).noise <= QUIET or time.perf_counter() - started > LONGEST:
                break
        return Share.of(found)

    def _opened(self, model: ir.Model, feed: Feed) -> Callable[[], None]:
        """A function that runs a model once, after two runs for warming up."""
        session = self._session(model)
        device = "cuda" if resolve_providers(self.provider)[0] in (CUDA, TENSORRT) else "cpu"
        try:
            binding = session.io_binding()
            held = {name: ort_value(array, device) for name, array in feed.items()}
            for name, value in held.items():
                binding.bind_ortvalue_input(name, value)
            names = [output.name for output in session.get_outputs()]

            def bind() -> None:
                for name in names:
                    binding.bind_output(name, device)

            def run() -> None:
                session.run_with_iobinding(binding)
                binding.synchronize_outputs()

            def bind_and_run() -> None:
                bind()
                run()

            bind_and_run()
            # What is bound must have the rank that the model declares; where it has not, it is bound again.
            repeat = run if _as_declared(session, binding) else bind_and_run
            repeat()
        except Exception as error:
            raise ModelError(
                f"onnxruntime failed while the run time was measured: {trim(error)}",
                "The model may only fit other extents of its dynamic axes (see --bind).",
            ) from error
        return repeat

    def _session(self, model: ir.Model) -> Any:
        """A session on the model itself: how long its copy in float32 takes says nothing about it."""
        from onnxprune.model.convert import other_floats

        try:
            return open_session(
                model, self.provider, threads=self.threads, deterministic=False, spinning=True, widen=False
            )
        except ModelError as error:
            floats = other_floats(model)
            if not floats:
                raise
            name = resolve_providers(self.provider)[0]
            raise ModelError(
                f"the run time of a {floats} model cannot be measured with {name}: {error.what}",
                "Name another target (--macs, --params), or a --provider with kernels for it, such as cuda.",
            ) from error


def _as_declared(session: Any, binding: Any) -> bool:
    """Whether all outputs that are tensors have the rank that the model declares."""
    return all(
        not value.is_tensor() or not declared.shape or len(value.shape()) == len(declared.shape)
        for declared, value in zip(session.get_outputs(), binding.get_outputs(), strict=True)
    )


def _quartile(run: Callable[[], None], seconds: float, clock: Callable[[], float]) -> float:
    found: list[float] = []
    started = time.perf_counter()
    while not found or time.perf_counter() - started < seconds:
        before = clock()
        run()
        found.append(clock() - before)
    return float(np.quantile(found, 0.25))


def _parts(ran: Iterable[Ran]) -> Iterator[list[Ran]]:
    part: list[Ran] = []
    held = 0
    for model, feed in ran:
        size = weight_bytes(model)
        if part and (len(part) >= TOGETHER or held + size > BYTES):
            yield part
            part, held = [], 0
        part.append((model, feed))
        held += size
    if part:
        yield part
