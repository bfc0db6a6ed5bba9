"""Damaged source files, each made from its number: valid seeds, and the damage done to them."""

import gzip
import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import openpyxl
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from spinezarr.testing import (
    DICOM_TRANSFER_SYNTAXES,
    DicomForm,
    MetaImageForm,
    NiftiForm,
    lml_text,
    verse_json,
    write_dicom_multiframe,
    write_dicom_objects,
    write_dicom_series,
    write_metaimage,
    write_nifti,
)

SHAPE_ZYX = (3, 18, 20)
AFFINE = np.array([[0.8, 0, 0, -7], [0, 0.9, 0, -8], [0, 0, 2.5, 30], [0, 0, 0, 1.0]])
POINTS = {"T12": (1.0, 2.0, 30.0), "L1": (1.5, 2.0, 27.0), "L2": (1.0, 1.0, 25.0)}
INTEGERS = [0, 1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 32, 64, 100, 127, 128, 255, 256, 348, 352, 512]
INTEGERS += [540, 1000, 1024, 4096, 8192, 8193, 32767, 32768, 65535, 65536, 2**24, 2**31 - 1]
INTEGERS += [2**31, 2**32 - 8, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
NUMBERS = [0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 1e-45, 1e-30, 1e-6, 1e-3, 10, 255, 1e3, 1e4, 1e6, 1e7]
NUMBERS += [2.0**31, 1e15, 1e19, 1e30, 3.4e38, 1e300, 1.8e308, np.nan, np.inf, -np.inf, -1e30]
WORDS = ["0", "1", "-1", "2", "3", "16", "18", "20", "255", "4096", "8192", "8193", "65536"]
WORDS += [
    "2147483648",
    "99999999999999999999",
    "1e3",
    "1e-7",
    "1e400",
    "nan",
    "inf",
    "-inf",
    "0x10",
]
WORDS += ["True", "False", "LOCAL", "LIST", "..", "/etc/passwd", "", " ", "%03d", "MET_DOUBLE"]
WORDS += ["MET_UCHAR", "MET_LONG_LONG", "MET_NONE", "Image", "mm", "\0", "\u00e9" * 9, "9" * 5000]


def image_zyx(shape_zyx: tuple[int, int, int] = SHAPE_ZYX) -> np.ndarray:
    """Return an image with smooth and noisy parts, so that compressors use all their methods."""
    rng = np.random.default_rng(7)
    values = rng.integers(-1000, 2000, shape_zyx)
    values[:, : shape_zyx[1] // 2] = np.arange(shape_zyx[2]) * 37 - 500
    return values.astype(np.int16)


@dataclass(frozen=True)
class Seed:
    """Valid files, and the way to read a damaged copy."""

    kind: str
    """Kind of the files: nifti, metaimage, dicom or small."""
    name: str
    opens: str
    """Path of the file or folder to open; that of a folder ends with a slash."""
    files: dict[str, bytes]


def seeds(folder: Path) -> list[Seed]:
    """Write all seeds into ``folder``, and return them."""
    return [
        *_nifti_seeds(folder),
        *_metaimage_seeds(folder),
        *_dicom_seeds(folder),
        *_small_seeds(),
    ]


def _nifti_seeds(folder: Path) -> list[Seed]:
    image = image_zyx()
    forms = {
        "plain.nii": NiftiForm(),
        "packed.nii.gz": NiftiForm(),
        "scaled.nii.gz": NiftiForm(slope=0.5, inter=-1024.0),
        "float32.nii.gz": NiftiForm(dtype="float32", slope=2.0, inter=1.0),
        "float64.nii": NiftiForm(dtype="float64", slope=2.0, inter=1.0, orientation="PIR"),
        "big.nii": NiftiForm(big_endian=True, sform_code=0),
        "int64.nii.gz": NiftiForm(dtype="int64"),
    }
    for name, form in forms.items():
        write_nifti(folder / name, image, AFFINE, form)
    nib.save(nib.Nifti2Image(image.transpose(2, 1, 0), AFFINE), folder / "second.nii")
    nib.save(nib.Nifti2Image(image.transpose(2, 1, 0), AFFINE), folder / "second.nii.gz")
    names = [*forms, "second.nii", "second.nii.gz"]
    return [Seed("nifti", n, n, {n: (folder / n).read_bytes()}) for n in names]


def _metaimage_seeds(folder: Path) -> list[Seed]:
    found = []
    for name, form in {
        "plain.mha": MetaImageForm(),
        "packed.mha": MetaImageForm(compressed=True),
        "float.mha": MetaImageForm(dtype="float64", oblique_deg=10, compressed=True),
        "beside.mhd": MetaImageForm(big_endian=True),
        "packed.mhd": MetaImageForm(compressed=True),
    }.items():
        into = folder / f"mi-{name}"
        write_metaimage(into / name, image_zyx(), AFFINE, form)
        files = {path.name: path.read_bytes() for path in sorted(into.iterdir())}
        found.append(Seed("metaimage", f"mi-{name}", name, files))
    return found


def _dicom_seeds(folder: Path) -> list[Seed]:
    found = []
    for syntax in DICOM_TRANSFER_SYNTAXES:
        for signed in (False, True):
            into = folder / f"{syntax}-{signed}"
            form = DicomForm(
                transfer_syntax=syntax, signed=signed, intercept=0.0 if signed else -1024.0
            )
            image = image_zyx((2, 66, 70) if signed else SHAPE_ZYX)
            write_dicom_series(into, image.transpose(2, 1, 0), AFFINE, form)
            found.append(_series_seed(into))
    small = image_zyx().transpose(2, 1, 0)
    for syntax in ("implicit-le", "explicit-le"):
        into = folder / f"bare-{syntax}"
        form = DicomForm(transfer_syntax=syntax, preamble=False, naming="uid", scout=True)
        write_dicom_series(into, small, AFFINE, form)
        found.append(_series_seed(into))
    for syntax in ("explicit-le", "deflated", "rle", "jpeg-ls", "jpeg2000"):
        into = folder / f"frames-{syntax}"
        form = DicomForm(transfer_syntax=syntax)
        write_dicom_multiframe(into / "frames.dcm", small, AFFINE, form)
        write_dicom_objects(into, "DIRECTORY")
        write_dicom_objects(into, "SR")
        found.append(_series_seed(into))
    return found


def _series_seed(folder: Path) -> Seed:
    files = {f"series/{path.name}": path.read_bytes() for path in sorted(folder.iterdir())}
    return Seed("dicom", folder.name, "series/", files)


def _small_seeds() -> list[Seed]:
    verse = verse_json(POINTS, (20, 18, 3), AFFINE, "verse").encode()
    challenge = verse_json(POINTS, (20, 18, 3), AFFINE, "verse-2019-challenge").encode()
    lml = lml_text(POINTS, AFFINE).encode()
    csv = b'scan;age;sex\r\ns1;61;f\r\ns2;"7;1";m\r\n'
    book = openpyxl.Workbook()
    for row in (["scan", "age", "when"], ["s1", 61, None], ["s2", 7.5, "x"]):
        book.active.append(row)
    packed = io.BytesIO()
    book.save(packed)
    contents = {
        "verse.json": verse,
        "verse-2019-challenge.json": challenge,
        "lml.lml": lml,
        "table.csv": csv,
        "table.xlsx": packed.getvalue(),
    }
    return [Seed("small", name, name, {name: data}) for name, data in contents.items()]


def mutant(among: list[Seed], seed: int, number: int) -> tuple[Seed, dict[str, bytes]]:
    """Return the files of mutant ``number``; the same each time."""
    rng = np.random.default_rng([seed, number])
    # Kinds alternate; DICOM comes twice as often, because it has the most decoders.
    kind = ("nifti", "metaimage", "dicom", "dicom", "small")[number % 5]
    own = [seed for seed in among if seed.kind == kind]
    chosen = own[int(rng.integers(len(own)))]
    files = dict(chosen.files)
    name = str(rng.choice(sorted(files)))
    other = own[int(rng.integers(len(own)))]
    donor = other.files[str(rng.choice(sorted(other.files)))]
    files[name] = _DAMAGES[kind](files[name], donor, rng)
    return chosen, files


def _some(rng: np.random.Generator, values: list) -> object:
    return values[int(rng.integers(len(values)))]


def _damaged_bytes(data: bytes, donor: bytes, rng: np.random.Generator) -> bytes:
    """Damage bytes of any kind of file."""
    content = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        size = max(1, len(content))
        # Half of the damage is done at the beginning, where headers are.
        at = int(rng.integers(min(size, 600)) if rng.random() < 0.5 else rng.integers(size))
        span = int(2 ** rng.uniform(0, 9))
        match int(rng.integers(8)):
            case 0 if content:
                content[at] ^= 1 << int(rng.integers(8))
            case 1:
                content[at : at + span] = rng.bytes(span)
            case 2:
                del content[at:]
            case 3:
                del content[at : at + span]
            case 4:
                content[at:at] = content[at : at + span]
            case 5:
                width = int(_some(rng, [1, 2, 4, 8]))
                value = int(_some(rng, INTEGERS)) % 2 ** (8 * width)
                order = "little" if rng.random() < 0.5 else "big"
                content[at : at + width] = value.to_bytes(width, order)
            case 6:
                start = int(rng.integers(max(1, len(donor))))
                content[at : at + span] = donor[start : start + span]
            case _:
                content += bytes(span) if rng.random() < 0.5 else rng.bytes(span)
    return bytes(content)


def _damaged_nifti(data: bytes, donor: bytes, rng: np.random.Generator) -> bytes:
    packed = data[:2] == b"\x1f\x8b"
    if rng.random() < 0.3:
        return _damaged_bytes(data, donor, rng)
    inside = gzip.decompress(data) if packed else data
    if rng.random() < 0.2:
        inside = _damaged_bytes(inside, donor, rng)
    inside = _other_field(inside, rng)
    if rng.random() < 0.3:
        inside = _other_field(inside, rng)
    if not packed:
        return inside
    cut = int(rng.integers(len(inside) + 1)) if rng.random() < 0.3 else len(inside)
    parts = [inside[:cut], inside[cut:]] if cut < len(inside) else [inside]
    return b"".join(gzip.compress(part, int(rng.integers(10)), mtime=0) for part in parts)


def _other_field(data: bytes, rng: np.random.Generator) -> bytes:
    """Change the value of one field of a NIfTI header."""
    kind = nib.Nifti2Header if data[:2] in (b"\x1c\x02", b"\0\0") and len(data) > 540 else None
    kind = kind if kind and 540 in struct.unpack("<i", data[:4]) else nib.Nifti1Header
    size = kind.sizeof_hdr
    if len(data) < size:
        return data
    order = "<" if data[:4] == struct.pack("<i", size) else ">"
    fields = np.frombuffer(data[:size], kind.template_dtype.newbyteorder(order)).copy()
    name = str(_some(rng, list(fields.dtype.names)))
    if rng.random() < 0.6:
        likely = ["dim", "pixdim", "datatype", "bitpix", "vox_offset", "scl_slope", "scl_inter"]
        likely += ["qform_code", "sform_code", "srow_x", "srow_z", "quatern_b", "magic"]
        name = str(_some(rng, likely))
    base = fields.dtype[name].base
    values = fields[name].reshape(-1)  # a view
    at = int(rng.integers(values.size))
    if base.kind == "f":
        with np.errstate(over="ignore"):
            values[at] = np.array(_some(rng, NUMBERS)).astype(base)
    elif base.kind in "iu":
        raw = int(_some(rng, INTEGERS)) % 2 ** (8 * base.itemsize)
        values[at] = np.array([raw], f"u{base.itemsize}").view(f"i{base.itemsize}").astype(base)[0]
    else:
        values[at] = rng.bytes(base.itemsize)
    fields[name] = values.reshape(fields[name].shape)
    return fields.tobytes() + data[size:]


def _damaged_metaimage(data: bytes, donor: bytes, rng: np.random.Generator) -> bytes:
    end = data.find(b"\n", data.find(b"ElementDataFile"))
    if end < 0 or rng.random() < 0.25:
        packed = data[:1] == b"\x78"
        if packed and rng.random() < 0.5:
            return zlib.compress(_damaged_bytes(zlib.decompress(data), donor, rng))
        return _damaged_bytes(data, donor, rng)
    lines = data[:end].decode("utf-8", "replace").split("\n")
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(len(lines)))
        key, _, value = lines[at].partition(" = ")
        words = value.split(" ")
        match int(rng.integers(6)):
            case 0 | 1:
                words[int(rng.integers(len(words)))] = str(_some(rng, WORDS))
                lines[at] = f"{key} = {' '.join(words)}"
            case 2:
                lines[at] = f"{key} = {_some(rng, WORDS)}"
            case 3:
                lines.insert(int(rng.integers(len(lines))), lines[at])
            case 4 if len(lines) > 1:
                del lines[at]
            case _:
                extra = ["HeaderSize", "CompressedDataSize", "ElementNumberOfChannels", "Rotation"]
                extra += [
                    "Position",
                    "ElementSize",
                    "DistanceUnits",
                    "BinaryData",
                    "FileFormatVersion",
                ]
                lines.insert(0, f"{_some(rng, extra)} = {_some(rng, WORDS)}")
    voxels = data[end:]
    return "\n".join(lines).encode("utf-8", "surrogatepass") + voxels


def _damaged_dicom(data: bytes, donor: bytes, rng: np.random.Generator) -> bytes:
    if rng.random() < 0.15:
        return _damaged_bytes(data, donor, rng)
    start = _end_of_meta(data)
    meta, body = data[:start], data[start:]
    deflated = DeflatedExplicitVRLittleEndian.encode() in meta and not ImplicitVRLittleEndian.encode() + b"\0" in meta  # fmt: skip  # noqa: E501, E713
    if deflated:
        body = zlib.decompress(body, -zlib.MAX_WBITS)
    code = body.find(b"\xe0\x7f\x10\x00") if ExplicitVRBigEndian.encode() not in meta else -1
    if code > 0 and rng.random() < 0.5:
        body = _damaged_pixels(body, code, donor, rng)
    else:
        for _ in range(int(rng.integers(1, 3))):
            body = _other_element(body, rng)
    if deflated:
        deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        body = deflate.compress(body) + deflate.flush()
        if rng.random() < 0.1:
            body = _damaged_bytes(body, donor, rng)
    elif rng.random() < 0.1:
        meta = meta[:132] + _other_element(meta[132:], rng) if meta else meta
    return meta + body


def _end_of_meta(data: bytes) -> int:
    """Return the end of the file meta group, from the length in its first element."""
    if data[128:132] != b"DICM":
        return 0
    return 144 + int(struct.unpack("<I", data[140:144])[0])


def _damaged_pixels(body: bytes, code: int, donor: bytes, rng: np.random.Generator) -> bytes:
    """Damage pixels or their code stream, mostly its header, and keep all lengths."""
    content = bytearray(body)
    first = min(code + 28, len(content) - 1)
    for _ in range(int(rng.integers(1, 5))):
        reach = min(len(content), first + 120) if rng.random() < 0.6 else len(content)
        at = int(rng.integers(first, max(reach, first + 1)))
        match int(rng.integers(6)):
            case 0:
                content[at] ^= 1 << int(rng.integers(8))
            case 1:
                content[at] = int(_some(rng, [0, 1, 2, 127, 128, 254, 255]))
            case 2:
                value = int(_some(rng, INTEGERS)) % 65536
                content[at : at + 2] = value.to_bytes(2, "big")
            case 3:
                marker = [0xC0, 0xC2, 0xC3, 0xC4, 0xD0, 0xD9, 0xDA, 0xDC, 0xDD, 0xE0, 0xF7, 0xF8]
                marker += [0x4F, 0x51, 0x52, 0x53, 0x55, 0x57, 0x58, 0x5C, 0x5F, 0x90, 0x91, 0x93]
                content[at : at + 2] = bytes([0xFF, int(_some(rng, marker))])
            case 4:
                span = int(2 ** rng.uniform(0, 6))
                end = min(at + span, len(content))
                content[at:end] = rng.bytes(end - at)
            case _:
                span = int(2 ** rng.uniform(0, 6))
                from_donor = int(rng.integers(max(1, len(donor) - span)))
                piece = donor[from_donor : from_donor + span]
                content[at : at + len(piece)] = piece
    return bytes(content)


def _other_element(body: bytes, rng: np.random.Generator) -> bytes:
    """Damage tag, VR, length or value of one element in explicit or implicit little endian."""
    places = _elements(body)
    if not places:
        return _damaged_bytes(body, body, rng)
    at, value_at, length = places[int(rng.integers(len(places)))]
    content = bytearray(body)
    value_end = min(value_at + length, len(content))
    match int(rng.integers(8)):
        case 0:
            content[at : at + 4] = bytes(content[at : at + 2]) + rng.bytes(2)
        case 1:
            vrs = [b"US", b"SQ", b"DS", b"UN", b"OW", b"UL", b"FD", b"AT", b"IS", b"zz", b"UT"]
            content[at + 4 : at + 6] = _some(rng, vrs)
        case 2:
            width = value_at - at - (4 if value_at - at == 8 and body[at + 4] < 0x41 else 6)
            width = 4 if width in (4, 6) else 2
            value = int(_some(rng, INTEGERS)) % 2 ** (8 * width)
            content[value_at - width : value_at] = value.to_bytes(width, "little")
        case 3 | 4:
            text = str(_some(rng, [*WORDS, *map(str, NUMBERS)])).encode()
            fill = (
                (text * (1 + length // max(1, len(text))))[:length] if rng.random() < 0.3 else text
            )
            content[value_at:value_end] = fill.ljust(length)[:length]
        case 5 | 6:
            width = int(_some(rng, [1, 2, 4]))
            value = int(_some(rng, INTEGERS)) % 2 ** (8 * width)
            content[value_at : value_at + width] = value.to_bytes(width, "little")
        case _:
            element = bytes(content[at:value_end])
            if rng.random() < 0.5:
                del content[at:value_end]
            else:
                content[at:at] = element
    return bytes(content)


_LONG: frozenset[bytes] = frozenset({b"OB", b"OW", b"SQ", b"UN", b"UT", b"UC", b"UR", b"OF", b"OD"})


def _elements(body: bytes) -> list[tuple[int, int, int]]:
    """Return start, start of value and length of each readable element, in items, too."""
    found = []
    at = 0
    while at + 8 <= len(body):
        if body[at : at + 2] == b"\xfe\xff":  # the start or end of an item
            at += 8
            continue
        vr = body[at + 4 : at + 6]
        if not (vr.isalpha() and vr.isupper()):
            length, value_at = struct.unpack("<I", body[at + 4 : at + 8])[0], at + 8
        elif vr in _LONG:
            length, value_at = (
                struct.unpack("<I", body[at + 8 : at + 12].ljust(4, b"\0"))[0],
                at + 12,
            )
        else:
            length, value_at = struct.unpack("<H", body[at + 6 : at + 8])[0], at + 8
        found.append((at, value_at, min(length, len(body) - value_at)))
        at = value_at + (0 if vr == b"SQ" else length)
    return found


def _damaged_small(data: bytes, donor: bytes, rng: np.random.Generator) -> bytes:
    if data[:2] == b"PK" and rng.random() < 0.7:
        return _damaged_workbook(data, rng)
    if rng.random() < 0.5:
        return _damaged_bytes(data, donor, rng)
    words = data.decode("utf-8", "replace").split(" ")
    for _ in range(int(rng.integers(1, 4))):
        extra = [
            "null",
            "[]",
            "{}",
            "[" * 3000,
            '"' * 3,
            "1e999",
            "NaN",
            "-Infinity",
            "9" * 5000,
            "\t",
        ]
        words[int(rng.integers(len(words)))] = str(_some(rng, [*WORDS, *extra]))
    return " ".join(words).encode("utf-8", "surrogatepass")


def _damaged_workbook(data: bytes, rng: np.random.Generator) -> bytes:
    """Damage one file of a workbook, and pack it again."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:  # fmt: skip  # noqa: E501
        names = old.namelist()
        chosen = names[int(rng.integers(len(names)))]
        for name in names:
            content = old.read(name)
            if name == chosen:
                content = _damaged_bytes(content, content, rng)
            info = zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0))
            new.writestr(info, content, zipfile.ZIP_DEFLATED)
    return out.getvalue()


_DAMAGES: dict[str, Callable[[bytes, bytes, np.random.Generator], bytes]] = {
    "nifti": _damaged_nifti,
    "metaimage": _damaged_metaimage,
    "dicom": _damaged_dicom,
    "small": _damaged_small,
}
