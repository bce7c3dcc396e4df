"""Running the command line in this process, and what every refusal has in common."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from onnxprune.cli import main


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


class Command:
    """`command("prune", path, "--ratio", 0.3)` runs it and returns exit code and output."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *arguments: object) -> Result:
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            main([str(argument) for argument in arguments])
        captured = self.capsys.readouterr()
        code = exit_info.value.code
        return Result(code if isinstance(code, int) else 0, captured.out, captured.err)

    def accepted(self, *arguments: object) -> Result:
        result = self(*arguments)
        assert (result.code, result.err) == (0, ""), result
        return result

    def refused(self, code: int, *arguments: object, folder: Path, says: list[str]) -> Result:
        """Exit code `code`, a message with all of `says` on standard error, nothing in `folder` touched."""
        before = snapshot(folder)
        result = self(*arguments)
        assert result.code == code, result
        assert snapshot(folder) == before
        assert result.out == ""
        check_message(result.err, says)
        return result


def check_message(text: str, says: list[str]) -> None:
    """An error that says what is wrong and, on a line of its own, what to do; never a traceback."""
    assert "Traceback" not in text
    for part in says:
        assert part in text, text
    first, *hints = text.rstrip("\n").split("\n")
    assert first.startswith("error: "), text
    assert hints and hints[-1].strip(), f"no hint: {text}"


def snapshot(folder: Path) -> dict[str, bytes | str]:
    """Every file below `folder` with its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }
