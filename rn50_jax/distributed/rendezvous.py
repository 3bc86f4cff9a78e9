"""Lets the processes of a run find each other before JAX does, which aborts with a stack trace where one is wrong.

Process 0 listens at the coordinator's port, which JAX's own service then takes over. Each of the others says in a line
of JSON who it is, and is told "go" once all are there, or what is wrong.
"""

import asyncio
import errno
import json
import os
import socket
import time
from collections.abc import Iterable
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
        asyncio.run(_gather(server, me, address, timeout))


def _listen(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        with suppress(OSError):  # no IPv6 here, or the port is taken, which is told below
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096)
    return socket.create_server(("", port), backlog=4096)


async def _gather(server: socket.socket, me: _Hello, address: str, timeout: float) -> None:
    """Is process 0: waits for all, and tells all. Others than our processes do not count, whatever they say.

    Raises:
      UserError: see `meet`.
    """
    here: dict[asyncio.StreamWriter, _Hello] = {}
    expected, wrong = me["count"] - 1, ""

    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal expected, wrong
        try:
            # Cancelled when all is over; Python 3.11 would log that as an error.
            with suppress(OSError, ValueError, asyncio.CancelledError):
                writer.write(_GREETING)
                hello = parse_json(await reader.readline(), _Hello)
                wrong = wrong or _conflict(hello, me, here.values())
                expected = max(expected, min(hello["count"], 2 * me["count"]) - 1)
                here[writer] = hello
                await reader.read(1)  # until it goes away
        finally:
            here.pop(writer, None)
            writer.close()

    listening = await asyncio.start_server(hear, sock=server, limit=_LONGEST)
    deadline, word = time.monotonic() + timeout, time.monotonic() + _FIRST_WORD
    while len(here) < expected:
        now = time.monotonic()
        if now > deadline:
            wrong = wrong or f"{_missing(me, here.values())} did not come to {address} in {timeout:g} s"
            break
        if now > word and not wrong:
            word = now + _NEXT_WORDS
            missing = _missing(me, here.values())
            tell_end(f"waiting at {address} for {missing}, for up to {deadline - now:.0f} s more")
        await asyncio.sleep(0.02)
        if wrong:
            deadline = min(deadline, now + _LATE)
    listening.close()
    for writer in here:
        writer.write(f"error {wrong}\n".encode() if wrong else _GO)
    if wrong:
        raise UserError(wrong)


def _conflict(hello: _Hello, me: _Hello, others: Iterable[_Hello]) -> str:
    """What keeps a process from being one of those that are here; "" if nothing does."""
    number, count, place = hello["number"], hello["count"], hello["place"]
    if count != me["count"]:
        return (
            f"process {number} on {place} was started as one of {count}, process 0 on {me['place']} as one of "
            f"{me['count']}; give all the same --num_processes"
        )
    for other in (me, *others):
        if number == other["number"]:
            return (
                f"two processes have the number {number}, on {other['place']} and on {place}; give each its own "
                f"--process_id, from 0 to {count - 1}"
            )
    return ""


def _missing(me: _Hello, others: Iterable[_Hello]) -> str:
    here = {hello["number"] for hello in others}
    numbers = [str(number) for number in range(1, me["count"]) if number not in here]
    more = f" and {len(numbers) - 8} more" if len(numbers) > 8 else ""
    return f"{'process' if len(numbers) == 1 else 'processes'} {', '.join(numbers[:8])}{more} of {me['count']}"


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
    greeting = verdict = b""
    with _connect(address) as connection, connection.makefile("rb") as answers, suppress(OSError):
        connection.sendall(json.dumps(me).encode() + b"\n")
        greeting = answers.readline(_LONGEST)
        connection.settimeout(timeout + _LATE)
        verdict = answers.readline(_LONGEST) if greeting == _GREETING else b""
    if not greeting:
        raise _Strange("what is there does not answer")
    if greeting != _GREETING:
        raise _Strange(f"something else answers there ({printable(greeting[:40].decode('ascii', 'replace'))})")
    if verdict.startswith(b"error "):
        raise UserError(verdict.removeprefix(b"error ").decode("utf-8", "replace").strip())
    return verdict == _GO
