"""Changes bytes the way a stranger would: anywhere, and within the structure of JSON, safetensors, tar, gzip and zip files, with
lengths and checksums made to fit again, so that what lies behind them is reached."""

import gzip
import io
import json
import struct
import zipfile

NUMBERS = [0, 1, -1, 2, 7, 8, 255, 256, 2**15, 2**16, 2**31 - 1, 2**31, -(2**31), 2**32, 2**32 - 1, 2**53, 2**63 - 1, 2**63,
           2**64, 2**64 - 1, 10**30, 0.5, -0.0, 1e308, 1e-320, float("nan"), float("inf")]
VALUES = [None, True, False, "", "x", "../../etc/passwd", "\ud800", "F32", "BF16", "U8", "I64", [], {}, [1], {"a": 1}, [[[[]]]]]


def mutate(data, rng, most=1 << 16):
    """One to four changes of the bytes, by a random.Random; at most `most` bytes."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        data = rng.choice((_bytes, _bytes, _structure))(data, rng)
    return data[:most]


def _bytes(data, rng):
    data = bytearray(data)
    at, n = rng.randrange(len(data) + 1), rng.choice((1, 1, 2, 4, 8, 64, 512))
    kind = rng.randrange(7)
    if kind == 0 and data:
        data[at % len(data)] ^= 1 << rng.randrange(8)
    elif kind == 1 and data:
        data[at % len(data)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, 0x20, rng.randrange(256)))
    elif kind == 2:
        del data[at : at + n]
    elif kind == 3:
        data[at:at] = rng.choice((rng.randbytes(n), b"\0" * n, bytes(data[:n])))
    elif kind == 4:
        data[at:at] = data[at : at + n]
    elif kind == 5:
        del data[at:]
    else:
        width = rng.choice((4, 8))
        data[at : at + width] = struct.pack("<Q", int(rng.choice([v for v in NUMBERS if isinstance(v, int)])) % 2**64)[:width]
    return bytes(data)


def _structure(data, rng):
    for attempt in (_safetensors, _tar, _gzip, _zip, _json):
        changed = attempt(data, rng)
        if changed is not None:
            return changed
    return _bytes(data, rng)


def change_tree(value, rng, depth=0):
    """JSON with one value, key or length in it changed; text that is JSON itself is changed within."""
    if isinstance(value, dict) and value and (depth == 0 or rng.random() < 0.9):
        value = dict(value)
        key = rng.choice(list(value))
        kind = rng.randrange(10)
        if kind == 0:
            del value[key]
        elif kind == 1:
            value[rng.choice(("x", "", key + "x", key[1:]))] = value.pop(key)
        elif kind == 2:
            value[rng.choice(list(value))] = value[key]
        else:
            value[key] = change_tree(value[key], rng, depth + 1)
        return value
    if isinstance(value, list) and value and rng.random() < 0.9:
        value, at = list(value), rng.randrange(len(value))
        kind = rng.randrange(6)
        if kind == 0:
            del value[at]
        elif kind == 1:
            value.insert(at, value[at])
        else:
            value[at] = change_tree(value[at], rng, depth + 1)
        return value
    if isinstance(value, str) and value[:1] in "{[" and rng.random() < 0.9:
        try:
            return json.dumps(change_tree(json.loads(value), rng, depth + 1))
        except ValueError:
            pass
    if isinstance(value, int) and rng.random() < 0.3:
        return value + rng.choice((-1, 1, 2, 8))
    return rng.choice(NUMBERS if rng.random() < 0.6 else VALUES)


def _json(data, rng):
    prefix = data[:1] if data[:1] not in (b"{", b"[") else b""  # of readers of several files
    try:
        return prefix + json.dumps(change_tree(json.loads(data[len(prefix) :]), rng)).encode()
    except (ValueError, RecursionError):
        return None


def _safetensors(data, rng):
    n = int.from_bytes(data[:8], "little")
    if not 2 <= n <= len(data) - 8:
        return None
    try:
        header = json.dumps(change_tree(json.loads(data[8 : 8 + n]), rng)).encode()
    except (ValueError, RecursionError):
        return None
    return len(header).to_bytes(8, "little") + header + data[8 + n :]


def _tar(data, rng):
    data, blocks = bytearray(data), [at for at in range(0, len(data) - 511, 512) if data[at + 257 : at + 262] == b"ustar"]
    if not blocks:
        return None
    at = rng.choice(blocks)
    begin, end = rng.choice(((0, 100), (100, 108), (124, 136), (124, 136), (156, 157), (156, 157), (157, 257), (345, 500)))
    new = rng.choice((rng.randbytes(end - begin), b"77777777777\0"[: end - begin], b"\xff" * (end - begin),
                      b"\x80" + rng.randbytes(11), b"../../x/y.png\0", bytes([rng.choice(b"0123456789LKxgSVDNMAX")]), b"-1\0"))
    data[at + begin : at + begin + len(new[: end - begin])] = new[: end - begin]
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    if rng.random() < 0.2:
        other = rng.choice(blocks)
        data[other:other] = data[at : at + 512 * rng.randrange(1, 4)]
    return bytes(data)


def _gzip(data, rng):
    if data[:2] != b"\x1f\x8b":
        return None
    try:
        inside = gzip.decompress(data)
    except (OSError, EOFError, ValueError, Exception):  # noqa: B014 (zlib.error is a bare Exception)
        return None
    return gzip.compress(rng.choice((_tar, _bytes))(inside, rng) or inside, 1)


def _zip(data, rng):
    if data[:2] != b"PK":
        return None
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(name, archive.read(name)) for name in archive.namelist()]
    except Exception:  # whatever the library makes of it
        return None
    if not members:
        return None
    at = rng.randrange(len(members))
    name, content = members[at]
    kind = rng.randrange(6)
    if kind == 0:
        del members[at]
    elif kind == 1:
        members.append((rng.choice(("images.npy", "train_images.npy", "classes.npy", "../x.npy", name)), content))
    elif kind == 2 and b"'shape': (" in content:
        begin = content.index(b"'shape': (") + 10
        end = content.index(b")", begin)
        shape = b", ".join(b"%d" % rng.choice((0, 1, 2, 4, -1, 2**31, 2**32, 2**63, 2**64)) for _ in range(rng.randrange(6)))
        members[at] = name, content[:begin] + shape.ljust(end - begin)[: max(end - begin, len(shape))] + content[end:]
    elif kind == 3 and b"'descr': '" in content:
        begin = content.index(b"'descr': '") + 10
        members[at] = name, content[:begin] + rng.choice((b"|O8", b"|u1", b"<i8", b"<U1", b"<f4", b"|V9")) + content[begin + 3 :]
    else:
        members[at] = name, _bytes(content, rng)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return out.getvalue()
