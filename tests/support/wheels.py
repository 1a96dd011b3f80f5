"""Writes tiny wheels, so that what installs packages is tested without an index and without a network."""

import zipfile
from collections.abc import Mapping
from pathlib import Path

LEFT_PAD = {
    "left_pad.py": 'VERSION = "%s"\n\ndef pad(text: str, width: int = 5) -> str:\n    return text.rjust(width)\n\n'
    'def main() -> None:\n    print(pad("x"))\n'
}


def wheel(folder: Path, name: str, version: str, files: Mapping[str, str], scripts: Mapping[str, str]) -> Path:
    """`name` with underscores; `scripts`: what its commands call."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    about = f"{name}-{version}.dist-info"
    held = {
        **files,
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/entry_points.txt": "[console_scripts]\n"
        + "".join(f"{command} = {calls}\n" for command, calls in scripts.items()),
    }
    held[f"{about}/RECORD"] = "".join(f"{inner},,\n" for inner in [*held, f"{about}/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for inner, text in held.items():
            archive.writestr(inner, text)
    return path


def left_pad(folder: Path, version: str = "1.0") -> Path:
    files = {name: text % version for name, text in LEFT_PAD.items()}
    return wheel(folder, "left_pad", version, files, {"padder": "left_pad:main"})
