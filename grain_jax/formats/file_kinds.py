"""Detect files that are not weights by their first bytes, for errors that say what to do.

Most public reports of weights that "cannot be loaded" are about files of another kind under the
expected name: a Git LFS pointer, an HTML page, an incomplete download. Nothing in a file is
executed.
"""

import re
import zipfile
from pathlib import Path

HEAD = 4096  # bytes that are read
MAX_HEADER = 100 * 2**20  # of safetensors, the limit of its library
PUBLISHED = {  # TorchScript archives of OpenAI, and the same weights on the Hugging Face hub
    "ViT-B-32.pt": "openai/clip-vit-base-patch32",
    "ViT-B-16.pt": "openai/clip-vit-base-patch16",
    "ViT-L-14.pt": "openai/clip-vit-large-patch14",
    "ViT-L-14-336px.pt": "openai/clip-vit-large-patch14-336",
}
RESNET = re.compile(r"RN\d+(x\d+)?\.pt")
AGAIN = "download it again"
CONVERT = "save the model in PyTorch, or as safetensors, and give that"
STARTS: tuple[tuple[bytes, str], ...] = (
    (
        b"version https://git-lfs.github.com/",
        "is a pointer of Git LFS, not the weights: install git-lfs and run `git lfs pull` in the "
        "folder that was cloned",
    ),
    (b"GGUF", f"is a GGUF file, of llama.cpp; {CONVERT}"),
    (b"\x89HDF\r\n\x1a\n", f"is an HDF5 file, as Keras and TensorFlow write them; {CONVERT}"),
    (b"\x93NUMPY", f"is one array of NumPy, not the weights of a model; {CONVERT}"),
    (b"\x1f\x8b", "is compressed with gzip: unpack it with gunzip"),
    (b"BZh", "is compressed with bzip2: unpack it with bunzip2"),
    (b"\xfd7zXZ\x00", "is compressed with xz: unpack it with unxz"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd: unpack it with unzstd"),
    (b"7z\xbc\xaf\x27\x1c", "is an archive of 7-Zip: unpack it"),
)
TAR = (
    "is a tar archive: unpack it, and give its content; a checkpoint of PyTorch before 0.1.10 is "
    "one too, and must be saved again with a later version"
)
SCRIPT = "is a TorchScript archive, as OpenAI publishes CLIP"
LEGACY = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"  # first object of a torch file before 1.6
PICKLE = (
    "is a pickle that torch.save did not write, which cannot be read safely: it is a program. Save "
    "only the state dict, with torch.save or as safetensors"
)


def other_kind(path: Path) -> str:
    """What the file is, if not safetensors or a torch file: "is ...; what to do", else "".

    Detected by content, not by name.
    """
    with path.open("rb") as file:
        head = file.read(HEAD)
        if not head:
            return f"is empty; {AGAIN}"
    for start, what in STARTS:
        if head.startswith(start):
            return what
    if head[257:262] == b"ustar":
        return TAR
    if head.startswith(b"PK\x03\x04"):
        return _zip_kind(path)
    return _text_kind(head) or _binary_kind(path, head)


def is_safetensors(path: Path) -> bool:
    """Whether the file starts with the length of a header and the header's brace."""
    with path.open("rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") <= MAX_HEADER


def is_torch(path: Path) -> bool:
    """Whether the file starts as `torch.save` starts one: a zip archive, or a pickle before 1.6."""
    with path.open("rb") as file:
        head = file.read(64)
    return head.startswith(b"PK\x03\x04") or (head[:1] == b"\x80" and LEGACY in head)


def _zip_kind(path: Path) -> str:
    """`other_kind` of a zip archive; "" where it holds a pickled object, as torch writes it."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return f"is an archive of torch that ends early or is damaged; {AGAIN}"
    inner = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
        return _script(path.name)
    if "data.pkl" in inner:
        return ""
    if any(name.endswith(".npy") for name in names):
        return f"is an archive of NumPy (.npz); {CONVERT}"
    if any(name.endswith(".weights.h5") for name in names):
        return f"is a model of Keras; {CONVERT}"
    listed = ", ".join(sorted(names)[:3])
    return f"is a zip archive of other files ({listed}): unpack it, and give its content"


def _script(name: str) -> str:
    if RESNET.fullmatch(name):
        return f"{SCRIPT}, of a ResNet, which is not supported; expected a vision transformer"
    if name in PUBLISHED:
        return f"{SCRIPT}: give {PUBLISHED[name]} of Hugging Face instead"
    several = ", ".join(f"{hub} for {file}" for file, hub in PUBLISHED.items())
    return (
        f"{SCRIPT}. Give the same weights of Hugging Face instead ({several}); of your own "
        "model, save the state dict: torch.save(model.state_dict(), FILE)"
    )


def _text_kind(head: bytes) -> str:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<script")):
        title = re.search(rb"<title[^>]*>\s*([^<]{1,80}?)\s*<", head, re.IGNORECASE)
        named = f" ({title[1].decode('utf-8', 'replace')!r})" if title else ""
        return (
            f"is a page of HTML{named}, as a server sends when a login is required or the address "
            "is wrong; download the file itself"
        )
    if text.startswith(b"<"):
        return f"is XML, as a server sends with an error; {AGAIN}"
    printable = all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head)
    if printable:
        start = head[:60].decode("ascii").strip()
        return f"is a text, not weights: it starts with {start!r}; {AGAIN}"
    return ""


def _binary_kind(path: Path, head: bytes) -> str:
    if not any(head):
        return f"holds only zeros, as an interrupted download leaves it; {AGAIN}"
    if path.suffix == ".onnx" or re.match(rb"\x08[\x01-\x1f]\x12.[ -~]", head, re.DOTALL):
        return f"is an ONNX model; {CONVERT}"
    if re.match(rb"(?:[\x81-\x8f]|\xde..|\xdf....)(?:[\xa1-\xbf]|\xd9.)[ -~]", head, re.DOTALL):
        return f"is a file of msgpack, as Flax writes weights; {CONVERT}"
    if head[:1] == b"\x80" and head[1:2] and head[1] <= 5 and LEGACY not in head[:64]:
        return PICKLE
    return ""
