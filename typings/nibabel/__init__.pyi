# Everything is Any: nibabel's own types say that nibabel.load returns an image without data or affine.
from typing import Any

def __getattr__(name: str) -> Any: ...
