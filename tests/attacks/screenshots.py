"""Screenshots for the docs: ``python tests/attacks/screenshots.py RUN/audit/report.html docs/plots``."""

import html
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

BROWSER = ("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars")
SIZES = {"report-desktop": (1280, 2420, 1), "report-phone": (390, 1640, 2)}
"""Width and height in CSS pixels, and device pixels per CSS pixel."""


def shoot(report, path, width, height, density):
    """One screenshot, in a frame as wide as the screen: the window itself is never below 500 pixels."""
    frame = (
        f'<iframe style="border:0;width:{width}px;height:{height}px" srcdoc="{html.escape(report)}"></iframe>'
    )
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "frame.html"
        page.write_text(f'<!doctype html><body style="margin:0;background:#fff">{frame}')
        options = [f"--user-data-dir={folder}/profile", f"--force-device-scale-factor={density}"]
        size = [f"--window-size={max(width, 500)},{height}", f"--screenshot={path}"]
        command = [*BROWSER, *options, *size, page.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    cut = Image.open(path).convert("RGB").crop((0, 0, width * density, height * density))
    cut.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    text = Path(sys.argv[1]).read_text(encoding="utf-8")
    for name, (width, height, density) in SIZES.items():
        shoot(text, Path(sys.argv[2]) / f"{name}.png", width, height, density)
