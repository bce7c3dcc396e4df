from __future__ import annotations

import numpy as np
import pytest

from onnxprune.calibrate import InputSpec, Preprocess
from onnxprune.calibrate.preprocess import PRESETS
from onnxprune.calibrate.recipe import parse_formula
from onnxprune.errors import UsageError

Image = pytest.importorskip("PIL.Image")


def spec(*shape, dtype=np.float32):
    return InputSpec("image", np.dtype(dtype), shape)


def apply(recipe, picture, *shape, dtype=np.float32):
    return recipe.resolve(spec(*shape, dtype=dtype), {}).apply(picture)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


# Formulas.


@pytest.mark.parametrize(
    ("text", "at_0", "at_255"),
    [
        ("x", 0, 255),
        ("x/255", 0, 1),
        ("x / 128 - 1", -1, 255 / 128 - 1),
        ("x/127.5-1", -1, 1),
        ("(x-127)/128", -127 / 128, 1),
        ("2*(x/255)-1", -1, 1),
        ("-x + 255", 255, 0),
        ("(x/255 - 0.5) / 0.25", -2, 2),
        ("X*1e-2", 0, 2.55),
        ("+x", 0, 255),
    ],
)
def test_formulas(text, at_0, at_255):
    slope, offset = parse_formula(text)
    assert offset == pytest.approx(at_0, abs=1e-12)
    assert 255 * slope + offset == pytest.approx(at_255, abs=1e-12)
    values = apply(Preprocess.parse(text), Image.fromarray(np.full((2, 2, 3), 255, np.uint8)), "n", 3, 2, 2)
    assert values == pytest.approx(at_255, abs=1e-5)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "x*x",
            "1/x",
            "x**2",
            "y/255",
            "x/0",
            "3",
            "x-x",
            "x//2",
            "f(x)",
            "x/255)",
            "True*x",
            "x if 1 else 2",
        ),
        *("__import__('os')", "x" + "+1" * 200, "'x'", "x/1e-400", "x = 1"),
    ],
)
def test_what_is_no_formula(text):
    with pytest.raises(UsageError, match="is not understood") as caught:
        Preprocess.parse(text)
    assert "imagenet" in caught.value.hint and "TOML" in caught.value.hint


def test_a_misspelt_preset_is_recognised():
    with pytest.raises(UsageError, match=r"did you mean 'imagenet'\?"):
        Preprocess.parse("imagnet")
    assert Preprocess.parse(" ImageNet ") == PRESETS["imagenet"]


# TOML files.


def toml(tmp_path, text):
    path = tmp_path / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_toml_file(tmp_path):
    path = toml(
        tmp_path,
        """size = [32, 48]
        resize = "stretch"
        crop = 0.5
        mean = [1, 2.5, 3]
        std = "1/4"
        scale = "1/255"
        layout = "NHWC"
        channels = "BGR"
        dtype = "float16"
        """,
    )
    expected = Preprocess(
        (32, 48), "stretch", 0.5, (1.0, 2.5, 3.0), (0.25,), 1 / 255, "NHWC", "BGR", "float16"
    )
    assert Preprocess.parse(path) == expected
    assert Preprocess.parse(str(path)) == expected
    assert Preprocess.parse(toml(tmp_path, "size = 8\nresize = 9")) == Preprocess((8, 8), 9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("men = 1", r"unknown key 'men' \(did you mean 'mean'\?\)"),
        ("size = 0", "size = 0 is not a whole number of pixels"),
        ("size = [1, 2, 3]", r"size = \[1, 2, 3\] is not a number of pixels or"),
        ("size = 1.5", "size = 1.5 is not a whole number"),
        ("resize = 'cut'", "resize = 'cut' is not a whole number"),
        ("mean = []", "mean = .* is not a number"),
        ("mean = ['a']", "mean = .* is not a number"),
        ("mean = true", "mean = True is not a number"),
        ("scale = 'x/255'", "scale = 'x/255' is not a number"),
        ("layout = 'CHW'", "layout = 'CHW' is not one of NCHW, NHWC"),
        ("channels = 'rgb'", "is not one of RGB, BGR, GRAY"),
        ("dtype = 'str'", "dtype = 'str' is not one of float32"),
        ("crop = 0", "crop is 0.0"),
        ("crop = 1.5", "crop is 1.5"),
        ("std = [1, 0, 1]", "give no finite values"),
        ("scale = inf", "give no finite values"),
        ("resize = 256\ncrop = 0.5", "contradict each other"),
        ("size 32", "is no TOML file"),
    ],
)
def test_toml_files_that_are_wrong(tmp_path, text, message):
    with pytest.raises(UsageError, match=message):
        Preprocess.parse(toml(tmp_path, text))


def test_a_missing_toml_file(tmp_path):
    with pytest.raises(UsageError, match=r"none\.toml cannot be read"):
        Preprocess.parse(str(tmp_path / "none.toml"))


# What is left open comes from the model.


@pytest.mark.parametrize(
    ("shape", "layout", "channels", "size"),
    [
        (("n", 3, 20, 30), "NCHW", "RGB", (20, 30)),
        ((1, 20, 30, 3), "NHWC", "RGB", (20, 30)),
        (("n", 1, 8, 8), "NCHW", "GRAY", (8, 8)),
        (("n", 8, 8, 1), "NHWC", "GRAY", (8, 8)),
        (("n", 3, 8, 3), "NCHW", "RGB", (8, 3)),
        (("n", 3, "h", None), "NCHW", "RGB", (5, 6)),
    ],
)
def test_resolve(shape, layout, channels, size):
    found = Preprocess().resolve(spec(*shape), {"h": 5, "image.3": 6})
    assert (found.layout, found.channels, found.size, found.dtype) == (layout, channels, size, "float32")


@pytest.mark.parametrize(
    ("recipe", "shape", "message"),
    [
        (Preprocess(), ("n", 3, 8), "is no batch of pictures"),
        (Preprocess(), ("n", 3, "h", "w"), "size of pictures for input 'image'"),
        (Preprocess(), ("n", 4, 8, 8), r"gives 3 channels \(RGB, NCHW\), .* has 4"),
        (PRESETS["imagenet"], ("n", 1, 8, 8), "gives 3 channels .* has 1"),
        (Preprocess(mean=(1, 2, 3)), ("n", 1, 8, 8), "mean has 3 values for 1 channels"),
        (Preprocess(std=(1, 2)), ("n", 3, 8, 8), "std has 2 values for 3 channels"),
        (Preprocess(resize=16), ("n", 3, 8, 32), "does not cover 8 x 32"),
    ],
)
def test_recipes_that_do_not_fit_the_model(recipe, shape, message):
    with pytest.raises(UsageError, match=message):
        recipe.resolve(spec(*shape), {})


def test_apply_wants_a_resolved_recipe():
    with pytest.raises(UsageError, match="not resolved"):
        Preprocess().apply(Image.fromarray(noise(2, 2)))


# Pictures.


def test_values_and_layout_without_resizing():
    pixels = noise(4, 6)
    found = apply(Preprocess.parse("x/128-1"), Image.fromarray(pixels), "n", 3, 4, 6)
    assert found.dtype == np.float32
    assert np.array_equal(found, (pixels.astype(np.float32) / 128 - 1).transpose(2, 0, 1)[None])
    found = apply(Preprocess(), Image.fromarray(pixels), "n", 4, 6, 3)
    assert np.array_equal(found, pixels[None])


def test_mean_and_std_per_channel_follow_the_order_of_channels():
    pixels = noise(2, 2)
    recipe = Preprocess(mean=(1, 2, 3), std=(1, 2, 4), channels="BGR")
    found = apply(recipe, Image.fromarray(pixels), "n", 2, 2, 3)
    assert np.array_equal(found[0], (pixels[:, :, ::-1] - np.float32([1, 2, 3])) / np.float32([1, 2, 4]))


def test_imagenet_is_what_torchvision_does():
    """Resize(256) and CenterCrop(224): a 320 x 427 picture becomes 256 x 341, cut at (16, 58)."""
    pixels = noise(320, 427)
    resized = np.asarray(Image.fromarray(pixels).resize((341, 256), Image.Resampling.BILINEAR))
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = ((resized[16:240, 58:282] / 255 - mean) / std).transpose(2, 0, 1)[None]
    found = apply(Preprocess.parse("imagenet"), Image.fromarray(pixels), "n", 3, 224, 224)
    assert found.shape == (1, 3, 224, 224)
    assert np.abs(found - expected).max() < 1e-5


@pytest.mark.parametrize(
    ("recipe", "picture", "size", "resized", "corner"),
    [
        (Preprocess(), (20, 40), (10, 10), (10, 20), (0, 5)),
        (Preprocess(), (20, 40), (5, 20), (10, 20), (2, 0)),
        (Preprocess(crop=0.5), (20, 40), (10, 10), (20, 40), (5, 15)),
        (Preprocess(resize=12), (24, 48), (10, 10), (12, 24), (1, 7)),
        (Preprocess(resize="stretch"), (20, 40), (10, 10), (10, 10), (0, 0)),
        (Preprocess(resize="stretch", crop=0.5), (20, 40), (10, 10), (20, 20), (5, 5)),
        (Preprocess(), (3, 7), (6, 6), (6, 14), (0, 4)),
    ],
)
def test_geometry(recipe, picture, size, resized, corner):
    image = Image.fromarray(noise(*picture))
    whole = np.asarray(
        image.resize(resized[::-1], Image.Resampling.BILINEAR) if resized != picture else image
    )
    expected = whole[corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]]
    found = apply(recipe, image, 1, *size, 3)
    assert np.array_equal(found[0], expected)


def test_modes_and_dtypes():
    gray = Image.fromarray(noise(2, 2)).convert("L")
    found = apply(Preprocess(), gray, "n", 1, 2, 2)
    assert np.array_equal(found[0, 0], np.asarray(gray))
    assert apply(Preprocess(), gray, "n", 3, 2, 2).shape == (1, 3, 2, 2)
    rgba = Image.fromarray(noise(2, 2)).convert("RGBA")
    assert apply(Preprocess(), rgba, "n", 3, 2, 2).shape == (1, 3, 2, 2)
    found = apply(Preprocess(scale=2.0), gray, "n", 1, 2, 2, dtype=np.uint8)
    assert found.dtype == np.uint8
    assert np.array_equal(found[0, 0], np.minimum(np.asarray(gray).astype(int) * 2, 255))
    ml_dtypes = pytest.importorskip("ml_dtypes")
    assert apply(Preprocess(), gray, "n", 1, 2, 2, dtype=ml_dtypes.bfloat16).dtype == ml_dtypes.bfloat16
    assert apply(Preprocess(dtype="float16"), gray, "n", 1, 2, 2).dtype == np.float16
