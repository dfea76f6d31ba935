"""How the templates of this folder become pages, and images parts of them."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jinja2
    from PIL import Image

JPEG = "data:image/jpeg;base64,"  # what the URL of an image that a page holds begins with


def environment() -> jinja2.Environment:
    """Return what renders the templates of this folder: every value is escaped, an unknown name is an error."""
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def jpeg_url(image: Image.Image, side: int, quality: int) -> str:
    """Return an image as the data URL of a JPEG of at most side x side pixels; the image itself is made smaller."""
    from PIL import Image

    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    target = io.BytesIO()
    image.convert("L" if image.mode == "F" else image.mode).save(target, "JPEG", quality=quality)
    return JPEG + base64.b64encode(target.getvalue()).decode()
