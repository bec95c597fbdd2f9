"""Standard output and error that a reader may leave, or the shell may close, without changing how a command ends."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any, TextIO

from lepton_cli.errors import LeptonError


class LostResultError(LeptonError):
    """The result cannot be written to standard output, although somebody waits for it there. Exit code 3."""


class _Lasting(io.RawIOBase):
    """Bytes on their way out; once a write has failed, all that follows is dropped.

    `narration` fails in silence. A result fails in silence too where its reader has left (`head`, a pager): that is
    the reader's right. Any other failure loses a result, and raises LostResultError once.
    """

    def __init__(self, stream: io.TextIOWrapper, *, narration: bool) -> None:
        self._stream = stream  # it closes what it writes to when nobody holds it any more
        self._raw: Any = getattr(stream.buffer, "raw", stream.buffer)  # the buffer is raw itself under `python -u`
        self._narration, self._lost = narration, False

    def write(self, data: Any) -> int | None:
        if not self._lost:
            try:
                written: int | None = self._raw.write(data)
                # None: the pipe is full and does not block. A remark may go.
                return memoryview(data).nbytes if written is None and self._narration else written
            except OSError as error:
                self._lost = True
                # Windows reports EINVAL for a pipe without a reader.
                if not self._narration and error.errno not in (errno.EPIPE, errno.EINVAL):
                    raise LostResultError(
                        "output.stdout",
                        "the result cannot be written to standard output",
                        cause=error.strerror or str(error),
                    ) from error
        return memoryview(data).nbytes

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return int(self._raw.fileno())

    def isatty(self) -> bool:
        return bool(self._raw.isatty())


def protect() -> None:
    """Replace `sys.stdout` and `sys.stderr` of this process by streams that last."""
    _occupy()
    sys.stdout = _lasting(sys.stdout, narration=False)
    sys.stderr = _lasting(sys.stderr, narration=True)


def _occupy() -> None:
    """Open the null device where the shell closed a standard stream.

    The next file to be opened would get its number, and what a library prints would end up inside that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            os.set_inheritable(number, True)


def _lasting(stream: TextIO | None, *, narration: bool) -> TextIO:
    if stream is None:  # closed by the shell
        return open(os.devnull, "w", encoding="utf-8")
    if not isinstance(stream, io.TextIOWrapper):  # replaced by whoever runs lepton inside their program
        return stream
    return io.TextIOWrapper(
        io.BufferedWriter(_Lasting(stream, narration=narration)),
        encoding=stream.encoding,
        # A character that this terminal cannot show must not cost the result.
        errors="replace" if stream.errors == "strict" else stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
