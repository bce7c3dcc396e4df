"""Samples from a folder of pictures; each picture is decoded when it is asked for, and not kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnxprune.calibrate.dataset import Array, InputSpec
from onnxprune.calibrate.labels import class_indices, read_label_file
from onnxprune.calibrate.preprocess import CHOICES, Preprocess
from onnxprune.errors import DataError, UsageError

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True, eq=False)
class ImageSamples:
    """One picture per sample.

    Parameters
    ----------
    paths
        The pictures.
    name
        The model input that they feed.
    preprocess
        A resolved recipe.
    """

    paths: Sequence[Path]
    name: str
    preprocess: Preprocess

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int, /) -> Mapping[str, Array]:
        from PIL import Image

        path = self.paths[index]
        try:
            with Image.open(path) as picture:
                return {self.name: self.preprocess.apply(picture)}
        except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
            raise DataError(
                f"{path} cannot be read as a picture: {error}", "Repair or remove the file."
            ) from error

    def place(self, index: int) -> str:
        """Say which picture it is."""
        return str(self.paths[index])


def find_images(folder: Path) -> list[Path]:
    """List the pictures of a folder and of its direct subfolders, sorted, hidden ones left out."""
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    found = []
    for entry in entries:
        inside = sorted(entry.iterdir()) if entry.is_dir() else [entry]
        found += [path for path in inside if _is_image(path)]
    return found


def samples_from_images(
    paths: Sequence[Path],
    folder: Path,
    inputs: Sequence[InputSpec],
    preprocess: Preprocess | None,
    bindings: Mapping[str, int],
) -> tuple[ImageSamples, Array | None, tuple[str, ...]]:
    """Read a folder of pictures with a file of labels, with class folders, or without labels.

    Parameters
    ----------
    paths
        The pictures, as :func:`find_images` lists them.
    folder
        Where they lie.
    inputs
        Exactly one, of 4 axes.
    preprocess
        The recipe; what it leaves open is taken from the input.
    bindings
        Sizes of symbolic axes by name, for the size of the pictures.

    Returns
    -------
    tuple
        The samples, their labels or None, notes.

    Raises
    ------
    UsageError
        Without a recipe, without Pillow, or where recipe and input do not fit.
    DataError
        If pictures lie both in class folders and beside them, or the file of labels does not fit.
    """
    if preprocess is None:
        raise UsageError(
            f"{folder} holds pictures, and how to turn them into numbers was not said",
            f"Give --preprocess: {CHOICES}.",
        )
    if len(inputs) != 1:
        raise UsageError(
            f"{folder} holds pictures, but the model has {len(inputs)} inputs",
            "Give a .npz whose arrays carry the names of all inputs.",
        )
    _require_pillow()
    resolved = preprocess.resolve(inputs[0], bindings)
    table = read_label_file(folder)
    if table is not None:
        listed, labels, notes = table.match(paths)
        return ImageSamples(listed, inputs[0].name, resolved), labels, notes
    samples = ImageSamples(paths, inputs[0].name, resolved)
    loose = [path for path in paths if path.parent == folder]
    if len(loose) == len(paths):
        return samples, None, ()
    if loose:
        raise DataError(
            f"{folder} has pictures both in class folders and beside them ({loose[0].name})",
            "Put every picture into a class folder, or list them in labels.csv.",
        )
    labels, notes = class_indices([path.parent.name for path in paths], str(folder))
    return samples, labels, notes


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()


def _require_pillow() -> None:
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "reading pictures needs Pillow, which is not installed", "pip install 'onnxprune[images]'"
        ) from error
