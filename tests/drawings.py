"""Draw a small archive in Omniglot's official layout, for tests."""

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

CHARACTERS = {
    "images_background": {"Aleph": 14, "Beth": 12, "Gimel_(old)": 10},
    "images_evaluation": {"Daleth": 10, "He": 8},
}
DRAWINGS = 20


def drawing(number: int, copy: int) -> Image.Image:
    """Draw 105×105, one bit a pixel, black ink on white: bars show the character by their place, a dot the copy."""
    paper = np.ones((105, 105), dtype=bool)
    across, down = 8 + 8 * (number % 10), 90 - 10 * (number // 10)
    paper[across : across + 6, 10:30] = False
    paper[20:80, down : down + 6] = False
    paper[92:98, 4 * copy + 10 : 4 * copy + 13] = False
    return Image.fromarray(paper)


def files() -> dict[str, bytes]:
    """Return the PNG of every drawing of both sets, by its relative name."""
    out: dict[str, bytes] = {}
    number = 0
    for folder, alphabets in CHARACTERS.items():
        for alphabet, characters in alphabets.items():
            for character in range(1, characters + 1):
                number += 1
                for copy in range(1, DRAWINGS + 1):
                    buffer = io.BytesIO()
                    drawing(number, copy).save(buffer, format="PNG")
                    name = f"{folder}/{alphabet}/character{character:02}/{number:04}_{copy:02}.png"
                    out[name] = buffer.getvalue()
    return out


def write_zips(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    contents = files()
    for folder in CHARACTERS:
        with zipfile.ZipFile(root / f"{folder}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name in sorted(contents, reverse=True):
                if name.startswith(folder):
                    archive.writestr(name, contents[name])
            archive.writestr(f"__MACOSX/{folder}/._0001_01.png", b"not a picture")
    return root


def write_folders(root: Path) -> Path:
    for name, content in files().items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root
