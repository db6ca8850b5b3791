"""The mark of generated images: IPTC's digital source type, in an XMP packet that every reader of metadata finds.

The packet is one fixed chunk of the PNG file: pixels are not touched, and the same image gives the same bytes.
"""

import struct
import zlib

# IPTC's word for images that a trained model has made.
DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
COMPOSITE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
PACKET = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    f'Iptc4xmpExt:DigitalSourceType="{DIGITAL_SOURCE_TYPE}"/></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
)
SIGNATURE = b"\x89PNG\r\n\x1a\n"
AFTER_HEADER = 33  # bytes: the signature and the chunk IHDR, with which every PNG file begins
KEYWORD = b"XML:com.adobe.xmp\0"  # of the chunk that holds XMP, as Adobe's specification has it (part 3, PNG)


def chunk(kind, content):
    """A chunk of a PNG file: length, kind, content and checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


MARK = chunk(b"iTXt", KEYWORD + b"\0\0\0\0" + PACKET.encode())  # not compressed, in no language


def marked(png):
    """The bytes of a PNG file with the mark.

    A file may hold one XMP packet: one that says the same stays, another one gives way.
    """
    if png[AFTER_HEADER:].startswith(MARK) or has_mark(png):
        return png
    return png[:AFTER_HEADER] + MARK + b"".join(part for part in chunks(png) if not is_packet(part))


def unmarked(png):
    """The bytes of a PNG file as they were before `marked`."""
    return png[:AFTER_HEADER] + png[AFTER_HEADER + len(MARK) :] if png[AFTER_HEADER:].startswith(MARK) else png


def has_mark(png):
    """Whether a PNG file says, in whatever packet of XMP, that a trained model has made it."""
    return any(is_packet(part) and DIGITAL_SOURCE_TYPE.encode() in part for part in chunks(png))


def is_packet(part):
    return part[4:8] == b"iTXt" and part[8:].startswith(KEYWORD)


def chunks(png):
    """The chunks of a PNG file after its header, one after the other; of a damaged file what is left comes as the last."""
    at = AFTER_HEADER
    while at < len(png):
        length = int.from_bytes(png[at : at + 4], "big") + 12
        yield png[at : at + length]
        at += length


def check_pixels(png):
    """Pillow passes over the checksums of a PNG's pixels, and may show other ones where the file is damaged.

    Raises:
        ValueError: One is wrong. A chunk that is cut is left to Pillow, which says so.
    """
    for part in chunks(png):
        length = int.from_bytes(part[:4], "big")
        if part[4:8] == b"IDAT" and len(part) == length + 12 and zlib.crc32(part[4:-4]) != int.from_bytes(part[-4:], "big"):
            raise ValueError("the checksum of its pixels is wrong: the file is damaged")
