"""What a file is, by its first bytes."""

_MAGIC = {
    "JPEG": (b"\xff\xd8",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "BMP": (b"BM",),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "JPEG 2000": (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"),
    "JPEG XL": (b"\xff\x0a", b"\0\0\0\x0cJXL "),
    "GIF": (b"GIF8",),
    "Photoshop": (b"8BPS",),
    "icon": (b"\0\0\x01\0",),
    "PDF": (b"%PDF",),
    "ZIP": (b"PK\x03\x04",),
    "gzip": (b"\x1f\x8b",),
    "video": (b"\x1aE\xdf\xa3",),
    "a raw photograph": (b"FUJIFILMCCD-RAW", b"IIRO", b"IIU\0"),
}
_BRANDS = {b"avi": "AVIF", b"hei": "HEIC", b"hev": "HEIC", b"mif": "HEIC", b"msf": "HEIC", b"crx": "a raw photograph"}


def sniff(head: bytes) -> str:
    """Returns the format of a file by its first bytes, or "" for none that is known."""
    for name, magic in _MAGIC.items():
        if head.startswith(magic):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[:4] == b"RIFF" and head[8:12] in (b"AVI ", b"WAVE"):
        return "video" if head[8:12] == b"AVI " else "sound"
    if head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace():
        return "PNM"
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:11], "video")
    text = head[:256].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "HTML"
    if b"<svg" in text:
        return "SVG"
    printable = head.decode("utf-8", "ignore").isprintable() or (head[:256].isascii() and b"\0" not in head)
    return "text" if head and printable else ""
