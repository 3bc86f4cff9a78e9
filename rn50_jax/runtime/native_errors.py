"""What C libraries write to standard error by themselves: a process of its own drops the lines of image decoders.

nvImageCodec, libjpeg, libpng and libtiff write a line for each damaged image, past Python and across progress bars;
nvImageCodec's settings cannot turn errors off. Who meets a damaged image names it anyway. A thread could do the same,
but when the process crashes, a thread's last lines would be lost with it.
"""

import os
import subprocess
import sys
from contextlib import suppress

# What decoders say of an image, by the beginnings of lines: nvImageCodec's extensions, libpng, libjpeg, libtiff.
_NOISE = (
    r"(\x1b\[[0-9;]*m)*\[(ERROR|WARNING)\] ?(\x1b\[[0-9;]*m)*\[[\w.-]*(decoder|parser)[\w.-]*\]",
    r"libpng (error|warning): ",
    r"Corrupt JPEG data: |Premature end of JPEG file$|Unsupported (JPEG process|marker type)\b|Not a JPEG file: ",
    r"Inconsistent progression sequence |Invalid (SOS param|JPEG file str|progressive par|component ID|crop)",
    r"Bogus (DAC|DHT|DQT|Huffman|buffer|input|JPEG|marker|sampling|virtual)",
    r"(Huffman|Quantization|Arithmetic) table 0x|Unknown Adobe color transform code |Warning: unknown JFIF revision ",
    r"(tempfile\.tif|_?TIFF\w+|\w+(Decode|Decode[12]D|DecodeTail|Pre|Setup)|JPEGLib|PackBits\w*|Fax3\w*): .*\.$",
)

# Reads standard input to its end, that is until all who write to it are gone, whatever they die of.
_FILTER = r"""
import os, re, select, signal, sys

for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGPIPE):
    signal.signal(number, signal.SIG_IGN)
noise, color = re.compile(sys.argv[1].encode()), re.compile(rb"\x1b\[[0-9;]*m")
plain = not os.isatty(2)

def tell(text):
    text = color.sub(b"", text) if plain else text
    while text:
        try:
            text = text[os.write(2, text):]
        except BlockingIOError:
            select.select([], [2], [])
        except OSError:
            return

for line in sys.stdin.buffer:
    if not noise.match(line.rstrip(b"\r\n")):
        tell(line)
"""


class Filter:
    """Has what is written to file descriptor 2 go through a process that drops decoders' lines.

    The process lives for as long as anybody can write there, so the last words of a crash come through. Attributes:
    direct: another file descriptor of standard error, whose text is never looked at.
    """

    def __init__(self, direct: int, process: "subprocess.Popen[bytes]") -> None:
        self.direct, self._process = direct, process

    @classmethod
    def start(cls) -> "Filter | None":
        """Starts filtering; returns None where no process can be started, or DALI's own setting asks for the lines.

        Nor does it in a container's first process, with which all others end, before they could pass on its last words.
        """
        if "DALI_NVIMGCODEC_LOG_LEVEL" in os.environ or os.getpid() == 1:
            return None
        command = [sys.executable, "-I", "-S", "-c", _FILTER, "|".join(_NOISE)]
        pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
        with suppress(OSError):
            process = subprocess.Popen(command, stdin=pipe, stdout=nowhere, start_new_session=True, cwd="/")
            assert process.stdin is not None
            with process.stdin:
                direct = os.dup(2)
                os.dup2(process.stdin.fileno(), 2)
            return cls(direct, process)
        return None

    def end(self) -> None:
        """Gives file descriptor 2 back, once all that was written to it is through."""
        os.dup2(self.direct, 2)
        with suppress(subprocess.TimeoutExpired):  # a process that was started meanwhile may go on writing
            self._process.wait(2)
        os.close(self.direct)
