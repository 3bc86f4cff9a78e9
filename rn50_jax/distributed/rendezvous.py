"""Lets the processes of a run find each other before JAX does, which aborts with a stack trace where one is wrong.

Process 0 listens at the coordinator's port, which JAX's own service then takes over. Each of the others says in a line
of JSON who it is, and is told "go" once all are there, or what is wrong.
"""

import errno
import json
import os
import selectors
import socket
import time
from contextlib import suppress

from typing_extensions import TypedDict

from rn50_jax.errors import UserError
from rn50_jax.io.json_files import parse_json
from rn50_jax.io.messages import tell_end
from rn50_jax.io.text import first_line, printable

_GREETING = b"rn50_jax: who is there? (1)\n"
_GO = b"go\n"
_LONGEST = 4096  # bytes of a line
_ANSWER = 5.0  # seconds within which process 0 greets
_STRANGE = 20.0  # seconds for which another answer, perhaps of a run that is just ending, is borne
_LATE = 10.0  # seconds in which those that come late are still told what is wrong
_FIRST_WORD, _NEXT_WORDS = 15.0, 60.0  # seconds after which is told what is waited for


class _Hello(TypedDict):
    """Who a process is. place: machine and process, for people."""

    number: int
    count: int
    place: str


class _Strange(Exception):
    """Something else than process 0 answers."""


def meet(address: str, number: int, count: int, *, timeout: float) -> None:
    """Returns once all processes are at the address, on all of them.

    Args:
      address: host:port of process 0.
      timeout: seconds to wait for the others.

    Raises:
      UserError: on all that are there: one does not come, two have the same number, or their counts differ. On this
        one: the host is unknown, something else listens at the port, or nothing does.
    """
    me = _Hello(number=number, count=count, place=f"{printable(socket.gethostname())} (process {os.getpid()})")
    if number:
        _join(address, me, timeout)
        return
    port = int(os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", address).rpartition(":")[2])
    try:
        try:
            server = _listen(port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            with suppress(OSError, _Strange):  # another process 0 knows what to say
                _ask(address, me, _ANSWER)
            server = _listen(port)  # one that looked for us may have had the port for a moment, see `_connect`
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise UserError(f"--coordinator {address}: {reason}; choose another port") from error
    with server:
        _Host(server, me, address).gather(timeout)


def _listen(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        with suppress(OSError):  # no IPv6 here, or the port is taken, which is told below
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096)
    return socket.create_server(("", port), backlog=4096)


class _Host:
    """Process 0. Connections of others than our processes are closed, whatever they say."""

    def __init__(self, server: socket.socket, me: _Hello, address: str) -> None:
        self._server, self._me, self._address = server, me, address
        self._said: dict[socket.socket, bytes] = {}
        self._here: dict[socket.socket, _Hello] = {}
        self._wrong = ""
        self._expected = me["count"] - 1

    def gather(self, timeout: float) -> None:
        """Waits for all, and tells all.

        Raises:
          UserError: see `meet`.
        """
        deadline, word = time.monotonic() + timeout, time.monotonic() + _FIRST_WORD
        self._server.setblocking(False)
        with selectors.DefaultSelector() as self._selector:
            self._selector.register(self._server, selectors.EVENT_READ)
            while len(self._here) < self._expected or self._drop_gone():
                now = time.monotonic()
                if now > deadline:
                    self._wrong = self._wrong or f"{self._missing()} did not come to {self._address} in {timeout:g} s"
                    break
                if now > word and not self._wrong:
                    word = now + _NEXT_WORDS
                    tell_end(f"waiting at {self._address} for {self._missing()}, for up to {deadline - now:.0f} s more")
                for key, _ in self._selector.select(0.5):
                    self._hear(key.fileobj)
                if self._wrong:
                    deadline = min(deadline, now + _LATE)
        self._server.close()
        for connection in self._here:
            with suppress(OSError):
                connection.settimeout(_ANSWER)
                connection.sendall(f"error {self._wrong}\n".encode() if self._wrong else _GO)
        for connection in (*self._here, *self._said):
            connection.close()
        if self._wrong:
            raise UserError(self._wrong)

    def _missing(self) -> str:
        here = {hello["number"] for hello in self._here.values()}
        numbers = [str(number) for number in range(1, self._me["count"]) if number not in here]
        more = f" and {len(numbers) - 8} more" if len(numbers) > 8 else ""
        return (
            f"{'process' if len(numbers) == 1 else 'processes'} {', '.join(numbers[:8])}{more} of {self._me['count']}"
        )

    def _hear(self, source: object) -> None:
        if source is self._server:
            with suppress(OSError):
                connection, _ = self._server.accept()
                self._said[connection] = b""
                self._selector.register(connection, selectors.EVENT_READ)
                connection.setblocking(False)
                connection.send(_GREETING)
            return
        assert isinstance(source, socket.socket)
        try:
            data = source.recv(_LONGEST)
        except OSError:
            data = b""
        said = self._said.get(source, b"") + data
        if not data or len(said) > _LONGEST or source in self._here:
            self._drop(source)
        elif said.endswith(b"\n"):
            self._take(source, said)
        else:
            self._said[source] = said

    def _drop_gone(self) -> bool:
        """Drops those that have gone away since they said who they are; returns whether there were any."""
        gone = [connection for connection in self._here if _is_gone(connection)]
        for connection in gone:
            self._drop(connection)
        return bool(gone)

    def _drop(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        self._said.pop(connection, None)
        self._here.pop(connection, None)
        connection.close()

    def _take(self, connection: socket.socket, said: bytes) -> None:
        try:
            hello = parse_json(said, _Hello)
        except ValueError:
            self._drop(connection)
            return
        number, count, place = hello["number"], hello["count"], hello["place"]
        taken = {peer["number"]: peer["place"] for peer in (self._me, *self._here.values())}
        if count != self._me["count"]:
            wrong = (
                f"process {number} on {place} was started as one of {count}, process 0 on {self._me['place']} as one "
                f"of {self._me['count']}; give all the same --num_processes"
            )
            self._expected = max(self._expected, min(count, 2 * self._me["count"]) - 1)
        elif number in taken:
            wrong = (
                f"two processes have the number {number}, on {taken[number]} and on {place}; give each its own "
                f"--process_id, from 0 to {count - 1}"
            )
        else:
            wrong = ""
        self._wrong = self._wrong or wrong
        del self._said[connection]
        self._here[connection] = hello


def _is_gone(connection: socket.socket) -> bool:
    try:
        return not connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _join(address: str, me: _Hello, timeout: float) -> None:
    start = time.monotonic()
    word, strange_since, why = start + _FIRST_WORD, 0.0, ""
    while (now := time.monotonic()) < start + timeout:
        try:
            if _ask(address, me, start + timeout - now):
                break
            strange_since, why = 0.0, "it has gone away"
        except _Strange as error:
            strange_since, why = strange_since or now, str(error)
            if now - strange_since > _STRANGE:
                break
        except socket.gaierror as error:
            raise UserError(f"--coordinator {address}: the host is unknown ({error.strerror})") from error
        except OSError as error:
            strange_since, why = 0.0, first_line(error)
        if now > word:
            word = now + _NEXT_WORDS
            tell_end(f"waiting for process 0 at {address} ({why}), for up to {start + timeout - now:.0f} s more")
        time.sleep(0.2)
    else:
        raise UserError(f"--coordinator {address}: {why}; is process 0 running, and the port open?")
    if strange_since:
        raise UserError(
            f"--coordinator {address}: {why}, not the process 0 of a run that is starting; give all the same free port "
            "of its machine, and each its own number"
        )
    # JAX, where it finds nobody, tries again only after a second.
    deadline = time.monotonic() + _LATE
    while time.monotonic() < deadline:
        with suppress(OSError), _connect(address):
            return
        time.sleep(0.02)


def _connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    connection = socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER)
    if connection.getsockname() == connection.getpeername():
        # Nobody listens, and the system gave this end the very port that it calls: it has reached itself.
        connection.close()
        raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
    return connection


def _ask(address: str, me: _Hello, timeout: float) -> bool:
    """Says hello to process 0; returns whether all are there, or False if it has gone away.

    Raises:
      UserError: something is wrong with the processes.
      OSError: nobody is there.
    """
    with _connect(address) as connection:
        with suppress(OSError):
            connection.sendall(json.dumps(me).encode() + b"\n")
        greeting = _read_line(connection, _ANSWER)
        if not greeting:
            raise _Strange("what is there does not answer")
        if greeting != _GREETING:
            raise _Strange(f"something else answers there ({printable(greeting[:40].decode('ascii', 'replace'))})")
        verdict = _read_line(connection, timeout + _LATE)
    if verdict.startswith(b"error "):
        raise UserError(verdict.removeprefix(b"error ").decode("utf-8", "replace").strip())
    return verdict == _GO


def _read_line(connection: socket.socket, seconds: float) -> bytes:
    """A line, or what has come of it in that time."""
    line = b""
    deadline = time.monotonic() + seconds
    with suppress(OSError):
        while not line.endswith(b"\n") and len(line) < _LONGEST:
            connection.settimeout(max(deadline - time.monotonic(), 0.001))
            data = connection.recv(1)  # no more than the line
            if not data:
                break
            line += data
    return line
